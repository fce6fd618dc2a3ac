"""What scales cost, against numpy's own rounding of the same values."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from small_graphs import TENSORS, pictures, residual_graph

from calibration.fit import scale_fit
from calibration.observers import TensorObserver
from calibration.statistics import Statistics
from calibration.streaming import collect

RNG = np.random.default_rng(0)
VALUES = {"a": RNG.standard_normal(50_000).astype(np.float32), "b": np.abs(RNG.standard_normal(50_000) * 7)}


@pytest.fixture(scope="module")
def seen():
    tensors = {name: TensorObserver() for name in VALUES}
    for name, values in VALUES.items():
        tensors[name].observe(name, values.astype(np.float32))
    return Statistics(tensors, 1, "0" * 64, [])


def int8(values, amax):
    step = amax / 127
    return np.clip(np.round(values / step), -128, 127) * step


def fp8(values, amax):
    scale = amax / 448
    return np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


def noise(rounded, amax):
    return sum(
        float(((rounded(values, amax[name]) - values) ** 2).mean() / (values**2).mean())
        for name, values in VALUES.items()
    )


@pytest.mark.parametrize("factors", [(1, 1), (8, 1), (1, 0.25), (0.5, 0.5), (3, 40)])
@pytest.mark.parametrize("rounded", [int8, fp8])
def test_agrees_with_rounding(seen, factors, rounded):
    best = seen.amax("mse" if rounded is int8 else "minmax")
    amax = {name: best[name] * factor for name, factor in zip(VALUES, factors, strict=True)}
    found = scale_fit(seen, amax, {}, method="mse", fp8=rounded is fp8)
    assert found.loss_db == pytest.approx(10 * math.log10(noise(rounded, amax) / noise(rounded, best)), abs=0.5)
    assert found.method == "mse"


def test_names_the_tensor_that_loses_most(seen):
    best = seen.amax("mse")
    found = scale_fit(seen, {**best, "b": best["b"] / 4}, {})
    assert (found.tensor, found.ratio) == ("b", pytest.approx(0.25))
    assert "b, whose scale is 1/4.0 of the best" in str(found)


def test_tensors_without_a_scale_or_a_signal_do_not_count(seen):
    best = seen.amax("mse")
    assert scale_fit(seen, {"a": best["a"]}, {}).loss_db == pytest.approx(0)
    assert scale_fit(seen, {"a": 0.0}, {}) is None
    assert scale_fit(seen, {}, {}) is None


def test_on_the_images_of_a_graph():
    """A calibration on other images of the same kind fits, a stale one does not."""
    graph = residual_graph()
    here, there = (collect(graph, [pictures(12, seed)], TENSORS) for seed in (1, 2))
    scales = there.amax("mse")
    assert scale_fit(here, scales, {}).loss_db < 3
    assert scale_fit(here, {name: 8 * amax for name, amax in scales.items()}, {}).loss_db > 15
