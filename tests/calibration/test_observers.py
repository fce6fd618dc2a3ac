"""Observers: any order, any grouping, same result; bad values are named."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibration.observers import InputObserver, TensorObserver
from infer.errors import GraphError

values = arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32))
images = arrays(np.uint8, st.just((4, 5, 3)), elements=st.integers(0, 255))


def state(observer):
    histogram = observer.histogram
    # The sign of a zero counts: the result has to be the same bit for bit.
    return (
        *((value, math.copysign(1, value)) for value in (observer.minimum, observer.maximum)),
        observer.elements,
        histogram and (histogram.exponent, histogram.counts.tobytes()),
    )


@given(st.lists(values, min_size=1, max_size=6), st.randoms(), st.integers(1, 3))
def test_order_and_grouping_do_not_matter(parts, random, groups):
    straight = TensorObserver()
    for part in parts:
        straight.observe("t", part)
    random.shuffle(parts)
    observers = [TensorObserver() for _ in range(groups)]
    for number, part in enumerate(parts):
        observers[number % groups].observe("t", part)
    merged = observers[-1]
    for other in observers[:-1]:
        merged.merge(other)
    assert state(merged) == state(straight)


@pytest.mark.parametrize("order", [(0.0, -0.0), (-0.0, 0.0)])
def test_zeros_of_both_signs(order):
    observer = TensorObserver()
    for value in order:
        observer.observe("t", np.full(3, value, np.float32))
    assert (math.copysign(1, observer.minimum), math.copysign(1, observer.maximum)) == (1, 1)


@given(values)
def test_range_is_exact(array):
    observer = TensorObserver()
    observer.observe("t", array)
    assert (observer.minimum, observer.maximum) == (array.min(), array.max())
    assert observer.amax == np.abs(array).max()
    assert observer.elements == observer.histogram.counts.sum() == array.size


@given(values)
def test_input_is_left_alone(array):
    before = array.copy()
    TensorObserver().observe("t", array)
    assert array.tobytes() == before.tobytes()


def test_layout_in_memory_does_not_matter():
    array = np.random.default_rng(0).standard_normal((3, 40, 41)).astype(np.float32)
    one, other = TensorObserver(), TensorObserver()
    one.observe("t", array)
    other.observe("t", array.transpose(2, 0, 1))
    assert state(one) == state(other)


def test_float16_counts_as_its_float32_value():
    array = np.random.default_rng(0).standard_normal(500).astype(np.float16)
    half, single = TensorObserver(), TensorObserver()
    half.observe("t", array)
    single.observe("t", array.astype(np.float32))
    assert state(half) == state(single)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_name_the_tensor(bad):
    array = np.ones((2, 3), np.float32)
    array[1, 2] = bad
    for histogram in (TensorObserver().histogram, None):
        observer = TensorObserver(histogram=histogram)
        with pytest.raises(GraphError, match=r"'layer1/conv:0'.*1 of 6 values are NaN or infinite"):
            observer.observe("layer1/conv:0", array)
        assert observer.elements == 0


@pytest.mark.parametrize("array", [np.zeros(3, np.int64), np.zeros(3, np.float64), np.zeros((0, 4), np.float32)])
def test_unusable_arrays(array):
    with pytest.raises(GraphError, match="'t'"):
        TensorObserver().observe("t", array)


@given(st.lists(images, min_size=1, max_size=6), st.randoms())
def test_images_in_any_order(batch, random):
    straight, one, other = InputObserver(), InputObserver(), InputObserver()
    for image in batch:
        straight.observe(image)
    random.shuffle(batch)
    for number, image in enumerate(batch):
        (one, other)[number % 2].observe(image)
    one.merge(other)
    assert one.data_hash() == straight.data_hash()
    one.digests.sort()
    straight.digests.sort()
    assert one == straight


def test_data_hash_is_what_the_docs_say():
    batch = [np.full((2, 2, 3), value, np.uint8) for value in (9, 4)]
    observer = InputObserver()
    for image in batch:
        observer.observe(image)
    digests = [hashlib.sha256(b"|u1(2, 2, 3)" + image.tobytes()).digest() for image in batch]
    assert observer.data_hash() == hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def test_data_hash_sees_shape_and_repetition():
    def of(*batch):
        observer = InputObserver()
        for image in batch:
            observer.observe(image)
        return observer.data_hash()

    flat = np.zeros((2, 6, 1), np.uint8)
    assert len({of(flat), of(flat.reshape(6, 2, 1)), of(flat, flat), of(flat.astype(np.int8))}) == 4


def test_noise_is_told_from_smooth_images():
    observer = InputObserver()
    observer.observe(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    assert observer.noisy == 1
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3)).copy()
    observer.observe(ramp)
    assert observer.noisy == 1
