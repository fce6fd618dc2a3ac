"""Weights to int8, one scale a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.int8 import SYMMETRIC_STEPS
from engine_build.precision.float16 import FLOAT16_LEAST, FLOAT16_MAX
from engine_build.quantise.pairs import LIMIT, Pairs, clamp_pairs, pair_orders, window
from infer.errors import InputError

METHODS = ("max", "mse")
# Multiples of the scale that reaches a channel's largest weight. Above 1 only pairs have to gain.
_MOST = 2 * SYMMETRIC_STEPS / LIMIT  # two neighbours of the largest size fit
_COARSE = np.arange(0.5, 2.0, 0.1, dtype=np.float32)
_UNPAIRED = 6  # of them reach 1
_FINE = np.array([-6, -4, -2, 2, 4, 6], np.float32) / 100
_CHUNK = 1 << 16  # weights that are tried at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class RoundedWeights:
    """A layer's weights as integers, symmetric, one scale an output channel.

    Attributes:
        integers: int8, of the shape of the weights.
        scale: float32 ``[output channels]``.
        bias: float64 ``[output channels]``, what to add to the bias so that the mean of the layer's result stays.
    """

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float64]


def quantise_weights(
    weight: NDArray[np.float32], axis: int = 0, method: str = "mse", *, pair_safe: bool = True
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights to ``int8 * scale``, symmetric, one scale a slice along ``axis``.

    Args:
        weight: float32, any shape.
        axis: of the output channels.
        method: ``max``, the scale at which nothing is clipped; or ``mse``, of the scales from half of that the one
            with the least squared error.
        pair_safe: no two neighbouring weights may overflow int16, see :mod:`engine_build.quantise.pairs`.

    Returns:
        Integers in -127..127 of the shape of ``weight``, and scales float32 ``[channels]``, see :func:`half_scale`.
    """
    rows = weight_rows(weight, axis)
    orders = pair_orders(*window(weight.shape, axis)) if pair_safe else []
    scale = weight_scale(rows, orders, method)
    return from_rows(round_rows(rows, scale, orders), weight.shape, axis), scale


def weight_rows(weight: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Weights as float32 ``[output channels, K]``, contiguous."""
    return np.ascontiguousarray(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1), np.float32)


def from_rows(rows: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[np.int8]:
    """The inverse of :func:`weight_rows` for the integers."""
    moved = (shape[axis], *(size for at, size in enumerate(shape) if at != axis))
    return np.ascontiguousarray(np.moveaxis(rows.astype(np.int8).reshape(moved), 0, axis))


def weight_scale(rows: NDArray[np.float32], orders: list[Pairs], method: str = "mse") -> NDArray[np.float32]:
    """The scale of each row of ``[channels, K]``, float32; see :func:`quantise_weights`.

    Raises:
        InputError: unknown method.
    """
    if method not in METHODS:
        raise InputError(f"unknown weight scale method {method!r}; known: {', '.join(METHODS)}")
    if method == "max":
        return _unclipped(rows, orders)
    step = max(1, _CHUNK // rows.shape[1])
    return np.concatenate([_least_squares(rows[at : at + step], orders) for at in range(0, len(rows), step)])


def round_rows(rows: NDArray[np.float32], scale: NDArray[np.float32], orders: list[Pairs]) -> NDArray[np.float32]:
    """``rows / scale`` as whole numbers in -127..127 that hold the pairs."""
    return clamp_pairs(np.clip(np.rint(rows * (1 / scale)[:, None]), -SYMMETRIC_STEPS, SYMMETRIC_STEPS), orders)


def _unclipped(rows: NDArray[np.float32], orders: list[Pairs]) -> NDArray[np.float32]:
    return half_scale(np.maximum(np.abs(rows).max(axis=1) / SYMMETRIC_STEPS, _largest_pair(rows, orders) / LIMIT))


def _largest_pair(rows: NDArray[np.float32], orders: list[Pairs]) -> NDArray[np.float32]:
    """The largest magnitude to which two neighbours of one sign add up, of each row."""
    largest = np.zeros(len(rows), np.float32)
    for first, second in orders:
        a, b = rows[:, first], rows[:, second]
        np.maximum(largest, np.where(a * b > 0, np.abs(a + b), 0).max(axis=1), out=largest)
    return largest


def _least_squares(rows: NDArray[np.float32], orders: list[Pairs]) -> NDArray[np.float32]:
    unit = np.abs(rows).max(axis=1) / SYMMETRIC_STEPS
    best, least = half_scale(unit), np.full(len(rows), np.inf, np.float32)

    def attempt(wanted: NDArray[np.float32]) -> None:
        scale = half_scale(wanted)
        error = round_rows(rows, scale, orders)
        error *= scale[:, None]
        error -= rows
        found = np.einsum("ij,ij->i", error, error)
        better = found < least
        best[better], least[better] = scale[better], found[better]

    attempt(_unclipped(rows, orders))
    for factor in _COARSE if orders else _COARSE[:_UNPAIRED]:
        attempt(factor * unit)
    centre, most = best, _MOST * unit if orders else unit
    for step in _FINE:
        attempt(np.minimum(centre + step * unit, most))
    return best


def half_scale(scale: NDArray[Any] | np.floating[Any]) -> NDArray[np.float32]:
    """``scale`` rounded to the nearest float16 where that is a normal number, else as it is; float32, its shape.

    What float16 cannot hold without loss stays float32 in the finished graph too
    (:mod:`engine_build.precision.float16`). A scale of 0 belongs to nothing but zeros, for which every scale
    does: it becomes the smallest normal float16.
    """
    exact = np.asarray(scale).astype(np.float32)
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16).astype(np.float32)
    normal = (half >= FLOAT16_LEAST) & (half <= FLOAT16_MAX)
    return np.where(exact > 0, np.where(normal, half, exact), np.float32(FLOAT16_LEAST)).astype(np.float32)
