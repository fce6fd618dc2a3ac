"""What the names of ImageNet's own files say about their class.

The validation set's are called ``ILSVRC2012_val_00000001.JPEG``, on the Hugging Face hub with the class behind
(``..._n01751748``); those of the training set start with it: ``n01440764_10026.JPEG``.
"""

from __future__ import annotations

import re

from infer.datasets.imagenet import VALIDATION_IMAGES, imagenet1k, validation_targets
from infer.errors import InputError

_VALIDATION = re.compile(r"ILSVRC2012_val_([0-9]{8})(?:_n[0-9]{8})?")
_WNID = re.compile(r"(?:.*_)?(n[0-9]{8})|(n[0-9]{8})_.*", re.DOTALL)
_TRAINING = re.compile(r"(n[0-9]{8})_[0-9]+(?:_n[0-9]{8})?")


def validation_number(stem: str) -> int | None:
    """1 to 50000 for ``ILSVRC2012_val_00000001`` to ``..._00050000``; None for any other file name stem.

    Raises:
        InputError: the number is outside 1 to 50000.
    """
    if (match := _VALIDATION.fullmatch(stem)) is None:
        return None
    number = int(match[1])
    if not 1 <= number <= VALIDATION_IMAGES:
        raise InputError(
            f"{stem}: the validation set ends at {VALIDATION_IMAGES}; rename the file or give a ground-truth file"
        )
    return number


def named_wnid(stem: str) -> str | None:
    """The WordNet id that a file name stem ends or starts with, set off by ``_``; None without one."""
    match = _WNID.fullmatch(stem)
    return None if match is None else match[1] or match[2]


def official_wnid(stem: str) -> str | None:
    """The class that ImageNet gives the image of this file name stem; None for names that are not ImageNet's."""
    try:
        number = validation_number(stem)
    except InputError:
        return None
    if number is not None:
        return imagenet1k().wnids[validation_targets()[number - 1]]
    match = _TRAINING.fullmatch(stem)
    return None if match is None else match[1]
