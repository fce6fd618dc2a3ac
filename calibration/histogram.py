"""Histograms of magnitudes whose result does not depend on the order in which data arrive.

A histogram covers ``[0, 2**exponent)`` with :data:`BINS` bins of equal width. The width is a power of two, so
scaling a float32 to bin units is exact, and a wider range is reached by adding neighbouring bins:
``floor(floor(y) / 2) == floor(y / 2)``. Joining two histograms therefore gives, count for count, the histogram
that one look at all values would have given. The range of a histogram follows from the largest value alone, never
from which value came first.

Since the largest magnitude lies in the upper half of the range, at least ``BINS / 2`` bins lie below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 4096
# Below 2**MIN_EXPONENT everything is zero. Keeps BINS / 2**exponent inside float32.
MIN_EXPONENT = -100
_BITS = BINS.bit_length() - 1
_BLOCK = 1 << 16  # values; the temporary arrays of so many stay in the cache
# Behind a ReLU half of all values are zero, and a processor that adds to one counter again and again waits for its
# own last store each time. Even and odd positions are counted apart, so that two such chains run at once.
_LANES = np.tile(np.array([0, BINS], np.int32), _BLOCK // 2)


@dataclass
class Histogram:
    """Counts of magnitudes.

    Attributes:
        counts: int64 ``[BINS]``; bin ``i`` counts values in ``[i * width, (i + 1) * width)``.
        exponent: the range ends at ``2**exponent``.
    """

    counts: NDArray[np.int64]
    exponent: int

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self.exponent - _BITS)

    def join(self, other: Histogram) -> None:
        """Add the counts of ``other``; the wider of both ranges is kept. Commutative and associative."""
        if other.exponent > self.exponent:
            self.counts = coarsen(self.counts, other.exponent - self.exponent)
            self.exponent = other.exponent
            self.counts += other.counts
        else:
            self.counts += coarsen(other.counts, self.exponent - other.exponent)


def empty_histogram() -> Histogram:
    """The neutral element of :meth:`Histogram.join`."""
    return Histogram(np.zeros(BINS, np.int64), MIN_EXPONENT)


def range_exponent(amax: float) -> int:
    """The smallest ``k`` with ``amax < 2**k``, but not below :data:`MIN_EXPONENT`. ``amax`` finite, >= 0."""
    return max(math.frexp(amax)[1], MIN_EXPONENT) if amax else MIN_EXPONENT


def coarsen(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """``counts`` in bins ``2**doublings`` times as wide, int64 ``[BINS]`` (the argument itself for 0)."""
    if doublings == 0:
        return counts
    kept = BINS >> min(doublings, _BITS)
    wide = np.zeros(BINS, np.int64)
    wide[:kept] = counts.reshape(kept, -1).sum(axis=1)
    return wide


def magnitude_histogram(values: NDArray[np.float32], amax: float) -> Histogram:
    """The histogram of one array.

    Args:
        values: float32 of any shape, C-contiguous for speed, finite.
        amax: their largest magnitude.
    """
    exponent = range_exponent(amax)
    scale = np.float32(math.ldexp(1.0, _BITS - exponent))
    flat = values.reshape(-1)
    lanes = np.zeros(2 * BINS, np.int64)
    for start in range(0, flat.size, _BLOCK):
        bins = (flat[start : start + _BLOCK] * scale).astype(np.int32)
        np.abs(bins, out=bins)  # the cast rounds towards zero
        bins += _LANES[: bins.size]
        # A quarter faster than bincount, which looks for the extremes first.
        np.add.at(lanes, bins.astype(np.intp), np.int64(1))
    return Histogram(lanes[:BINS] + lanes[BINS:], exponent)
