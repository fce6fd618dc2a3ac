"""Files that say which class each image of a folder shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from infer.datasets.class_names import ClassNames
from infer.datasets.imagenet import validation_number, validation_targets
from infer.errors import InputError
from infer.sources import Record

_MAX_BYTES = 256 << 20
_DEVKIT = (
    "The official ILSVRC2012_validation_ground_truth.txt counts from 1 in an order of its own and is understood only "
    "as a whole, 50,000 lines beside files called ILSVRC2012_val_*"
)


def read_ground_truth(path: Path, records: Sequence[Record], classes: ClassNames) -> NDArray[np.int64]:
    """The class of every record, int64 ``[N]``.

    Two forms, told apart by what the lines look like; empty lines and lines starting with ``#`` are passed over:

    * One integer a line: the index of a class, from 0, in the order of the model. Line i belongs to
      ``ILSVRC2012_val_<i>`` where all images are called so, otherwise to the i-th image sorted by file name; the
      counts must then be equal. The official ILSVRC2012_validation_ground_truth.txt holds ids from 1 to 1000 in an
      order that is not that of any model; it is recognised by its agreement with the labels shipped here and
      translated.
    * ``name label``, separated by comma, tab or space: a path as in the folder or tar file, a file name, or one without
      extension; the label an index from 0, a WordNet id or, after a comma or tab, a class name. A first line that is a
      heading, and text behind the id (Kaggle's ``LOC_val_solution.csv``), are passed over.

    Raises:
        InputError: unreadable, unknown labels, labels for too few images, or indices that count from 1.
    """
    lines = _read_lines(path)
    if all(len(fields := line.split()) == 1 and _integer(fields[0]) is not None for _, line in lines):
        return _by_order(path, [int(line) for _, line in lines], records, classes)
    return _by_name(path, lines, records, classes)


def _read_lines(path: Path) -> list[tuple[int, str]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: too large for a ground-truth file, {path.stat().st_size} bytes")
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: ground-truth file cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a UTF-8 text file of labels, found other bytes") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: no labels in this file")
    return lines


def _integer(text: str) -> int | None:
    digits = text[1:] if text[:1] == "-" else text
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def _by_order(path: Path, values: list[int], records: Sequence[Record], classes: ClassNames) -> NDArray[np.int64]:
    labels = np.array(values, np.int64)
    stems = [PurePosixPath(record.member).stem for record in records]
    numbers = [validation_number(stem) for stem in stems]
    if any(number is None for number in numbers):
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
    if len(labels) == len(validation_targets()) and classes.is_imagenet1k:
        labels = _translate_devkit(path, labels)
    _check_range(path, labels, classes)
    places = np.array(numbers, np.int64) - 1
    if places.max() >= len(labels):
        raise InputError(
            f"{path}: {len(labels)} labels, but there is an image ILSVRC2012_val_{places.max() + 1:08d}; line i "
            "belongs to image number i"
        )
    chosen: NDArray[np.int64] = labels[places]
    return chosen


def _translate_devkit(path: Path, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels in the order of the model, whichever way the file numbers the classes."""
    known = validation_targets()
    if np.mean(labels == known) > 0.5:  # corrected labels agree on most
        return labels
    pairs = np.unique(np.stack([labels, known], 1), axis=0)
    if len(pairs) == len(np.unique(known)) == len(np.unique(labels)):  # a renumbering, one to one
        return known
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


def _by_name(
    path: Path, lines: list[tuple[int, str]], records: Sequence[Record], classes: ClassNames
) -> NDArray[np.int64]:
    exact: dict[str, int] = {}
    loose: dict[str, int | None] = {}  # by file name without extension; None: two lines disagree
    numeric: list[int] = []
    for number, line in lines:
        name, label = _split(line)
        target = _integer(label)
        if target is not None:
            numeric.append(target)
        else:
            target = _named(label, classes)
        if target is None:
            if not exact and number == lines[0][0]:
                continue  # a heading
            raise InputError(f"{path}, line {number}: unknown class {label!r}, expected {classes.examples()}")
        stem = PurePosixPath(name).stem
        exact[name] = target
        loose[stem] = target if loose.get(stem, target) == target else None
    if numeric:
        _check_range(path, np.array(numeric, np.int64), classes)
    targets: list[int] = []
    missing: list[str] = []
    for record in records:
        member = PurePosixPath(record.member)
        found = exact.get(record.member, exact.get(member.name, loose.get(member.stem)))
        targets.append(-1 if found is None else found)
        if found is None:
            missing.append(record.name)
    if missing:
        raise InputError(
            f"{path}: no label, or two, for {len(missing)} of {len(records)} images ({first_five(missing)})"
        )
    return np.array(targets, np.int64)


def first_five(names: Sequence[str]) -> str:
    """The first five of ``names``, for messages."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _split(line: str) -> tuple[str, str]:
    for separator in (",", "\t"):
        if separator in line:
            name, label = line.split(separator, 1)
            return name.strip(), label.strip()
    fields = line.rsplit(None, 1)
    return (fields[0], fields[1]) if len(fields) == 2 else (line, "")


def _named(label: str, classes: ClassNames) -> int | None:
    whole = classes.find(label, "wnid", "name")
    return classes.find(label.split(maxsplit=1)[0], "wnid") if whole is None and label else whole
