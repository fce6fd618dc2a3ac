"""What a search for images passed over, counted by kind, so that nobody takes a part of his files for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

from infer.images.foreign import BY_EXTENSION
from infer.sources.kinds import PARQUET_SUFFIXES, TAR_SUFFIXES

_SHOWN = 8
_DOUBLE = (*TAR_SUFFIXES, *(ending for ending in BY_EXTENSION if ending.count(".") > 1))


class Skipped:
    """Counts of files that are no image by their names, in folders and tar files. Hidden ones do not count.

    Args:
        counts: to begin with, as :meth:`to_json` gives them.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self._counts: Counter[str] = Counter(counts or {})

    def add(self, name: str, *, inside: str = "folder") -> None:
        """Count a file; ``inside`` a folder or a tar file."""
        lower = PurePosixPath(name).name.lower()
        suffix = next((ending for ending in _DOUBLE if lower.endswith(ending)), "") or PurePosixPath(lower).suffix
        if suffix in TAR_SUFFIXES or suffix in PARQUET_SUFFIXES:
            self._counts["archive in a folder" if inside == "folder" else "archive in a tar file"] += 1
        else:
            self._counts[suffix] += 1

    @property
    def total(self) -> int:
        """How many."""
        return self._counts.total()

    def to_json(self) -> dict[str, int]:
        """Kind to count: an extension, empty without one, or ``archive in a folder``."""
        return dict(self._counts.most_common())

    def __str__(self) -> str:
        """For people: ``passed over: 12 HEIC (convert with ...), 3 without extension (...), 40 .xml``."""
        kinds: Counter[str] = Counter()
        for kind, count in self._counts.items():
            kinds[_named(kind)] += count
        # What a tool would read first: the rest lies beside many images.
        shown = sorted(kinds.items(), key=lambda item: ("(" not in item[0], -item[1], item[0]))
        more = f", {sum(count for _, count in shown[_SHOWN:])} of other kinds" if len(shown) > _SHOWN else ""
        return "passed over: " + ", ".join(f"{count} {kind}" for kind, count in shown[:_SHOWN]) + more


def _named(kind: str) -> str:
    if kind == "":
        return "without extension (rename them, or name them one by one)"
    if kind == "archive in a folder":
        return "tar or Parquet in folders (name them themselves)"
    if kind == "archive in a tar file":
        return "tar or Parquet inside tar files (unpack with tar -xf)"
    if kind in BY_EXTENSION:
        return "{} ({})".format(*BY_EXTENSION[kind])
    return kind
