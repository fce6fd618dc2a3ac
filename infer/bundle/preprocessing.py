"""What happens to a picture before the network: part of the model, stored in the manifest.

:mod:`infer.images.resize` does it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from infer.errors import BundleError

INTERPOLATIONS = ("bilinear", "bicubic")
_MAX_SIDE = 16384


@dataclass(frozen=True)
class Preprocessing:
    """What happens between a decoded RGB image and the network. Part of the model, stored in the manifest.

    Attributes:
        resize: pixels of the short side after resizing; the long side keeps the aspect ratio, rounded down.
        crop: side of the centre square that the network sees, pixels.
        mean, std: per channel R, G, B, for values scaled to 0..1; applied in the graph.
        interpolation: ``bilinear`` or ``bicubic``, antialiased. Bilinear is within one grey level of torchvision on
            every image; bicubic has negative weights, so single pixels of unusual images may differ by two.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, for the manifest."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: object) -> Preprocessing:
        """The inverse of :meth:`to_json`. Every field must be there: a guessed default would cost accuracy silently.

        Raises:
            BundleError: a field is missing, unknown or out of range; the message names it.
        """
        if not isinstance(value, dict):
            raise BundleError(f"preprocessing: expected an object with fields, found {type(value).__name__}")
        names = [field.name for field in fields(cls)]
        for key in names:
            if key not in value:
                raise BundleError(f"preprocessing.{key}: missing; write the bundle again with this version")
        for key in value:
            if key not in names:
                raise BundleError(f"preprocessing.{key}: unknown field, expected only {', '.join(names)}")
        return cls(
            resize=_side("resize", value["resize"]),
            crop=_side("crop", value["crop"]),
            mean=_triple("mean", value["mean"]),
            std=_triple("std", value["std"], positive=True),
            interpolation=_interpolation(value["interpolation"]),
        )


IMAGENET = Preprocessing()


def _side(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIDE:
        raise BundleError(f"preprocessing.{name}: expected a whole number from 1 to {_MAX_SIDE}, found {value!r}")
    return value


def _triple(name: str, value: object, positive: bool = False) -> tuple[float, float, float]:
    kind = "positive numbers" if positive else "numbers"
    wrong = BundleError(f"preprocessing.{name}: expected three finite {kind} (R, G, B), found {value!r}")
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise wrong
    for item in value:
        if not isinstance(item, int | float) or isinstance(item, bool) or not math.isfinite(item):
            raise wrong
        if positive and item <= 0:
            raise wrong
    return float(value[0]), float(value[1]), float(value[2])


def _interpolation(value: object) -> str:
    if not isinstance(value, str) or value not in INTERPOLATIONS:
        raise BundleError(f"preprocessing.interpolation: expected one of {', '.join(INTERPOLATIONS)}, found {value!r}")
    return value
