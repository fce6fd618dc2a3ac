"""What every command does with errors, Ctrl-C and closed pipes."""

from __future__ import annotations

import io
import sys

import pytest
import typer

from infer.command_line import guarded
from infer.errors import AccuracyError, BundleError, DeviceError, InputError
from infer.terminal import clock_time, human_bytes, progress


def command(error):
    @guarded
    def run(debug=False):
        if error is not None:
            raise error
        return 5

    return run


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("a"), 2), (BundleError("a"), 2), (DeviceError("a"), 1), (AccuracyError("a"), 3)]
)
def test_an_error_is_one_line_and_a_code(capsys, error, code):
    with pytest.raises(typer.Exit) as caught:
        command(error)()
    assert caught.value.exit_code == code
    assert capsys.readouterr() == ("", "error: a\n")


def test_messages_with_line_breaks_become_one_line(capsys):
    with pytest.raises(typer.Exit):
        command(InputError("first\n   second\tthird"))()
    assert capsys.readouterr().err == "error: first second third\n"


def test_debug_lets_the_error_through():
    with pytest.raises(InputError):
        command(InputError("a"))(debug=True)


def test_other_exceptions_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        command(ZeroDivisionError())()


def test_ctrl_c(capsys):
    with pytest.raises(typer.Exit) as caught:
        command(KeyboardInterrupt())()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "cancelled\n"


def test_a_closed_pipe_is_quiet(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(typer.Exit) as caught:
        command(BrokenPipeError())()
    assert caught.value.exit_code == 141


def test_results_pass():
    assert command(None)() == 5


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (150 * 1024, "150 KiB"),
        (5 * 2**20, "5.0 MiB"), (118 * 2**20, "118 MiB"), (3 * 2**30, "3.00 GiB"), (2000 * 2**30, "2000.00 GiB"),
    ],
)  # fmt: skip
def test_human_bytes(size, text):
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (90000, "25:00:00")]
)
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nothing_where_there_is_no_terminal(capsys):
    with progress("classify", 10) as advance:
        advance(4)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [10, None])
def test_a_bar_on_a_terminal(monkeypatch, total):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("verify", total) as advance:
        for _ in range(5):
            advance(2)
    shown = terminal.getvalue()
    assert "verify" in shown
    if total:
        assert "10/10" in shown


def test_errors_pass_and_end_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ZeroDivisionError), progress("verify", 3):
        raise ZeroDivisionError
    with progress("again", 3) as advance:  # rich allows one live display at a time
        advance(3)
