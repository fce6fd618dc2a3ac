"""Commands in processes of their own, with a limit, so that a part that crashes or hangs costs only itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended; ``code`` is None where it ran past its limit."""

    command: list[str]
    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def why(self) -> str:
        """One line for a command that failed."""
        if self.code is None:
            return f"ran past its limit of {self.seconds:.0f} s"
        lines = [line for line in (self.err or self.out).splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no output"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}: {last}"
        return f"exit code {self.code}: {last}"


class Failed(Exception):
    """A command of a part failed; the text says how."""


def run(command: list[str], limit: float) -> Done:
    """Run ``command`` in the project's folder for at most ``limit`` seconds; what it started ends with it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    code: int | None
    try:
        out, err = process.communicate(timeout=limit)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code = None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return Done(command, code, out, err, time.perf_counter() - start)


def run_python(arguments: list[str], limit: float) -> Done:
    """:func:`run` with this interpreter."""
    return run([sys.executable, *arguments], limit)


def ask(code: str, limit: float = 120) -> Any:
    """What a program prints as JSON.

    Raises:
        Failed: it did not.
    """
    done = run_python(["-c", code], limit)
    if done.code:
        raise Failed(done.why)
    return json.loads(done.out.splitlines()[-1])
