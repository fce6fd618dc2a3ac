"""Pre-processing for tests."""

from __future__ import annotations

import msgspec

from infer.bundle.preprocessing import IMAGENET, Preprocessing


def sized(resize: int = 256, crop: int = 224, mean=None, std=None, interpolation: str = "bilinear") -> Preprocessing:
    """ImageNet's, at another size."""
    changes = {"mean": mean, "std": std}
    return msgspec.structs.replace(
        IMAGENET,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        **{name: value for name, value in changes.items() if value is not None},
    )
