"""Tables, lists of facts and sentences for people, that fit the terminal.

On a terminal no line is longer than it is wide, no word is cut, and a title is one line. A table that is too wide first
lets its texts go on in further lines, then leaves columns out in the order that it names, and says which; where even
that is not enough every row becomes a list of facts. Into a pipe or a file everything is written, one line each.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from infer.terminal import draws, width_of

_GAP = 2
_LEAST_TEXT = 24  # columns of a wrapped text beside its label; with fewer it stands below
# Between words, but not between a number and its unit.
_UNITS = r"(?:%|s|ms|dB|B|[KMG]iB|fp\d+|bf16|int8)(?!\w)"
_WORDS = re.compile(rf"(?<!\d) | (?!{_UNITS})")
_PIECES = re.compile(r"[^/_,;:=.-]*[/_,;:=.-]+|[^/_,;:=.-]+")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: its heading.
        left: starts at the left, as texts do; numbers end at the right.
        wraps: a text of several words, which may go on in further lines.
        drop: where the table is too wide the column of the lowest number is left out first; None: it always stays.
    """

    head: str
    left: bool = False
    wraps: bool = False
    drop: int | None = None


def wrap(text: str, width: int | None, first: int = 0) -> list[str]:
    """``text`` in lines of at most ``width`` columns, broken between words; None: one line.

    A word that is longer is broken after a separator, as paths have them. What has none stays whole, and is too long.

    Args:
        text: without line breaks.
        width: columns.
        first: columns of the first line that are taken already.
    """
    if width is None:
        return [text]
    lines, room = [""], width - first
    for word in _WORDS.split(text):
        glue = " " if lines[-1] else ""
        for piece in [word] if _cells(word) <= width else _PIECES.findall(word):
            if _cells(lines[-1] + glue + piece) > room and (lines[-1] or room < width):
                lines.append("")
                room, glue = width, ""
            lines[-1] += glue + piece
            glue = ""
    return lines


def one_line(title: str, width: int | None) -> str:
    """``title`` in one line: of a path the last parts, of a sentence the first words."""
    if width is None or _cells(title) <= width:
        return title
    dots = "\u2026" if _unicode() else "..."
    if " " not in title:
        parts = title.split("/")
        while len(parts) > 1 and _cells("/".join([dots, *parts])) > width:
            del parts[0]
        return "/".join([dots, *parts]) if len(parts) > 1 else parts[0]
    words = title.split(" ")
    while len(words) > 1 and _cells(" ".join([*words, dots])) > width:
        del words[-1]
    return " ".join([*words, dots])


def say(text: str, indent: int = 2, stream: TextIO | None = None) -> None:
    """Print a sentence on standard output, or on ``stream``; further lines are indented."""
    stream = stream or sys.stdout
    width = width_of(stream)
    lines = wrap(text, None if width is None else width - indent, -indent)
    print(("\n" + " " * indent).join(lines), file=stream)


def print_title(title: str) -> None:
    """Print one line, bold where the terminal can."""
    line = one_line(title, width_of(sys.stdout))
    plain = not draws(sys.stdout) or "NO_COLOR" in os.environ
    print(line if plain else f"\x1b[1m{line}\x1b[0m")


def print_facts(title: str | None, rows: Iterable[tuple[str, str]]) -> None:
    """Print labels and what they say; a long text goes on below its beginning."""
    if title is not None:
        print_title(title)
    rows = list(rows)
    width = width_of(sys.stdout)
    indent = max((_cells(label) for label, _ in rows), default=0) + _GAP
    below = width is not None and width - indent < _LEAST_TEXT
    for label, text in rows:
        if below:
            if _cells(label) + _GAP + _cells(text) <= (width or 0):
                print(label + " " * _GAP + text)
                continue
            print(label)
            print("\n".join("  " + line for line in wrap(text, width and width - 2)))
            continue
        lines = wrap(text, width and width - indent)
        print((label + " " * (indent - _cells(label)) + ("\n" + " " * indent).join(lines)).rstrip())


def print_table(title: str | None, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, without what does not fit; see the module.

    Args:
        title: above it; None for none.
        columns: their headings and what may happen to them.
        rows: a text for each column.
    """
    if title is not None:
        print_title(title)
    width = width_of(sys.stdout)
    chosen = list(range(len(columns)))
    widths = _widths(columns, rows, chosen, width)
    dropped: list[int] = []
    while widths is None:
        if not (candidates := [n for n in chosen if columns[n].drop is not None]):
            break
        last = min(candidates, key=lambda n: columns[n].drop or 0)
        chosen.remove(last)
        dropped.append(last)
        widths = _widths(columns, rows, chosen, width)
    if widths is None:
        for number, row in enumerate(rows):
            if number:
                print()
            print_facts(None, [(columns[n].head, row[n]) for n in range(len(columns)) if row[n]])
        return
    _print_lines(columns, rows, chosen, widths)
    if dropped:
        say(f"no room for: {', '.join(columns[n].head for n in sorted(dropped))}")


def _widths(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], chosen: list[int], width: int | None
) -> list[int] | None:
    """The width of each chosen column; None where they do not fit."""
    texts = [[columns[n].head, *(row[n] for row in rows)] for n in chosen]
    widths = [max(map(_cells, column)) for column in texts]
    if width is None:
        return widths
    least = [
        max(_cells(word) for text in column for word in _WORDS.split(text)) if columns[n].wraps else size
        for n, column, size in zip(chosen, texts, widths, strict=True)
    ]
    room = width - _GAP * (len(chosen) - 1)
    while sum(widths) > room:
        spare = [size - small for size, small in zip(widths, least, strict=True)]
        if not any(spare):
            return None
        widest = max((size, n) for n, size in enumerate(widths) if spare[n])[1]
        widths[widest] -= 1
    return widths


def _print_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], chosen: list[int], widths: list[int]
) -> None:
    def line(cells: Sequence[str]) -> str:
        padded = []
        for n, cell, size in zip(chosen, cells, widths, strict=True):
            space = " " * (size - _cells(cell))
            padded.append(cell + space if columns[n].left else space + cell)
        return (" " * _GAP).join(padded).rstrip()

    def lines(texts: Sequence[str]) -> list[str]:
        wrapped = [wrap(texts[n], size) for n, size in zip(chosen, widths, strict=True)]
        height = max(map(len, wrapped))
        return [line([cell[n] if n < len(cell) else "" for cell in wrapped]) for n in range(height)]

    print("\n".join(lines([column.head for column in columns])))
    print(("\u2500" if _unicode() else "-") * (sum(widths) + _GAP * (len(widths) - 1)))
    for row in rows:
        print("\n".join(lines(row)))


def _cells(text: str) -> int:
    """Columns that a terminal shows ``text`` in."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
