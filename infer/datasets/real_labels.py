"""Reassessed labels (ReaL) of the ILSVRC2012 validation set.

Beyer et al. 2020, Are we done with ImageNet? The file is ``real.json`` of github.com/google-research/
reassessed-imagenet: for each of the 50,000 images, in the order of their numbers, the list of the classes that it
shows. A top-1 is right when it is one of them; images with an empty list are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from numpy.typing import NDArray

from infer.bundle.accuracy_record import Figures
from infer.datasets.class_names import ClassNames
from infer.datasets.file_names import validation_number
from infer.datasets.imagenet import VALIDATION_IMAGES
from infer.errors import InputError
from infer.sources import Record

_MAX_BYTES = 64 << 20


class RealLabels:
    """The classes each image shows, in the order of the model.

    Args:
        lists: of image 1, 2, ...; indices into the model's classes.
    """

    def __init__(self, lists: Sequence[frozenset[int]]) -> None:
        self._lists = lists
        self.images = self.hits = self.reference_hits = 0
        self._compared = False

    def add(self, records: Sequence[Record], predicted: NDArray[np.int32], reference: NDArray[np.int32] | None) -> None:
        """Count N images by their names; ``predicted`` and ``reference`` are the top-1 of the bundle and of FP32.

        Raises:
            InputError: an image is not called ``ILSVRC2012_val_<number>``.
        """
        self._compared = reference is not None
        others = predicted if reference is None else reference
        for record, found, expected in zip(records, predicted.tolist(), others.tolist(), strict=True):
            shown = self._lists[_number(record) - 1]
            self.images += bool(shown)
            self.hits += found in shown
            self.reference_hits += expected in shown

    def restore(self, images: int, hits: int, reference_hits: int, *, compared: bool) -> None:
        """Add what was counted elsewhere."""
        self.images, self.hits = self.images + images, self.hits + hits
        self.reference_hits += reference_hits
        self._compared |= compared

    def fill(self, figures: Figures) -> None:
        """Put ``real_images``, ``real_top1`` and ``reference_real_top1`` into ``figures``, where an image counts."""
        if not self.images:
            return
        figures.real_images, figures.real_top1 = self.images, _percent(self.hits, self.images)
        if self._compared:
            figures.reference_real_top1 = _percent(self.reference_hits, self.images)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole


def _number(record: Record) -> int:
    number = validation_number(PurePosixPath(record.member).stem)
    if number is None:
        raise InputError(
            f"{record.name}: real labels go by the number in the name, expected ILSVRC2012_val_<8 digits>; leave out "
            "--real for other images"
        )
    return number


def read_real_labels(path: Path, records: Sequence[Record], classes: ClassNames) -> RealLabels:
    """Read ``real.json`` for a data set.

    Args:
        path: the file.
        records: the images, which must be named as in the validation set.
        classes: of the model.

    Raises:
        InputError: unreadable, not 50,000 lists of indices from 0 to 999, a model of other classes, or images that
            are not of the validation set.
    """
    for record in records:
        _number(record)
    index = classes.imagenet_indices()
    if index is None:
        raise InputError(f"{path}: real labels are of ImageNet-1k, but the model's {len(classes)} classes are not")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: too large for real.json, {path.stat().st_size} bytes")
        lists = msgspec.json.decode(path.read_bytes(), type=list[list[int]])
    except OSError as error:
        raise InputError(f"{path}: real labels cannot be read ({error.strerror})") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a JSON list of lists of class indices, as real.json is ({error})") from None
    if len(lists) != VALIDATION_IMAGES:
        raise InputError(f"{path}: expected the labels of {VALIDATION_IMAGES} images, found {len(lists)}")
    for number, shown in enumerate(lists, 1):
        if any(not 0 <= label < len(index) for label in shown):
            raise InputError(f"{path}: image {number} has {shown}, expected indices from 0 to {len(index) - 1}")
    return RealLabels([frozenset(index[label] for label in shown) for shown in lists])
