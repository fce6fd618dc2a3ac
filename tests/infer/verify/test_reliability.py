"""Expected calibration error by hand and against scikit-learn's bins."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.verify.reliability import BINS, Reliability


def test_by_hand():
    reliability = Reliability(5)
    # (0, .2]: one, wrong. (.4, .6]: two, one right. (.8, 1]: two, both right.
    confidence = np.array([0.2, 0.5, 0.6, 0.9, 1.0])
    reliability.add(confidence, np.array([False, True, False, True, True]))
    assert reliability.images.tolist() == [1, 0, 2, 0, 2]
    # |0 - .2| + |1 - 1.1| + |2 - 1.9|, over 5 images
    assert reliability.error == pytest.approx(100 * (0.2 + 0.1 + 0.1) / 5, abs=1e-5)
    bins = msgspec.to_builtins(reliability.bins())
    assert (bins[1]["images"], bins[1]["accuracy"], bins[1]["confidence"]) == (0, None, None)
    assert (bins[2]["from"], bins[2]["to"], bins[2]["accuracy"]) == (0.4, 0.6, 0.5)
    assert bins[2]["confidence"] == pytest.approx(0.55)


def test_gaps_of_one_bin_cancel_but_not_those_of_two():
    one, two = Reliability(2), Reliability(2)
    one.add(np.array([0.75, 0.75]), np.array([True, False]))
    two.add(np.array([0.25, 0.75]), np.array([True, False]))
    assert one.error == pytest.approx(25)
    assert two.error == pytest.approx(75)


def test_nothing_and_not_a_number():
    reliability = Reliability()
    assert reliability.error is None
    reliability.add(np.array([np.nan, 0.5]), np.array([True, True]))
    assert reliability.images.sum() == 1
    assert len(msgspec.to_builtins(reliability.bins())) == BINS == 15


@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 300), parts=st.integers(1, 4))
@settings(deadline=None)
def test_bins_equal_scikit_learn(seed, images, parts):
    calibration = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0, 1, images)
    correct = rng.uniform(0, 1, images) < confidence**2
    reliability = Reliability()
    for chosen in np.array_split(np.arange(images), parts):
        reliability.add(confidence[chosen], correct[chosen])
    accuracy, mean = calibration.calibration_curve(correct, confidence, n_bins=BINS, strategy="uniform", pos_label=True)
    filled = [b for b in msgspec.to_builtins(reliability.bins()) if b["images"]]
    assert [b["accuracy"] for b in filled] == pytest.approx(accuracy.tolist())
    assert [b["confidence"] for b in filled] == pytest.approx(mean.tolist())
    weights = np.array([b["images"] for b in filled]) / images
    assert reliability.error == pytest.approx(100 * (weights * abs(accuracy - mean)).sum())
