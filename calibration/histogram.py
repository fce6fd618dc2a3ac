"""Histograms of magnitudes whose result does not depend on the order in which data arrive.

A histogram covers ``[0, 2**exponent)`` with :data:`BINS` bins of equal width. The width is a power of two, so
scaling a float32 to bin units is exact, and a wider range is reached by adding neighbouring bins:
``floor(floor(y) / 2) == floor(y / 2)``. Joining two histograms therefore gives, count for count, the histogram
that one look at all values would have given. The range of a histogram follows from the largest value alone, never
from which value came first.

Since the largest magnitude lies in the upper half of the range, at least ``BINS / 2`` bins lie below it.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 4096
# Below 2**MIN_EXPONENT everything is zero. Keeps BINS / 2**exponent inside float32.
MIN_EXPONENT = -100
_BITS = BINS.bit_length() - 1
# Shorter arrays are counted directly: looking up all bin edges in the sorted array would cost more. So are arrays
# with few zeros, where counting has no repeated bin to wait for.
_SORT_FROM = 24 * BINS
_SORT_ZEROS = 0.3
_SAMPLE_STEP = 61
_BLOCK = 1 << 17  # values; a temporary array of these stays in the cache


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


def magnitude_histogram(magnitudes: NDArray[np.float32], amax: float, *, kernel: str | None = None) -> Histogram:
    """The histogram of one array.

    Args:
        magnitudes: float32 of any shape, finite, all in ``[0, amax]``. **Overwritten**: it serves as scratch.
        amax: the largest of them.
        kernel: ``sort`` or ``count``, None for the faster one here. Both give the same counts.
    """
    exponent = range_exponent(amax)
    flat = magnitudes.reshape(-1)
    np.multiply(flat, np.float32(math.ldexp(1.0, _BITS - exponent)), out=flat)
    if kernel is None:
        kernel = "sort" if _sorting_pays(flat) else "count"
    counts = _count_sorted(flat) if kernel == "sort" else _count_directly(flat)
    return Histogram(counts, exponent)


def _count_directly(scaled: NDArray[np.float32]) -> NDArray[np.int64]:
    counts = np.zeros(BINS, np.int64)
    for start in range(0, scaled.size, _BLOCK):
        counts += np.bincount(scaled[start : start + _BLOCK].astype(np.intp), minlength=BINS)
    return counts


def _count_sorted(scaled: NDArray[np.float32]) -> NDArray[np.int64]:
    # bincount waits for its own last store whenever a bin repeats, and after a ReLU half of all values are the
    # same zero. With AVX-512 numpy sorts 16-bit integers fast enough to be done in half of bincount's time then.
    bins = scaled.astype(np.uint16)
    bins.sort()
    starts = np.searchsorted(bins, np.arange(BINS, dtype=np.uint16))
    return np.diff(starts, append=bins.size).astype(np.int64, copy=False)


def _sorting_pays(scaled: NDArray[np.float32]) -> bool:
    if scaled.size < _SORT_FROM or not _sorting_is_fast():
        return False
    sample = scaled[::_SAMPLE_STEP]
    return bool(np.count_nonzero(sample) < (1 - _SORT_ZEROS) * sample.size)


@functools.cache
def _sorting_is_fast() -> bool:
    """Ask this machine once; numpy's build and the CPU decide (0.5 or 13 times bincount). Never changes counts."""
    random, size = np.random.default_rng(0), 2 * _SORT_FROM
    probe = random.random(size, np.float32) * (random.random(size, np.float32) < 0.5) * np.float32(BINS)
    return _seconds(_count_sorted, probe) < _seconds(_count_directly, probe)


def _seconds(count: Callable[[NDArray[np.float32]], object], probe: NDArray[np.float32]) -> float:
    """Least of three times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        count(probe)
        times.append(time.perf_counter() - start)
    return min(times)
