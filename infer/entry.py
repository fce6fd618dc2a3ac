"""How a command begins and ends, whatever it does: its standard streams, signals and the exit status.

A command that a signal stopped ends by that very signal, after it has cleaned up: a shell that runs commands in a loop
stops only then (https://www.cons.org/cracauer/sigint.html).
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came: cleaned up after as Ctrl-C is."""


OUTPUT = "standard output"


class _Closed(io.TextIOBase):
    """Standard output that was closed before the command began: Python has None there, and ``print`` says nothing."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed", OUTPUT)


class _Named(io.BufferedWriter):
    """Standard output whose errors say what they are of.

    The file below it stays one in C: a signal that raises in a ``write`` of ours, after the bytes are out, would leave
    them in the buffer, to be written again.
    """

    def write(self, data: Any) -> int:
        with _naming():
            return super().write(data)

    def flush(self) -> None:
        with _naming():
            super().flush()


@contextmanager
def _naming() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = OUTPUT
        raise


def run_app(app: Callable[..., Any], name: str) -> NoReturn:
    """Run a command line application and end the process.

    Args:
        app: takes ``prog_name`` and raises SystemExit.
        name: of the command.

    Raises:
        SystemExit: always.
    """
    _repair_streams()
    stopped: list[signal.Signals] = []
    atexit.register(_end_by_signal, stopped)  # the first one registered is the last one called
    code: object = 0
    with _terminable(), _heard():
        try:
            app(prog_name=name)
        except SystemExit as end:
            code = end.code
    stopped += [number for number in (signal.SIGINT, signal.SIGTERM) if code == 128 + number]
    raise SystemExit(_flush_output(code))


def _repair_streams() -> None:
    """Give every closed standard stream something in its place, before a file is opened under its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = _Closed()
    elif isinstance(sys.stdout, io.TextIOWrapper):
        old = sys.stdout
        named = _Named(io.FileIO(old.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(named, old.encoding, old.errors, line_buffering=old.line_buffering)
    if sys.stderr is None:  # print(file=None) would go to standard output
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated` in the main thread, where nobody else took it."""

    def raise_it(number: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.getsignal(signal.SIGTERM)
        if before is not signal.SIG_DFL:
            raise ValueError("taken")
        signal.signal(signal.SIGTERM, raise_it)
    except ValueError:  # or this is not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _heard() -> Iterator[None]:
    """Send a signal again that came to a destructor or another place that swallows exceptions."""

    def send_again(lost: Any) -> None:
        for kind, number in ((Terminated, signal.SIGTERM), (KeyboardInterrupt, signal.SIGINT)):
            if issubclass(lost.exc_type, kind):
                again = threading.Timer(0.02, os.kill, (os.getpid(), number))  # at once, it would come to this hook
                again.daemon = True
                again.start()
                return
        before(lost)

    before, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _flush_output(code: object) -> object:
    """Write what is still held back; the exit code, of a failure where that fails."""
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        discard_output()
        if isinstance(error, BrokenPipeError):
            return 128 + signal.SIGPIPE
        print(f"error: {OUTPUT}: cannot be written ({error.strerror})", file=sys.stderr)
        return code or 1


def discard_output() -> None:
    """Let everything that is still written to standard output go nowhere; else it fails again when Python ends."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _end_by_signal(stopped: list[signal.Signals]) -> None:
    for number in stopped:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
