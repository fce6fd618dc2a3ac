"""Files that say which class each image of a folder shows."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from infer.datasets.class_names import ClassNames
from infer.datasets.file_names import validation_number
from infer.datasets.imagenet import validation_targets
from infer.errors import InputError
from infer.images import EXTENSIONS
from infer.sources import Record
from infer.text_files import read_text, split_lines

_DEVKIT = (
    "The official ILSVRC2012_validation_ground_truth.txt counts from 1 in an order of its own and is understood only "
    "beside files called ILSVRC2012_val_*, and by enough lines to see that order"
)
_SPACE = " "  # any white space between two fields, of which the name may have some itself
_SPACES = "  "  # any white space between all fields
_SEPARATORS = ("\t", ",", ";", _SPACE, _SPACES)
_NAME_COLUMNS = 4  # the name is one of the first
_TRIED = 2000  # lines that are looked at to see what separates them
#: Headings of the column of classes, where there are more than two columns.
_HEADINGS = ("label", "class", "target", "wnid", "synset", "class_id", "class_index", "class_name", "label_id",
             "label_name", "category")  # fmt: skip
# A renumbering that so many lines confirm (each class again with the same number) is no accident.
_CONFIRMED = 10


def read_ground_truth(path: Path, records: Sequence[Record], classes: ClassNames) -> NDArray[np.int64]:
    """The class of every record, int64 ``[N]``.

    Two forms, told apart by what the lines look like; empty lines and lines starting with ``#`` are passed over:

    * One integer a line: the index of a class, from 0, in the order of the model. Line i belongs to
      ``ILSVRC2012_val_<i>`` where all images are called so, otherwise to the i-th image sorted by file name; the
      counts must then be equal. The official ILSVRC2012_validation_ground_truth.txt holds ids from 1 to 1000 in an
      order that is not that of any model; it, or its beginning, is recognised by its agreement with the labels shipped
      here and translated.
    * ``name label``, separated by comma, tab, semicolon or space, quoted or not (:mod:`csv`), or ``label name``: a path
      of which the last parts are the image's, or one without extension; the label an index from 0, a WordNet id or a
      class name. A first line that is a heading, and further columns (Kaggle's ``LOC_val_solution.csv``), are passed
      over.

    Raises:
        InputError: unreadable, unknown labels, labels for too few images, one image with two classes, or indices that
            count from 1.
    """
    lines = [(number, line) for number, line in enumerate(split_lines(read_text(path, "ground-truth file")), 1)]
    lines = [(number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise InputError(f"{path}: no labels in this file")
    values = [integer(line.strip()) for _, line in lines]
    if all(value is not None for value in values):
        return _by_order(path, [value for value in values if value is not None], records, classes)
    return _by_name(path, lines, records, classes)


def integer(text: str) -> int | None:
    """``8``, ``-1`` or ``8.0`` as an int; None for anything else."""
    digits = text.removeprefix("-")
    whole, point, rest = digits.partition(".")
    if point and rest.strip("0"):
        return None
    if not (whole.isascii() and whole.isdigit() and len(whole) < 10):
        return None
    return -int(whole) if text.startswith("-") else int(whole)


def _by_order(path: Path, values: list[int], records: Sequence[Record], classes: ClassNames) -> NDArray[np.int64]:
    labels = np.array(values, np.int64)
    stems = [PurePosixPath(record.member).stem for record in records]
    numbers = [validation_number(stem) for stem in stems]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or (len(labels) == len(records) and max(known) > len(labels)):
        if len(labels) != len(records):
            raise InputError(
                f"{path}: expected one label for each of {len(records)} images in the order of their names, found "
                f"{len(labels)}; or write lines of the form 'name label'"
            )
        _check_range(path, labels, classes)
        names = [PurePosixPath(record.member).name for record in records]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: images in different folders share a name; write lines of the form 'name label'")
        targets = np.empty(len(records), np.int64)
        targets[sorted(range(len(names)), key=names.__getitem__)] = labels
        return targets
    if len(labels) <= len(validation_targets()) and classes.is_imagenet1k:
        labels = _translate_devkit(path, labels)
    _check_range(path, labels, classes)
    places = np.array(known, np.int64) - 1
    if places.max() >= len(labels):
        raise InputError(
            f"{path}: {len(labels)} labels, but there is an image ILSVRC2012_val_{places.max() + 1:08d}; line i "
            "belongs to image number i"
        )
    chosen: NDArray[np.int64] = labels[places]
    return chosen


def _translate_devkit(path: Path, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of image 1, 2, ... in the order of the model, whichever way the file numbers the classes."""
    known = validation_targets()[: len(labels)]
    if np.mean(labels == known) > 0.5:  # corrected labels agree on most
        return labels
    pairs = np.unique(np.stack([labels, known], 1), axis=0)
    one_to_one = len(pairs) == len(np.unique(known)) == len(np.unique(labels))
    if one_to_one and len(labels) - len(pairs) >= _CONFIRMED:
        return known
    if one_to_one:  # too few lines to tell
        return labels
    raise InputError(
        f"{path}: these labels contradict the known ones of the ILSVRC2012 validation set, in whichever order the "
        f"classes are numbered: {np.mean(labels == known):.1%} agree. Are the lines in the order of the file names?"
    )


def _check_range(path: Path, labels: NDArray[np.int64], classes: ClassNames) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low >= 1 and high == len(classes):
        raise InputError(
            f"{path}: labels from {low} to {high}, which looks like counting from 1; expected indices from 0 to "
            f"{len(classes) - 1} in the order of the model. {_DEVKIT}"
        )
    if low < 0 or high >= len(classes):
        raise InputError(f"{path}: labels from {low} to {high}, expected indices from 0 to {len(classes) - 1}")


@dataclass
class _Names:
    """Names of images to what is known of them, by every part of a path from its end: ``val/a/b.png``, ``a/b.png``,
    ``b.png`` and ``b``."""

    found: dict[str, int | None] = field(default_factory=dict)

    def add(self, name: str, value: int) -> None:
        """Note it; what two names share and is not the same becomes None."""
        for key in _keys(name):
            self.found[key] = value if self.found.get(key, value) == value else None

    def find(self, name: str) -> int | None:
        """What fits most of ``name``."""
        return next((self.found[key] for key in _keys(name) if key in self.found), None)


def _keys(name: str) -> Iterable[str]:
    """The ends of a path, longest first, then those without an image's extension."""
    parts = name.split("/")
    ends = ["/".join(parts[at:]) for at in range(len(parts))]
    yield from ends
    _, dot, suffix = name.rpartition(".")
    if dot and f".{suffix.lower()}" in EXTENSIONS:
        yield from (end[: -len(suffix) - 1] for end in ends)


def _full(record: Record) -> str:
    return f"{record.source.absolute().name}/{record.member}"


def _normal(name: str) -> str:
    """A path with ``/`` between its parts, and none of ``./``; Windows writes backslashes."""
    return "/".join(part for part in name.strip().replace("\\", "/").split("/") if part not in ("", "."))


def _by_name(
    path: Path, lines: list[tuple[int, str]], records: Sequence[Record], classes: ClassNames
) -> NDArray[np.int64]:
    rows, name_at, label_at = _columns(lines, records)
    exact: dict[str, tuple[int, int]] = {}
    names = _Names()
    numeric: list[int] = []
    for place, (number, row) in enumerate(rows):
        target = _label(row, label_at, classes, numeric)
        if target is None:
            if place == 0:
                continue  # a heading
            found = row[label_at].strip() if len(row) > max(label_at, name_at) else ""
            raise InputError(f"{path}, line {number}: unknown class {found!r}, expected {classes.examples()}")
        name = _normal(row[name_at])
        first = exact.setdefault(name, (target, number))
        if first[0] != target:
            raise InputError(
                f"{path}: {name} has two classes, {first[0]} in line {first[1]} and {target} in line {number}"
            )
        names.add(name, target)
    if numeric:
        _check_range(path, np.array(numeric, np.int64), classes)
    targets = [names.find(_full(record)) for record in records]
    missing = [record.name for record, target in zip(records, targets, strict=True) if target is None]
    if missing:
        raise InputError(
            f"{path}: no label, or two, for {len(missing)} of {len(records)} images ({first_five(missing)})"
        )
    return np.array(targets, np.int64)


def _columns(lines: list[tuple[int, str]], records: Sequence[Record]) -> tuple[list[tuple[int, list[str]]], int, int]:
    """The fields of each line, and which of them are name and label: as most names of images come out."""
    known = _Names()
    for place, record in enumerate(records):
        known.add(_full(record), place)
    best, chosen = (-1, -1), (_SEPARATORS[0], 0)
    for separator in _SEPARATORS:
        for at in range(2 if separator == _SPACE else _NAME_COLUMNS):
            rows = [_fields(line, separator, at) for _, line in lines[:_TRIED]]
            rows = [row for row in rows if len(row) > max(at, 1)]
            hits = sum(any(key in known.found for key in _keys(_normal(row[at]))) for row in rows)
            if (hits, len(rows)) > best:
                best, chosen = (hits, len(rows)), (separator, at)
    separator, name_at = chosen
    fields = [(number, _fields(line, separator, name_at)) for number, line in lines]
    first = [field.strip().casefold() for field in fields[0][1]]
    headings = [first.index(word) for word in _HEADINGS if word in first and first.index(word) != name_at]
    if headings:
        return fields, name_at, headings[0]
    return fields, name_at, 0 if name_at and len(first) == name_at + 1 else name_at + 1


def _fields(line: str, separator: str, name_at: int) -> list[str]:
    if separator == _SPACES:
        return line.split()
    if separator == _SPACE:
        return line.split(None, 1) if name_at else line.rsplit(None, 1)
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])


def _label(row: list[str], at: int, classes: ClassNames, numeric: list[int]) -> int | None:
    """The class that a row names: by one field, or by all from there on, as a name with commas that nobody quoted."""
    if len(row) < 2 or len(row) <= at:
        return None
    text = row[at].strip()
    if (value := integer(text)) is not None:
        numeric.append(value)
        return value
    whole = classes.find(", ".join(field.strip() for field in row[at:]), "wnid", "name") if at else None
    found = whole if whole is not None else classes.find(text, "wnid", "name")
    return classes.find(text.split(maxsplit=1)[0], "wnid") if found is None and text else found


def first_five(names: Sequence[str]) -> str:
    """The first five of ``names``, for messages."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
