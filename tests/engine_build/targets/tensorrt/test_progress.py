"""Phases, bar and Ctrl-C, without TensorRT."""

import os
import signal
import threading
import types

import pytest

from engine_build.targets.tensorrt.progress import PhaseTree, interruptible, make_monitor, progress_bar

# What the monitor inherits from; TensorRT's own class adds nothing that these tests use.
TRT = types.SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))


def test_nested_phases_count_as_part_of_the_step_they_run_in():
    tree = PhaseTree()
    tree.start("build", None, 4)
    tree.step("build", 0)
    assert tree.fraction() == pytest.approx(1 / 4)
    tree.start("compile", "build", 10)
    for step in range(5):
        tree.step("compile", step)
    assert tree.current == "compile"
    assert tree.fraction() == pytest.approx(1 / 4 + 1 / 4 * 5 / 10)
    tree.finish("compile")
    assert tree.current == "build"
    assert tree.fraction() == pytest.approx(1 / 4 + 1 / 8), "the bar never falls back"
    tree.step("build", 1)
    assert tree.fraction() == pytest.approx(2 / 4)
    tree.finish("build")
    assert tree.fraction() == 1.0


def test_odd_reports_do_no_harm():
    tree = PhaseTree()
    tree.step("unknown", 3)
    tree.finish("unknown")
    assert tree.fraction() == 0.0
    tree.start("empty", None, 0)
    tree.step("empty", 7)
    assert tree.fraction() == 1.0


def test_monitor_reports_and_stops_when_cancelled():
    seen, cancelled = [], threading.Event()
    monitor = make_monitor(TRT, lambda fraction, phase: seen.append((fraction, phase)), cancelled)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is True
    assert seen[-1] == (0.5, "build")
    cancelled.set()
    assert monitor.step_complete("build", 1) is False
    monitor.phase_finish("build")
    assert seen[-1] == (1.0, "")


def test_an_exception_of_the_report_stops_the_build_instead_of_reaching_cpp():
    def report(fraction, phase):
        raise BrokenPipeError("terminal gone")

    monitor = make_monitor(TRT, report, threading.Event())
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is False
    assert isinstance(monitor.failure, BrokenPipeError)


def test_ctrl_c_sets_the_event_and_is_raised_afterwards():
    before = signal.getsignal(signal.SIGINT)
    passed = []
    with pytest.raises(KeyboardInterrupt), interruptible() as cancelled:
        os.kill(os.getpid(), signal.SIGINT)
        assert cancelled.wait(5)
        passed.append(True)
    assert passed == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handler_is_restored_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="broken"), interruptible():
        raise ValueError("broken")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_build_without_touching_signals():
    done = []

    def work():
        with interruptible() as cancelled:
            done.append(cancelled.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [False]


def test_no_bar_where_standard_error_is_no_terminal(capsys):
    with progress_bar(None, "plan") as report:
        assert report is None
    with progress_bar(False, "plan") as report:
        assert report is None
    assert capsys.readouterr() == ("", "")


def test_a_bar_when_asked_goes_to_standard_error(capsys):
    with progress_bar(True, "tensorrt plan") as report:
        report(0.5, "Compiling")
    captured = capsys.readouterr()
    assert captured.out == ""


def test_a_given_progress_gets_one_task():
    from rich.progress import Progress

    progress = Progress(disable=True)
    with progress_bar(progress, "plan") as report:
        report(0.25, "Compiling")
    (task,) = progress.tasks
    assert (task.description, task.completed, task.total, task.fields["phase"]) == ("plan", 0.25, 1.0, "Compiling")
