"""Intervals against implementations of others: scipy's Wilson, and Tango's by its definition with scipy's optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.verify.intervals import Z95, Z999, images_needed, tango, wilson

optimize = pytest.importorskip("scipy.optimize")
stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("z", "level"), [(Z95, 0.95), (Z999, 0.999)])
@pytest.mark.parametrize(("hits", "images"), [(0, 1), (1, 1), (7, 10), (0, 50), (38_655, 50_000), (999, 1000)])
def test_wilson_equals_scipy(hits, images, z, level):
    expected = stats.binomtest(hits, images).proportion_ci(level, method="wilson")
    assert wilson(hits, images, z) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_interval_of_nothing():
    with pytest.raises(ValueError, match="at least one image"):
        wilson(0, 0)
    for wrong in ((1, 0, 0), (-1, 0, 5), (3, 3, 5)):
        with pytest.raises(ValueError, match=r"lost \+ gained <= images"):
            tango(*wrong)


def score_test(lost, gained, images, difference):
    """The score statistic, its nuisance parameter found by maximising the likelihood numerically."""
    same = images - lost - gained

    def unlikely(second):  # share of images that only the second gets right; the first's is that plus the difference
        shares = (second + difference, second, 1 - 2 * second - difference)
        terms = zip((lost, gained, same), shares, strict=True)
        return -sum(n * math.log(max(p, 1e-300)) for n, p in terms if n)

    low, high = max(0.0, -difference), (1 - difference) / 2
    second = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = images * (2 * second + difference - difference**2)
    return abs(lost - gained - images * difference) / math.sqrt(max(variance, 1e-300))


@pytest.mark.parametrize(
    ("lost", "gained", "images"), [(12, 5, 100), (11, 6, 10_000), (40, 2, 300), (0, 7, 60), (9, 0, 44), (150, 90, 5000)]
)
def test_tango_is_where_the_score_test_turns(lost, gained, images):
    low, high = tango(lost, gained, images)
    assert low <= (lost - gained) / images <= high
    for edge in (low, high):
        assert score_test(lost, gained, images, edge) == pytest.approx(Z95, abs=2e-3)


def test_without_a_difference_the_interval_is_symmetric_and_not_empty():
    low, high = tango(0, 0, 1000)
    assert -low == pytest.approx(high) and high == pytest.approx(Z95**2 / (1000 + Z95**2))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 500))
def test_tango_turns_around_with_its_arguments(lost, gained, same):
    images = lost + gained + same
    if images:
        low, high = tango(lost, gained, images)
        other = tango(gained, lost, images)
        assert (low, high) == pytest.approx((-other[1], -other[0]), abs=1e-12)
        assert -1 <= low <= high <= 1


def test_it_holds_the_true_difference_95_times_in_100():
    rng = np.random.default_rng(1)
    shares = (0.03, 0.01, 0.96)
    held = [
        low <= 0.02 <= high
        for lost, gained, _ in rng.multinomial(400, shares, 1500)
        for low, high in [tango(int(lost), int(gained), 400)]
    ]
    assert 0.935 < np.mean(held) < 0.97


def test_the_images_that_would_decide():
    needed = images_needed(9, 1, 1000, 0.0094)
    assert needed is not None and needed > 1000
    for images, decided in ((needed, True), (0.97 * needed, False)):
        low, high = tango(9 * images / 1000, images / 1000, images)
        assert (high <= 0.0094 or low > 0.0094) == decided
    assert images_needed(94, 0, 10_000, 0.0094) is None
