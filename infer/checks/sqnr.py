"""How much of a signal two sets of logits share: the signal to noise ratio of what varies from image to image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def centred_sqnr(found: NDArray[Any], expected: NDArray[Any]) -> float | None:
    """SQNR in dB of logits ``[N, C]`` after each class's mean over the N images of ``expected`` is taken from both.

    The mean says nothing of an image and can hide everything: of a network whose answers hardly vary, a broken kernel
    leaves most of the plain ratio standing. Equal arrays give None, anything that is not finite minus infinity, as does
    noise where ``expected`` does not vary at all.

    Raises:
        ValueError: fewer than two images, or other shapes.
    """
    if found.shape != expected.shape or len(expected) < 2:
        raise ValueError(f"expected two equal shapes [N, C] with N >= 2, found {found.shape} and {expected.shape}")
    x, reference = found.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(reference).all()):
        return -math.inf
    noise = float(((x - reference) ** 2).sum())
    if noise == 0:
        return None
    signal = float(((reference - reference.mean(axis=0)) ** 2).sum())
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def agreement(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Images with the same top-1 in two arrays of logits ``[N, C]``, percent."""
    return 100 * float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
