"""A progress bar for a TensorRT build, and Ctrl-C that cancels it.

TensorRT reports nested phases, each with its number of steps, through ``IProgressMonitor`` and stops when
``step_complete`` returns False. Its callbacks come from C++, where a Python exception aborts the process, so Ctrl-C
only sets a flag here and turns into KeyboardInterrupt once TensorRT has returned.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from infer.terminal import draws, phases

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[float, str], None]
"""Called with the share of the build done, 0 to 1 and never falling, and the innermost running phase."""


class PhaseTree:
    """The running phases of a build and the share of it that is done.

    A phase of n steps counts each finished step as 1/n, and its running child as a part of the next one.
    """

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._parent: dict[str, str | None] = {}
        self._best = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """``phase`` begins inside ``parent``, None for the outermost, and has ``steps`` steps."""
        self._steps[phase] = max(steps, 1)
        self._done[phase] = 0
        self._parent[phase] = parent if parent in self._steps else None

    def step(self, phase: str, step: int) -> None:
        """Step ``step`` of ``phase``, counted from 0, is done."""
        if phase in self._done:
            self._done[phase] = min(step + 1, self._steps[phase])

    def finish(self, phase: str) -> None:
        """``phase`` ends; with the outermost one all is done."""
        if self._parent.get(phase, "") is None:
            self._best = 1.0
        for table in (self._steps, self._done, self._parent):
            table.pop(phase, None)

    @property
    def current(self) -> str:
        """The innermost phase, started last; empty when none runs."""
        return next(reversed(self._steps), "")

    def fraction(self) -> float:
        """Share done, 0 to 1, never falling."""
        roots = [phase for phase, parent in self._parent.items() if parent is None]
        if roots:
            self._best = max(self._best, self._share(roots[0]))
        return self._best

    def _share(self, phase: str) -> float:
        done = float(self._done[phase])
        children = [child for child, parent in self._parent.items() if parent == phase]
        if children:
            done += max(self._share(child) for child in children)
        return min(done / self._steps[phase], 1.0)


def make_monitor(trt: Any, report: Report | None, cancelled: threading.Event) -> Any:
    """An ``IProgressMonitor`` of module ``trt`` that reports to ``report`` and stops the build on ``cancelled``.

    An exception of ``report`` stops the build too and is kept in the monitor's ``failure``.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._tree = PhaseTree()
            self._lock = threading.Lock()  # TensorRT may call from several threads

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._update(lambda: self._tree.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._update(lambda: self._tree.step(phase_name, step))
            return self.failure is None and not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._update(lambda: self._tree.finish(phase_name))

        def _update(self, change: Callable[[], None]) -> None:
            try:
                with self._lock:
                    change()
                    if report is not None:
                        report(self._tree.fraction(), self._tree.current)
            except BaseException as error:  # nothing may reach C++
                self.failure = error

    return Monitor()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; afterwards KeyboardInterrupt is raised in its place.

    Only the main thread receives signals: elsewhere the event stays unset and Ctrl-C does what it did before.
    """
    cancelled = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancelled
        return

    def handle(_signum: int, _frame: FrameType | None) -> None:
        cancelled.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield cancelled
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
    if cancelled.is_set():
        raise KeyboardInterrupt


@contextmanager
def progress_bar(progress: bool | Progress | None, title: str) -> Iterator[Report | None]:
    """The report that draws a bar called ``title``.

    ``progress``: a running rich Progress to add a task to, True for a bar of its own on standard error, False for none,
    None for a bar only where standard error is a terminal that can draw one.
    """
    if progress is None:
        progress = draws(sys.stderr)
    if progress is False:
        yield None
        return
    if progress is not True:
        yield _task_report(progress, title)
        return
    with phases(title) as report:
        yield report


def _task_report(progress: Progress, title: str) -> Report:
    task = progress.add_task(title, total=1.0, phase="")

    def report(fraction: float, phase: str) -> None:
        progress.update(task, completed=fraction, phase=phase)

    return report
