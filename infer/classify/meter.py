"""How far a long job is, how fast, until when, and what it waits for."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from infer.terminal import Part, bar, clock_time, draws

if TYPE_CHECKING:
    from rich.progress import Task

Activity: TypeAlias = Literal["decode", "infer", "write"]
_WORDS: dict[Activity, str] = {"decode": "decoding", "infer": "the engine", "write": "writing"}


class Meter:
    """Counts images and the seconds that the consumer waited, by what it waited for.

    Args:
        clock: seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.started = clock()
        self.waited: dict[Activity, float] = dict.fromkeys(_WORDS, 0.0)
        self.done = 0  # rows, those of an interrupted run too
        self.fresh = 0  # rows of this run
        self.total: int | None = None
        self._recent: deque[tuple[float, int]] = deque([(self.started, 0)], maxlen=64)

    @contextmanager
    def waiting(self, activity: Activity) -> Iterator[None]:
        """Book the time of the body on ``activity``."""
        start = self._clock()
        try:
            yield
        finally:
            self.waited[activity] += self._clock() - start

    def skip(self, count: int) -> None:
        """``count`` rows were there already."""
        self.done += count

    def advance(self, count: int) -> None:
        """``count`` more rows are done."""
        self.done += count
        self.fresh += count
        now = self._clock()
        if now - self._recent[-1][0] >= 1 or len(self._recent) == 1:
            self._recent.append((now, self.fresh))

    @property
    def seconds(self) -> float:
        """Since the start of this run."""
        return self._clock() - self.started

    @property
    def rate(self) -> float:
        """Images a second of this run."""
        return self.fresh / max(self.seconds, 1e-9)

    @property
    def recent_rate(self) -> float:
        """Images a second lately: of the last minute or so."""
        then, count = self._recent[0]
        return (self.fresh - count) / max(self._clock() - then, 1e-9)

    def remaining(self) -> float | None:
        """Seconds to go at the present rate; None when nobody knows."""
        if self.total is None or not self.recent_rate:
            return None
        return max(0, self.total - self.done) / self.recent_rate

    def shares(self) -> str:
        """What this run's time went into: ``waited 62 % for decoding, 30 % for the engine, 1 % for writing``."""
        seconds = max(self.seconds, 1e-9)
        return "waited " + ", ".join(f"{100 * s / seconds:.0f} % for {_WORDS[a]}" for a, s in self.waited.items())

    def line(self) -> str:
        """All of it on one line."""
        return "".join(part.text for part in self._progress()) + f"; {self.shares()}"

    def parts(self) -> list[Part]:
        """The same in pieces for a bar; of the waiting only what took most."""
        most = max(self.waited, key=self.waited.__getitem__)
        share = 100 * self.waited[most] / max(self.seconds, 1e-9)
        waits = f", {share:.0f} % waiting for {_WORDS[most]}" if self.waited[most] else ""
        count, *rest = self._progress()
        return [Part(f" {count.text}", count.keep), *rest, Part(waits, 0)]

    def _progress(self) -> list[Part]:
        left = self.remaining()
        of = "" if self.total is None else f" of {self.total}"
        to_go = "" if left is None else f", {clock_time(left)} to go"
        return [
            Part(f"{self.done}{of}", 3),
            Part(" images", 2.2),
            Part(f", {self.recent_rate:.1f}/s", 1),
            Part(to_go, 2),
        ]


@contextmanager
def shown(title: str, meter: Meter, every: float = 10.0) -> Iterator[Callable[[], None]]:
    """Show ``meter`` on standard error: a bar on a terminal that can draw one, else a line each ``every`` seconds.

    Yields:
        A function to call after each change.
    """
    if not draws(sys.stderr):
        yield _lines(title, meter, every)
        return

    def parts(task: Task) -> list[Part]:
        return meter.parts()

    with bar(title, None, parts) as drawn:
        [task] = drawn.task_ids

        def refresh() -> None:
            drawn.update(task, completed=meter.done, total=meter.total)

        yield refresh


def _lines(title: str, meter: Meter, every: float) -> Callable[[], None]:
    printed = meter.seconds

    def refresh() -> None:
        nonlocal printed
        if meter.seconds - printed >= every:
            printed = meter.seconds
            print(f"{title}: {meter.line()}", file=sys.stderr, flush=True)

    return refresh
