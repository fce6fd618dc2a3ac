"""What people see of a long command: progress bars that fit the terminal, and sizes in their units."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, Task

_DUMB = ("dumb", "unknown")
_LEAST_BAR, _MOST_BAR = 8, 40


def human_bytes(size: float) -> str:
    """``123456789`` as ``118 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def clock_time(seconds: float) -> str:
    """``3725`` as ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal that ``stream`` is; None where it is none, so that nothing needs to fit.

    ``COLUMNS`` in the environment counts before what the terminal says.
    """
    if not stream.isatty():
        return None
    if (columns := os.environ.get("COLUMNS", "")).isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def draws(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal on which a line can be drawn again."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in _DUMB


class Part(NamedTuple):
    """A piece of a progress line.

    Attributes:
        text: of the piece, with the comma or space that separates it from the one before.
        keep: the lowest are left out first where the line is too long; the last one stays.
    """

    text: str
    keep: float


TITLE = 2.5  # keep of a line's title: what is done matters more, how fast and until when does not


def fit(parts: Sequence[Part], width: int) -> str:
    """The pieces that fit into ``width`` columns, in their order: whole ones, so that no word is cut."""
    chosen = [part for part in parts if part.text]
    while len(chosen) > 1 and sum(len(part.text) for part in chosen) > width:
        chosen.remove(min(chosen, key=lambda part: part.keep))
    return "".join(part.text for part in chosen)


@contextmanager
def bar(title: str, total: float | None, parts: Callable[[Task], Sequence[Part]]) -> Iterator[Progress]:
    """A bar on standard error: spinner, title, a bar where there is room, and what ``parts`` says of its only task.

    The line is made anew for the width that the terminal has at the moment.
    """
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn
    from rich.text import Text

    class Line(ProgressColumn):
        def render(self, task: Task) -> Text:
            # Without the spinner and its space; and the last column stays free, or some terminals go to the next line.
            room = (width_of(sys.stderr) or 80) - 3
            said = [Part(title, TITLE), *parts(task)]
            words = fit(said, room)
            left = room - len(words) - 1
            text = Text(no_wrap=True, overflow="crop")
            if not words.startswith(title):
                return text.append(words.lstrip(" ,"))
            text.append(title)
            if left >= _LEAST_BAR and task.total:
                size = min(left, _MOST_BAR)
                full = round(size * min(1.0, task.completed / task.total))
                text.append(" ").append("\u2501" * full, "bar.complete").append("\u2500" * (size - full), "bar.back")
            return text.append(words[len(title) :])

    # Not the width that rich finds: it takes 80 for every terminal that it does not know.
    with Progress(SpinnerColumn(), Line(), console=Console(stderr=True, highlight=False), transient=True) as drawn:
        drawn.add_task(title, total=total)
        yield drawn


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with rate and remaining time on standard error, where that is a terminal.

    Yields a function that takes how many more are done.
    """
    if not draws(sys.stderr):
        yield lambda count: None
        return

    def parts(task: Task) -> list[Part]:
        count = f" {task.completed:.0f}" + ("" if task.total is None else f"/{task.total:.0f}")
        rate = f" {task.speed:.0f}/s" if task.speed and task.speed >= 1 else ""
        left = f" {clock_time(task.time_remaining)} to go" if task.time_remaining is not None else ""
        return [Part(count, 3), Part(rate, 1), Part(left, 2)]

    with bar(title, total, parts) as drawn:
        [task] = drawn.task_ids

        def advance(count: int) -> None:
            drawn.advance(task, count)

        yield advance


@contextmanager
def phases(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar for work whose share is known and whose speed is not, on standard error, where that is a terminal.

    Yields a function that takes the share that is done, 0 to 1, and what is under way.
    """

    if not draws(sys.stderr):
        yield lambda fraction, phase: None
        return

    def parts(task: Task) -> list[Part]:
        phase = str(task.fields.get("phase", ""))
        passed = f" {clock_time(task.elapsed)}" if task.elapsed is not None else ""
        return [Part(f" {100 * task.completed:.0f} %", 3), Part(passed, 2), Part(f" {phase}" if phase else "", 1)]

    with bar(title, 1.0, parts) as drawn:
        [task] = drawn.task_ids

        def report(fraction: float, phase: str) -> None:
            fields: dict[str, Any] = {"phase": phase}
            drawn.update(task, completed=fraction, **fields)

        yield report
