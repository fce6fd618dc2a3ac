"""WebDataset tar files: images, and beside each sample its class, in ``key.cls`` or ``key.json``.

The key is the name up to the first dot of the file name. ``key.cls`` holds an index, a WordNet id or a class name, and
``key.json`` an object with one of :data:`FIELDS`. Of a sample with several images, ``key.jpg`` counts, and
``key.seg.png`` does not; where there is no such one, all do: they are views.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from infer.datasets.class_names import ClassNames
from infer.datasets.ground_truth import first_five
from infer.errors import InputError
from infer.sources import Record
from infer.text_files import decode_text

#: Extensions of what lies beside the images.
SUFFIXES = (".cls", ".json")
#: Names of the class in a JSON object, the first that is there counts.
FIELDS = ("label", "cls", "class", "class_id", "class_index", "target", "wnid", "synset", "class_name", "label_name",
          "category")  # fmt: skip
_NO_VIEWS = frozenset(("seg", "mask", "depth", "alpha", "edge", "normal"))


@dataclass
class Samples:
    """The classes of the samples of some tar files, by the tar file and the key."""

    found: dict[tuple[Path, str], str] = field(default_factory=dict)
    _json: dict[tuple[Path, str], str] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Take a member that is no image.

        Raises:
            InputError: the same key has another class already, or the text cannot be read.
            ImageError: the tar file cannot be read there.
        """
        stem, _, suffix = record.member.rpartition(".")
        label: str | None
        if suffix.lower() == "json":
            label, table = _json_label(record.load()), self._json
        else:
            label, table = decode_text(record.load(), record.name).strip(), self.found
        if label is None:
            return
        key = record.source, stem
        if table.setdefault(key, label) != label:
            raise InputError(
                f"{record.name}: {stem} has two classes in this tar file, {table[key]!r} and {label!r}; every key may "
                "be there once"
            )

    def merged(self) -> dict[tuple[Path, str], str]:
        """Key to the text of its class; a ``.cls`` goes before a ``.json``."""
        return self._json | self.found

    def decide(self, records: Sequence[Record], classes: ClassNames) -> bool:
        """Whether these are the classes of ``records``: there is a ``.cls``, or a JSON object of every image names one.

        JSON objects of other purposes lie beside images in class folders too.
        """
        if self.found:
            return True
        labels = [self._json.get((r.source, _stem(r)), self._json.get((r.source, _sample(r)))) for r in records]
        return all(label is not None and classes.find(label, "index", "wnid", "name") is not None for label in labels)


def classes_of_samples(
    records: Sequence[Record], samples: Samples, classes: ClassNames
) -> tuple[list[Record], NDArray[np.int64], str]:
    """The images that have a class, and their classes.

    Raises:
        InputError: images without a class, or an unknown one.
    """
    labels = samples.merged()
    plain = {(record.source, _stem(record)) for record in records if (record.source, _stem(record)) in labels}
    kept: list[Record] = []
    targets: list[int] = []
    bare: list[str] = []
    for record in records:
        key, sample = (record.source, _stem(record)), (record.source, _sample(record))
        if key not in labels and sample in labels:
            view = _stem(record)[len(sample[1]) + 1 :].lower().split(".")
            if sample in plain or not _NO_VIEWS.isdisjoint(view):
                continue  # further images of a sample
            key = sample
        if key not in labels:
            bare.append(record.name)
            continue
        target = classes.find(labels[key], "index", "wnid", "name")
        if target is None:
            raise InputError(
                f"{record.name}: unknown class {labels[key]!r} in its .cls or .json, expected {classes.examples()}"
            )
        kept.append(record)
        targets.append(target)
    if bare or not kept:
        raise InputError(
            f"{len(bare)} of {len(records)} images have no .cls or .json with a class beside them in the tar file "
            f"({first_five(bare)})"
        )
    return kept, np.array(targets, np.int64), "WebDataset"


def _stem(record: Record) -> str:
    return record.member.rpartition(".")[0]


def _sample(record: Record) -> str:
    folder, slash, file = record.member.rpartition("/")
    return f"{folder}{slash}{file.split('.')[0]}"


def _json_label(data: bytes) -> str | None:
    try:
        value: Any = msgspec.json.decode(data.removeprefix(codecs.BOM_UTF8))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if isinstance(value, dict):
        value = next((value[name] for name in FIELDS if name in value), None)
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, (int, str)) else None
