"""The images that differ most, against sorting all of them."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from infer.backends.base import Outputs
from infer.verify.deviations import DECADES, Deviations, divergence


def outputs(logits):
    logits = np.asarray(logits, np.float32)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :3].astype(np.int32)
    with np.errstate(invalid="ignore"):
        scores = np.exp(logits - logits.max(1, keepdims=True))
    return Outputs(logits, np.take_along_axis(scores / scores.sum(1, keepdims=True), order, 1), order)


def test_divergence_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2
    found = divergence(np.array([[math.log(3), 0]], np.float32), np.array([[0, 0]], np.float32))
    assert found[0] == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


def test_divergence_equals_scipy():
    stats, special = pytest.importorskip("scipy.stats"), pytest.importorskip("scipy.special")
    rng = np.random.default_rng(0)
    x, r = rng.normal(size=(2, 50, 20)).astype(np.float32) * 5
    expected = stats.entropy(special.softmax(r.astype(float), axis=1), special.softmax(x.astype(float), axis=1), axis=1)
    np.testing.assert_allclose(divergence(x, r), expected, rtol=1e-6)
    np.testing.assert_allclose(divergence(x + 100, r), divergence(x, r), rtol=1e-3)  # a constant changes nothing
    assert (divergence(x, x) == 0).all()


def test_large_logits_do_not_overflow():
    found = divergence(np.array([[1e4, 0], [0, 1e4]], np.float32), np.array([[1e4, 0], [1e4, 0]], np.float32))
    assert found.tolist() == [0, 1e4]


def test_the_worst_are_kept_whatever_the_batches():
    rng = np.random.default_rng(1)
    count = 200
    r = rng.normal(size=(count, 8))
    x = r + 0.2 * rng.normal(size=r.shape) * rng.uniform(0, 1, (count, 1))
    targets = rng.integers(-1, 8, count)
    images = rng.integers(0, 255, (count, 6, 6, 3)).astype(np.uint8)
    names = [f"{i}.png" for i in range(count)]
    deviations = Deviations(kept=12)
    distances = []
    for part in np.array_split(np.arange(count), 7):
        part_names = [names[i] for i in part]
        distances += deviations.add(
            part_names, images[part], targets[part], outputs(x[part]), outputs(r[part]), part.tolist()
        ).tolist()
    flipped = x.argmax(1) != r.argmax(1)
    order = sorted(range(count), key=lambda i: (flipped[i], distances[i]), reverse=True)
    worst = deviations.worst()
    assert [item.name for item in worst] == [names[i] for i in order[:12]]
    assert 0 < flipped.sum() < 200
    first = worst[0]
    assert (first.predicted, first.reference, first.flipped) == (x[order[0]].argmax(), r[order[0]].argmax(), True)
    assert first.target == targets[order[0]]
    assert deviations.histogram.sum(1).tolist() == [count - flipped.sum(), flipped.sum()]


def test_flips_come_before_larger_distances():
    r = np.array([[1.0, 0.99, 0.0], [9.0, 0.0, 0.0]])
    x = np.array([[0.99, 1.0, 0.0], [2.0, 0.0, 0.0]])
    deviations = Deviations()
    distances = deviations.add(
        ["flip", "far"], np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), outputs(x), outputs(r), range(2)
    )
    assert distances[0] < distances[1]
    assert [item.name for item in deviations.worst()] == ["flip", "far"]


def test_histogram_has_a_place_for_everything():
    r = np.array([[1.0, 0.0]] * 3)
    x = np.array([[1.0, 0.0], [1.1, 0.0], [np.nan, 0.0]])
    deviations = Deviations()
    deviations.add(
        ["same", "near", "nan"], np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3), outputs(x), outputs(r), range(3)
    )
    assert deviations.histogram.sum() == 3
    assert deviations.histogram[0, 0] == 1  # nothing differs: the lowest decade
    assert deviations.histogram[:, -1].sum() == 1  # infinite: the highest
    assert deviations.histogram[0, -4 - DECADES[0]] == 1  # p (1 - p) 0.1^2 / 2 = 0.00098 nats


def test_logits_that_are_not_numbers_are_the_worst_and_stay_json():
    r = np.array([[1.0, 0.0, 0.5]] * 2)
    x = np.array([[0.0, 1.0, 0.5], [np.nan, 0.0, 0.0]])
    deviations = Deviations()
    deviations.add(
        ["flip", "nan"], np.zeros((2, 4, 4, 3), np.uint8), np.array([0, -1]), outputs(x), outputs(r), range(2)
    )
    worst = {item.name: item.to_json(["a", "b", "c"]) for item in deviations.worst()}
    json.dumps(worst, allow_nan=False)
    assert worst["nan"]["divergence"] is None
    assert (worst["nan"]["true"], worst["nan"]["true_label"]) == (None, None)
    assert (worst["flip"]["true_label"], worst["flip"]["predicted_label"], worst["flip"]["flipped"]) == ("a", "b", True)


@pytest.mark.parametrize(("side", "expected"), [(224, 128), (64, 64)])
def test_thumbnails_show_what_the_network_saw(side, expected):
    pixels = np.zeros((1, side, side, 3), np.uint8)
    pixels[:, : side // 2] = 200, 40, 90
    deviations = Deviations()
    deviations.add(["x"], pixels, np.array([0]), outputs([[1.0, 2.0]]), outputs([[2.0, 1.0]]), [0])
    thumbnail = Image.open(io.BytesIO(deviations.worst()[0].thumbnail))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (expected, expected))
    assert np.abs(np.array(thumbnail.getpixel((5, 5))) - (200, 40, 90)).max() < 6
