"""Thresholds against plain, slow re-implementations of their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.choices import METHODS
from calibration.histogram import Histogram, magnitude_histogram
from calibration.thresholds import entropy, mse, percentile, quantisation_error, threshold
from infer.errors import InputError

SHAPES = {
    "normal": lambda random, n: random.standard_normal(n),
    "relu": lambda random, n: np.maximum(random.standard_normal(n), 0),
    "heavy": lambda random, n: random.standard_t(3, n),
    "uniform": lambda random, n: random.random(n),
    "sparse": lambda random, n: np.where(random.random(n) < 0.02, random.exponential(1, n), 0),
}
shapes = st.tuples(st.sampled_from(sorted(SHAPES)), st.integers(0, 50), st.sampled_from([300, 5000, 60_000]))


def sample(shape) -> np.ndarray:
    name, seed, size = shape
    random = np.random.default_rng(seed)
    return np.abs(SHAPES[name](random, size) * 2.0 ** random.integers(-9, 9)).astype(np.float32)


def histogram_of(values: np.ndarray) -> tuple[Histogram, float]:
    amax = float(values.max())
    return magnitude_histogram(values, amax), amax


@given(shapes, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_every_method_stays_in_range(shape, method):
    histogram, amax = histogram_of(sample(shape))
    found = threshold(method, histogram, amax)
    assert 0 < found <= amax
    assert found == threshold(method, histogram, amax)


@given(shapes, st.floats(90, 99.999))
@settings(max_examples=40, deadline=None)
def test_percentile_is_within_a_bin_of_the_exact_one(shape, percent):
    values = sample(shape)
    histogram, amax = histogram_of(values)
    exact = float(np.sort(values)[math.ceil(percent / 100 * values.size) - 1])
    found = percentile(histogram, amax, percent)
    if exact < histogram.width:
        assert found == amax
    else:
        assert abs(found - exact) <= histogram.width


def test_percentile_of_all_is_the_maximum():
    histogram, amax = histogram_of(sample(("heavy", 1, 5000)))
    assert percentile(histogram, amax, 100) == amax


def int8_error(values: np.ndarray, amax: float) -> float:
    step = amax / 127
    restored = np.minimum(np.round(values.astype(np.float64) / step), 127) * step
    return float(np.mean((values - restored) ** 2))


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_quantisation_error_is_that_of_real_rounding(name):
    values = sample((name, 3, 400_000))
    histogram, amax = histogram_of(values)
    candidates = amax * np.array([1.0, 0.7, 0.4, 0.2])
    exact = np.array([int8_error(values, candidate) for candidate in candidates])
    np.testing.assert_allclose(quantisation_error(histogram, candidates), exact, rtol=0.01)


@given(shapes)
@settings(max_examples=25, deadline=None)
def test_mse_finds_the_least_real_error(shape):
    """Among 400 candidates none is noticeably better on the values themselves."""
    values = sample(shape)
    histogram, amax = histogram_of(values)
    best = min(int8_error(values, amax * share) for share in np.geomspace(1 / 64, 1, 400))
    # A few values that sit on rounding points by chance make a narrow dip; the more values the less.
    slack = 1.02 if values.size >= 5000 else 1.25
    assert int8_error(values, mse(histogram, amax)) <= best * slack


def test_mse_clips_heavy_tails_and_keeps_uniform_values():
    histogram, amax = histogram_of(sample(("uniform", 0, 60_000)))
    assert mse(histogram, amax) > 0.98 * amax
    values = sample(("normal", 0, 60_000))
    values[0] *= 100
    histogram, amax = histogram_of(values)
    assert mse(histogram, amax) < 0.8 * amax


def slow_divergence(bins: np.ndarray, kept: int) -> float:
    """KL divergence of the GTC 2017 talk, step by step."""
    reference = bins[:kept].astype(float)
    reference[-1] += bins[kept:].sum()
    level_of = np.arange(kept) * 128 // kept
    candidate = np.zeros(kept)
    for level in range(128):
        members = (level_of == level) & (reference > 0)
        if members.any():
            candidate[members] = bins[:kept][level_of == level].sum() / members.sum()
    if candidate.sum() == 0:
        return math.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    if np.any((p > 0) & (q == 0)):
        return math.inf
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


@pytest.mark.parametrize("name", ["heavy", "normal", "relu", "uniform"])
@pytest.mark.parametrize("seed", [0, 1])
def test_entropy_equals_the_slow_definition(name, seed):
    histogram, amax = histogram_of(sample((name, seed, 60_000)))
    used = int(amax / histogram.width) + 1
    bins = histogram.counts[:used].copy()
    bins[0] = bins[1]
    found = entropy(histogram, amax)
    kept = used if found == amax else round(found / histogram.width)
    others = [
        slow_divergence(bins, k)
        for k in {*range(128, used + 1, 23), *range(max(kept - 3, 128), min(kept + 4, used + 1))}
    ]
    # As good as any other candidate by the slow sum too.
    assert slow_divergence(bins, kept) <= min(others) + 1e-9


def test_entropy_clips_a_heavy_tail_in_spite_of_zeros():
    values = sample(("heavy", 0, 60_000))
    values[::2] = 0
    histogram, amax = histogram_of(values)
    assert entropy(histogram, amax) < 0.5 * amax


def test_entropy_keeps_the_range_of_a_normalised_image():
    """Discrete values, nearly half of them black: the divergence alone would clip at black."""
    pixels = np.random.default_rng(0).integers(0, 256, 100_000)
    pixels[::2] = 0
    histogram, amax = histogram_of(np.abs((pixels / 255 - 0.286) / 0.353).astype(np.float32))
    assert entropy(histogram, amax) == amax


def test_entropy_keeps_a_constant_tensor_whole():
    histogram, amax = histogram_of(np.full(1000, 3.0, np.float32))
    assert entropy(histogram, amax) == amax


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amax", [0.0, 1e-40, 1e-33])
def test_nothing_to_measure_keeps_the_range(method, amax):
    values = np.array([0, amax], np.float32)
    histogram, amax = histogram_of(values)
    assert threshold(method, histogram, amax) == amax


@pytest.mark.parametrize("method", METHODS)
def test_scaling_by_a_power_of_two_scales_the_threshold(method):
    values = sample(("heavy", 5, 5000))
    one, four = (threshold(method, *histogram_of(values * np.float32(factor))) for factor in (1, 4))
    assert four == pytest.approx(4 * one, rel=1e-12)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("kl", {}, "known: minmax, percentile, entropy, mse"),
        ("mse", {"percentile": 99.9}, "takes no parameter percentile"),
        ("percentile", {"percentil": 99.9}, "takes no parameter percentil"),
        ("percentile", {"percentile": 101}, "from 50 to 100, found 101"),
        ("percentile", {"percentile": math.nan}, "found nan"),
        ("percentile", {"percentile": "99"}, "found '99'"),
        ("percentile", {"percentile": 0.9999}, "99.99 is usual"),
    ],
)
def test_bad_methods_and_parameters(method, parameters, message):
    histogram, amax = histogram_of(np.ones(4, np.float32))
    with pytest.raises(InputError, match=message):
        threshold(method, histogram, amax, parameters)
