"""A runner in a fork of its process: refused at once, released by nobody."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from infer import ProcessError, open_bundle

ROOT = Path(__file__).parents[2]

# Each runs in an interpreter of its own: pytest's has threads and other runners that a fork would take along.
OPEN = """
import gc, os, sys
import numpy as np
from infer import ProcessError, open_bundle
runner = open_bundle(sys.argv[1], target="openvino")
side = runner.preprocessing.crop
images = np.zeros((2, side, side, 3), np.uint8)
before = runner.infer(images).logits
child = os.fork()
"""
CLOSE = """
if child == 0: sys.exit(0)
_, status = os.waitpid(child, 0)
assert (runner.infer(images).logits == before).all()
runner.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def forked(bundle: Path, child: str) -> str:
    program = OPEN + "if child == 0:\n" + textwrap.indent(textwrap.dedent(child), "    ") + CLOSE
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_call_is_refused_at_once_and_says_what_to_do(tiny):
    said = forked(
        tiny,
        """
        calls = [lambda: runner.infer(images), lambda: runner.submit(images), lambda: list(runner.stream([images])),
                 lambda: runner.classify([images[0]]), lambda: runner.backend, lambda: runner.enqueue(0, 1, [], 0),
                 lambda: runner.infer_device(None)]
        for call in calls:
            try: print("answered", call())
            except ProcessError as error: print(error)
        print(runner)
        """,
    ).splitlines()
    assert len(said) == 8 and len(set(said[:7])) == 1
    assert "was opened in process" in said[0] and "Open it in the worker, after the fork" in said[0]
    assert said[7].startswith("<Runner of ")


@pytest.mark.parametrize(
    "leave",
    ["runner.close()", "del runner; gc.collect()", "\nwith runner: pass", "pass", "del runner; sys.modules.clear()"],
)
def test_leaving_an_inherited_runner_touches_nothing(tiny, leave):
    forked(tiny, f"{leave}\nprint('left')")


def test_a_child_opens_its_own(tiny):
    said = forked(
        tiny,
        """
        with open_bundle(sys.argv[1], target="openvino") as own:
            print((own.infer(images).logits == before).all())
        """,
    )
    assert said == "True\n"


def test_an_engine_that_was_closed_is_not_kept(tiny):
    assert forked(tiny, "from infer.forks import _ENGINES; print(len(_ENGINES))") == "1\n"
    import gc

    from infer.forks import _ENGINES

    runner = open_bundle(tiny)
    engine = runner.backend
    assert engine in _ENGINES
    runner.close()
    count = len(_ENGINES)
    del runner, engine
    gc.collect()
    assert len(_ENGINES) < count


def test_a_worker_process_of_multiprocessing_ends(tiny):
    said = forked(
        tiny,
        """
        import multiprocessing
        worker = multiprocessing.get_context("fork").Process(target=print, args=("worked",))
        worker.start(); worker.join(30)
        assert worker.exitcode == 0
        """,
    )
    assert said == "worked\n"


def test_pickling_says_what_to_send_instead(tiny):
    with open_bundle(tiny) as runner, pytest.raises(ProcessError, match="Send the folder and call open_bundle there"):
        pickle.dumps(runner)


def test_the_process_is_remembered_from_before_the_fork(tiny):
    with open_bundle(tiny) as runner:
        assert runner.backend is not None
        assert str(os.getpid()) not in repr(runner)
