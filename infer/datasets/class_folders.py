"""Classes by the folders that images lie in.

Folders are called by WordNet id, by class name or by index, all of them the same way, at one depth. Numbers are the
weakest evidence, since folds and severities are numbers too: they count only where nothing else fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.datasets.class_names import ClassNames, Scheme
from infer.datasets.ground_truth import first_five
from infer.errors import InputError
from infer.sources import TAR_SUFFIXES, Record

_MAX_DEPTH = 8
_WNID = re.compile(r"n[0-9]{8}")
#: What systems and viewers leave beside people's folders, compared without regard to case.
_NOT_CLASSES = frozenset(
    ("@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information", "thumbs", "thumbnails", "_thumbs")
)


@dataclass(frozen=True)
class Found:
    """Classes of some of N records.

    Attributes:
        rows: int64 ``[M]``, the records with a class.
        targets: int64 ``[M]``, their classes.
        layout: for people.
        left_out: the other records: beside the class folders, or in folders that are none.
    """

    rows: NDArray[np.int64]
    targets: NDArray[np.int64]
    layout: str
    left_out: list[Record]


@dataclass(frozen=True)
class _Depth:
    """One way to read the folders: those at one depth, by one scheme."""

    place: str
    names: tuple[str, ...]
    index: dict[str, int | None]
    scheme: Scheme

    @property
    def unknown(self) -> list[str]:
        return sorted(name for name, found in self.index.items() if found is None)

    @property
    def known(self) -> int:
        return len(self.index) - len(self.unknown)

    @property
    def targets(self) -> tuple[int | None, ...]:
        return tuple(self.index[name] for name in self.names)

    def __str__(self) -> str:
        return f"{self.place} by {self.scheme} ({first_five(sorted(set(self.names)))})"


def find_class_folders(records: Sequence[Record], classes: ClassNames) -> Found | None:
    """The class of each image; None when these do not look like class folders at all.

    Raises:
        InputError: some folders are not classes of the model, or two depths fit and say something else.
    """
    folders = [folders_of(record) for record in records]
    rows = [row for row, parts in enumerate(folders) if not _beside(parts, classes)]
    inner = _without_strays(rows, records, folders)
    for kept in [rows] if len(inner) == len(rows) else [rows, inner]:
        chosen = _choose([folders[row] for row in kept], classes, strict=kept is inner or len(inner) == len(rows))
        if chosen is not None:
            left_out = sorted(set(range(len(records))) - set(kept))
            return Found(
                np.array(kept, np.int64),
                np.array(chosen.targets, np.int64),
                f"class folders by {chosen.scheme}",
                [records[row] for row in left_out],
            )
    return None


def folders_of(record: Record) -> tuple[str, ...]:
    """The folders around an image: what was named on the command line (a tar file without suffix), then those below."""
    name = record.source.absolute().name
    suffix = next((suffix for suffix in TAR_SUFFIXES if name.lower().endswith(suffix)), "")
    return (name[: len(name) - len(suffix)], *record.member.split("/")[:-1])


def _beside(parts: tuple[str, ...], classes: ClassNames) -> bool:
    return any(part.casefold() in _NOT_CLASSES and classes.find(part, "wnid", "name") is None for part in parts[1:])


def _without_strays(rows: list[int], records: Sequence[Record], folders: Sequence[tuple[str, ...]]) -> list[int]:
    """``rows`` without images that lie directly in a named folder whose other images lie in folders of it."""
    deep = {records[row].source for row in rows if len(folders[row]) > 1}
    inner = [row for row in rows if len(folders[row]) > 1 or records[row].source not in deep]
    return inner if 2 * len(inner) > len(rows) else rows


def _choose(folders: Sequence[tuple[str, ...]], classes: ClassNames, *, strict: bool) -> _Depth | None:
    """The depth and scheme that fit; None where none does, and with ``strict`` none looks as if it were meant to."""
    if not folders:
        return None
    named = {scheme: list(_depths(folders, classes, scheme)) for scheme in ("wnid", "name")}
    weak: list[_Depth] = list(_depths(folders, classes, "index"))
    for scheme in ("wnid", "name"):
        below, top = named[scheme][:-1], named[scheme][-1]
        if (found := _only(below)) is not None:
            return found
        if not top.unknown:
            # One folder that is called like a class and holds numbers may be the class, or the whole set.
            rivals = [d for d in weak[:-1] if not d.unknown and len(d.index) > 1]
            return _only([top, *rivals] if scheme == "name" and len(top.index) == 1 else [top])
    meant = [depth for depths in named.values() for depth in depths if _is_meant(depth)]
    if not meant:
        if (found := _only(weak[:-1])) is not None:
            return found
        if not weak[-1].unknown and len(weak[-1].index) > 1:  # a single folder may happen to be called 0
            return weak[-1]
    best = max(
        meant or [depth for depths in (*named.values(), weak) for depth in depths], key=lambda depth: depth.known
    )
    if not strict or (best.known == 0 and not meant) or (best is weak[-1] and len(best.index) == 1):
        return None
    raise InputError(
        f"{len(best.unknown)} of {len(best.index)} class folders are not classes of this model "
        f"({first_five(best.unknown)}); expected names like {classes.examples()}"
    )


def _depths(folders: Sequence[tuple[str, ...]], classes: ClassNames, scheme: Scheme) -> Iterator[_Depth]:
    """Every depth below the folder that was named, from the top and from the images, then that folder itself."""
    shortest = min(len(parts) for parts in folders)
    places = {f"folders {depth} below": depth for depth in range(1, min(_MAX_DEPTH, shortest))}
    if len({len(parts) for parts in folders}) > 1:  # else the same ones
        places |= {f"folders {up} above the images": -up for up in range(1, min(_MAX_DEPTH, shortest))}
    for place, at in {**places, "the folders that were named": 0}.items():
        names = tuple(parts[at] for parts in folders)
        yield _Depth(place, names, {name: classes.find(name, scheme) for name in sorted(set(names))}, scheme)


def _only(depths: Sequence[_Depth]) -> _Depth | None:
    """The one that fits, of several that agree the first.

    Raises:
        InputError: two fit and give some image another class.
    """
    fitting = [depth for depth in depths if not depth.unknown]
    for other in fitting[1:]:
        if other.targets != fitting[0].targets:
            raise InputError(
                f"the folders can be read in two ways: {fitting[0]}, and {other}. Name the folder right above the "
                "classes, or give a ground-truth file"
            )
    return fitting[0] if fitting else None


def _is_meant(depth: _Depth) -> bool:
    """Whether these are class folders of which the model lacks some: then numbers elsewhere are no classes."""
    if depth.scheme == "wnid" and all(_WNID.fullmatch(name) for name in depth.index):
        return True
    return 2 * depth.known >= len(depth.index) and depth.known > 0
