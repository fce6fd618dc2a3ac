"""Pairs of weights that int8 kernels add up in 16 bits.

On x86 without VNNI the kernels multiply unsigned by signed bytes with ``vpmaddubsw``, which adds two neighbouring
products into int16 and saturates (Intel Intrinsics Guide, ``_mm256_maddubs_epi16``). An activation reaches 255, so a
pair is safe when its positive weights add up to at most 128 and its negative ones to at least -128: 255 x 128 = 32640.
With such weights nothing saturates, whatever the images, and one graph serves every CPU.

Which weights are neighbours depends on the kernel. Both orders of oneDNN are held: channels (0, 1), (2, 3), ... of one
group at one position of the window (``jit_avx2``), and the window flattened as (row, column, channel) (``jit_gemm``;
for matrix products simply along the reduction). They differ only where a group has an odd number of channels. A layer
with one channel a group is computed without such sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What the weights of one sign in a pair may add up to.
LIMIT = 128

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


def pair_orders(channels: int, positions: int) -> list[Pairs]:
    """The pairs of one row of weights ``[channels, positions]`` flattened, for each order that differs.

    Args:
        channels: inputs of one group, or the length of a matrix product's reduction.
        positions: of the window; 1 for a matrix product.

    Returns:
        For each order the places of the first and of the second weights of its pairs; empty for one channel.
    """
    if channels == 1:
        return []
    place = np.arange(channels * positions, dtype=np.intp).reshape(channels, positions)
    even = place[: channels - channels % 2]
    orders = [(even[0::2].ravel(), even[1::2].ravel())]
    if channels % 2 and positions > 1:
        flat = place.T.ravel()
        flat = flat[: len(flat) - len(flat) % 2]
        orders.append((flat[0::2], flat[1::2]))
    return orders


def window(shape: tuple[int, ...], axis: int) -> tuple[int, int]:
    """``(channels, positions)`` of one row of weights of ``shape`` whose output channels lie along ``axis``."""
    rest = [size for at, size in enumerate(shape) if at != axis]
    return rest[0], int(np.prod(rest[1:], dtype=np.int64))


def clamp_pairs(rows: NDArray[Any], orders: list[Pairs]) -> NDArray[Any]:
    """Bring whole numbers ``[channels, K]`` of magnitude 127 at most into their pairs, in place.

    What is too much is taken from both halves alike, which is the nearest pair that fits. Magnitudes only shrink, so
    that a later order does not break an earlier one.
    """
    for first, second in orders:
        total = rows[:, first] + rows[:, second]
        row, pair = np.nonzero(np.abs(total) > LIMIT)
        if len(row):
            over = total[row, pair] - np.copysign(LIMIT, total[row, pair])
            half = np.trunc(over / 2)
            rows[row, first[pair]] -= half
            rows[row, second[pair]] -= over - half
    return rows
