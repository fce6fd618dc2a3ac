"""Weights to int8, one scale a channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.errors import InputError

METHODS = ("max", "mse")
LEVELS = 127
# Shares of a channel's largest weight that are tried as its clipping point.
_SHARES = np.linspace(1.0, 0.5, 51)


def quantise_weights(
    weight: NDArray[np.float32], axis: int = 0, method: str = "mse"
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights to ``int8 * scale``, symmetric, one scale a slice along ``axis``.

    Args:
        weight: float32, any shape.
        axis: of the output channels.
        method: ``max``, the scale that reaches the largest weight; or ``mse``, of 51 scales between that and half of
            it the one with the least squared error.

    Returns:
        Integers in -127..127 of the shape of ``weight``, and scales float32 ``[channels]`` that are exact in float16.
    """
    if method not in METHODS:
        raise InputError(f"unknown weight scale method {method!r}; known: {', '.join(METHODS)}")
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1)
    best = _half(largest / LEVELS)
    if method == "mse":
        least = np.full(len(rows), np.inf)
        for share in _SHARES:
            scale = _half(share * largest / LEVELS)
            error = ((_round(rows, scale) * scale[:, None] - rows) ** 2).sum(axis=1)
            better = error < least
            best[better], least[better] = scale[better], error[better]
    integers = _round(rows, best).astype(np.int8)
    shape = (weight.shape[axis], *np.delete(weight.shape, axis))
    return np.ascontiguousarray(np.moveaxis(integers.reshape(shape), 0, axis)), best.astype(np.float32)


def _round(rows: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(np.rint(rows / scale[:, None]), -LEVELS, LEVELS)


def _half(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return half_scale(scale).astype(np.float64)


def half_scale(scale: NDArray[Any] | np.floating[Any]) -> NDArray[np.float32]:
    """``scale`` rounded to the nearest positive float16 value, as float32."""
    tiny = np.finfo(np.float16).smallest_subnormal
    return np.maximum(np.asarray(scale).astype(np.float16), tiny).astype(np.float32)
