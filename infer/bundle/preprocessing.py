"""What happens to a picture before the network: part of the model, stored in the manifest.

:mod:`infer.images.resize` does it.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import msgspec

from infer.choices import Interpolation

Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]
# Bounds that infinity and NaN do not meet.
Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens between a decoded RGB image and the network.

    Every field must be there: a guessed default would cost accuracy silently.

    Attributes:
        resize: pixels of the short side after resizing; the long side keeps the aspect ratio, rounded down.
        crop: side of the centre square that the network sees, pixels.
        mean, std: per channel R, G, B, for values scaled to 0..1; applied in the graph.
        interpolation: ``bilinear`` or ``bicubic``, antialiased. Bilinear is within one grey level of torchvision on
            every image; bicubic has negative weights, so single pixels of unusual images may differ by two.
    """

    resize: Side
    crop: Side
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    interpolation: Interpolation

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields


IMAGENET = Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
