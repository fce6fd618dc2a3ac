"""Weights to int8: error against brute force, axes, float16 scales."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_build.quantise.weight_scales import half_scale, quantise_weights
from infer.errors import InputError


def error(weight, integers, scale, axis):
    shape = [1] * weight.ndim
    shape[axis] = -1
    return ((integers * scale.reshape(shape).astype(np.float64) - weight) ** 2).sum()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4)])
def test_each_channel_has_its_own_scale(shape, axis):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[(slice(None),) * axis + (2,)] *= 1000
    integers, scale = quantise_weights(weight, axis, "max", pair_safe=False)
    assert integers.dtype == np.int8 and integers.shape == shape and scale.shape == (shape[axis],)
    largest = np.abs(np.moveaxis(weight, axis, 0)).reshape(shape[axis], -1).max(axis=1)
    np.testing.assert_allclose(scale, largest / 127, rtol=1e-3)
    assert error(weight, integers, scale, axis) < 1e-4 * (weight**2).sum()


@given(st.integers(0, 10_000))
def test_mse_is_never_worse_than_max_and_clips_outliers(seed):
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, (4, 64)) * 10.0 ** rng.uniform(-3, 1)).astype(np.float32)
    for pair_safe in (True, False):
        by_max, by_mse = (quantise_weights(weight, 0, method, pair_safe=pair_safe) for method in ("max", "mse"))
        assert error(weight, *by_mse, 0) <= error(weight, *by_max, 0) * (1 + 1e-6)
    assert (by_mse[1] <= by_max[1] * (1 + 1e-6)).all()


def test_mse_beats_max_on_average():
    weight = np.random.default_rng(1).standard_t(4, (64, 512)).astype(np.float32)
    by_max, by_mse = (quantise_weights(weight, 0, method) for method in ("max", "mse"))
    assert error(weight, *by_mse, 0) < 0.999 * error(weight, *by_max, 0)
    assert (by_mse[1] < by_max[1]).any()


def test_a_channel_of_zeros_stays_zero():
    integers, scale = quantise_weights(np.zeros((2, 3), np.float32))
    assert not integers.any() and (scale > 0).all()


def test_scales_are_exact_in_float16():
    weight = np.random.default_rng(2).standard_normal((16, 9)).astype(np.float32)
    _, scale = quantise_weights(weight)
    assert (scale == scale.astype(np.float16).astype(np.float32)).all()
    assert half_scale(np.float32(1e-12)) > 0 and half_scale(np.float32(0.1)).shape == ()


def test_unknown_method():
    with pytest.raises(InputError, match=r"'best'.*max, mse"):
        quantise_weights(np.ones((1, 1), np.float32), 0, "best")
