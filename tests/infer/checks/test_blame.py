"""Which of calibration, graph and kernels is blamed, and what the line says."""

from __future__ import annotations

import math

import pytest

from infer.checks.blame import CALIBRATION_LOSS, Comparison, ScaleFit, blame

GOOD, BAD, NOTHING = (Comparison(sqnr, 20.0, 99.0, 64) for sqnr in (36.0, 11.3, None))
FITS, STALE = (ScaleFit("mse", loss, "layer1.relu", ratio) for loss, ratio in ((0.4, 1.05), (18.1, 8.0)))


def test_nothing_is_blamed_where_no_floor_is_missed():
    assert blame("int8", GOOD, GOOD) is None
    assert blame("int8", NOTHING, NOTHING, scales=STALE) is None  # bad scales that cost nothing
    assert blame("int8", None) is None


def test_scales_that_do_not_fit_the_images():
    found = blame("int8", BAD, scales=STALE)
    assert found.part == "calibration"
    assert "11.3 dB, at least 20.0 dB" in found.text
    assert "18.1 dB more error" in found.text and "layer1.relu, whose scale is 8.0 times the best" in found.text
    assert "--data" in found.text and "\n" not in found.text
    assert "is 1/4.0 of the best" in blame("int8", BAD, scales=ScaleFit("entropy", 20, "a", 0.25)).text


def test_a_graph_whose_scales_fit():
    found = blame("int8", BAD, scales=FITS)
    assert found.part == "graph"
    assert "its scales fit these images" in found.text and "PRECISION=auto" in found.text
    assert "Build fp32" in blame("fp16", BAD).text
    edge = ScaleFit("mse", CALIBRATION_LOSS, "a", 2)
    assert blame("int8", BAD, scales=edge).part == "calibration"


def test_what_was_good_at_the_build_and_is_not_on_other_images_is_the_calibration():
    assert blame("int8", BAD, at_build=34.0).part == "calibration"
    assert "On the images of the build it was 34.0 dB" in blame("int8", BAD, at_build=34.0).text
    assert blame("int8", BAD, at_build=14.0).part == "graph"  # it was as bad
    assert blame("int8", BAD, at_build=34.0, scales=FITS).part == "graph"  # what was measured counts more


def test_kernels_are_blamed_for_what_the_graph_did_not_lose():
    found = blame("int8", GOOD, BAD, target="openvino", kernels="avx512", scales=STALE)
    assert found.part == "kernels"
    assert "openvino (avx512) computes something else than its graph: 11.3 dB" in found.text
    assert blame("int8", None, BAD, target="openvino").part == "kernels"
    assert "16 bits" in blame("int8", None, BAD, overflow=True).text
    assert "16 bits" not in found.text


def test_the_first_in_order_is_blamed():
    assert blame("int8", BAD, BAD, scales=FITS).part == "graph"


@pytest.mark.parametrize("sqnr", [math.nan, -math.inf])
def test_what_is_no_number_misses_every_floor(sqnr):
    assert blame("fp16", Comparison(sqnr, 0.0, 0.0, 8)).part == "graph"
