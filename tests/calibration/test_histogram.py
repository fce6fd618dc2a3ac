"""Histograms against numpy's, and their independence of order and grouping."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibration.histogram import (
    BINS,
    MIN_EXPONENT,
    Histogram,
    coarsen,
    empty_histogram,
    magnitude_histogram,
    range_exponent,
)

magnitudes = arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(0, 2.0**40, width=32, allow_subnormal=False) | st.floats(0, 1, width=32, allow_subnormal=False),
)


def one_shot(values: np.ndarray) -> Histogram:
    """Independent of the code under test: numpy's histogram over the same range, in float64."""
    exponent = range_exponent(float(values.max()))
    counts, _ = np.histogram(values.astype(np.float64), BINS, (0, 2.0**exponent))
    return Histogram(counts, exponent)


def same(one: Histogram, other: Histogram) -> bool:
    return one.exponent == other.exponent and np.array_equal(one.counts, other.counts)


@given(magnitudes, st.data())
def test_equals_numpy_histogram_whatever_the_signs(values, data):
    signs = data.draw(arrays(np.float32, values.shape, elements=st.sampled_from([-1, 1])))
    signed = values * signs
    found = magnitude_histogram(signed, float(values.max()))
    assert same(found, one_shot(values))
    assert found.counts.dtype == np.int64
    assert np.array_equal(signed, values * signs)


@given(st.lists(magnitudes, min_size=1, max_size=6), st.randoms())
def test_joining_in_any_order_equals_one_look_at_all(parts, random):
    whole = one_shot(np.concatenate(parts))
    random.shuffle(parts)
    joined = empty_histogram()
    for part in parts:
        joined.join(magnitude_histogram(part, float(part.max())))
    assert same(joined, whole)


@given(st.lists(magnitudes, min_size=2, max_size=5))
def test_joining_is_associative(parts):
    def build(part):
        return magnitude_histogram(part, float(part.max()))

    left = empty_histogram()
    for part in parts:
        left.join(build(part))
    right = build(parts[-1])
    for part in parts[-2::-1]:
        next_one = build(part)
        next_one.join(right)
        right = next_one
    assert same(left, right)


def test_join_leaves_the_other_histogram_alone():
    small, large = (magnitude_histogram(np.full(3, v, np.float32), v) for v in (1.0, 8.0))
    before = small.counts.copy()
    large.join(small)
    large.counts += 1
    assert np.array_equal(small.counts, before)
    small.join(large)
    large.counts += 1
    assert small.counts.sum() == before.sum() + 6 + BINS


@given(st.floats(0, float(np.finfo(np.float32).max), width=32))
def test_range_holds_the_largest_value_in_its_upper_half(amax):
    exponent = range_exponent(amax)
    assert amax < 2.0**exponent
    assert exponent == MIN_EXPONENT or amax >= 2.0 ** (exponent - 1)


@pytest.mark.parametrize("amax", [float(np.finfo(np.float32).max), 2.0**-99, 1e-45, 0.0])
def test_extreme_ranges(amax):
    values = np.array([0, amax, amax / 2], np.float32)
    found = magnitude_histogram(values, float(values.max()))
    assert found.counts.sum() == 3
    if amax > 1e-30:
        assert found.counts[int(values[1] / found.width)] >= 1


@given(arrays(np.int64, BINS, elements=st.integers(0, 1000)), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=20)
def test_coarsen_adds_up(counts, first, second):
    once = coarsen(counts, first + second)
    assert np.array_equal(coarsen(coarsen(counts, first), second), once)
    assert once.sum() == counts.sum()


def test_coarsen_further_than_there_are_bins():
    counts = np.ones(BINS, np.int64)
    assert coarsen(counts, 500)[0] == BINS
    assert coarsen(counts, int(math.log2(BINS)))[0] == BINS


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 300_001])
def test_large_arrays_are_counted_in_blocks(size):
    random = np.random.default_rng(0)
    values = np.maximum(random.standard_normal(size).astype(np.float32), 0)
    assert same(magnitude_histogram(values, float(values.max())), one_shot(values))
