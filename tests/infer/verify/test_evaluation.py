"""One pass over images: both runners see the same, and every counter is filled."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

from infer.backends.base import Outputs
from infer.datasets.real_labels import RealLabels
from infer.sources import Record
from infer.verify.evaluation import Evaluation, Labelled, evaluate

LABELS = [f"class {i}" for i in range(6)]


class Fixed:
    """A runner whose logits are the first row of each image, with an error in the first of them."""

    def __init__(self, error=0.0):
        self.error = error

    def infer(self, images):
        logits = images[:, 0, :, 0] + self.error * (np.arange(images.shape[2]) == 0)
        logits = (logits / 10).astype(np.float32)
        order = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
        scores = np.exp(logits - logits.max(1, keepdims=True))
        return Outputs(logits, np.take_along_axis(scores / scores.sum(1, keepdims=True), order, 1), order)

    def stream_pairs(self, batches):
        for key, images in batches:
            yield key, self.infer(images)


@pytest.fixture
def data():
    """60 images whose class is the largest value in their first row."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 4, 6, 3)).astype(np.uint8)
    targets = images[:, 0, :, 0].argmax(1)
    records = [Record(f"/data/{i}.png", Path("/data"), f"ILSVRC2012_val_{i + 1:08d}.png") for i in range(60)]
    return records, images, targets


def run(data, evaluation, runner, reference, cuts=(0, 17, 18, 60)):
    records, images, targets = data
    batches = [Labelled(records[a:b], images[a:b], targets[a:b]) for a, b in pairwise(cuts)]
    evaluate(runner, reference, iter(batches), evaluation)
    return msgspec.to_builtins(evaluation.figures())


def test_both_run_on_the_same_images(data):
    figures = run(data, Evaluation(LABELS), Fixed(error=200.0), Fixed())
    assert (figures["images"], figures["reference_top1"]) == (60, 100.0)
    wrong = sum(image[0, 0, 0] + 200 > image[0, 1:, 0].max() for image in data[1][data[2] != 0].astype(int))
    assert figures["disagreeing"] == figures["lost"] == wrong > 10
    assert figures["gained"] == 0
    low, high = figures["top1_interval"]
    assert low < figures["top1"] < high
    assert figures["ece"] > figures["reference_ece"]


def test_gained_is_what_only_the_bundle_gets_right(data):
    figures = run(data, Evaluation(LABELS), Fixed(), Fixed(error=200.0))
    assert (figures["lost"], figures["top1"]) == (0, 100.0)
    assert figures["gained"] == figures["disagreeing"] > 10


def test_details_agree_with_the_figures(data):
    evaluation = Evaluation(LABELS)
    figures = run(data, evaluation, Fixed(error=100.0), Fixed())
    details = evaluation.details()
    assert sum(row.images for row in details.classes) == 60
    hits = sum(row.top1 * row.images / 100 for row in details.classes)
    assert hits == pytest.approx(60 * figures["top1"] / 100, abs=0.01)
    assert {c.predicted for c in details.confusions} == {0}  # the error draws everything to the first class
    assert sum(c.images for c in details.confusions) == figures["lost"]
    assert all(c.reference_images == 0 for c in details.confusions)
    assert details.divergences.sum(1).tolist() == [60 - figures["disagreeing"], figures["disagreeing"]]
    assert [item.flipped for item in details.differing] == [True] * min(24, figures["disagreeing"]) + [False] * (
        24 - min(24, figures["disagreeing"])
    )
    found = json.loads(json.dumps(details.to_json(LABELS), allow_nan=False))
    assert found["differing"][0]["name"].startswith("/data/")
    assert found["divergences"]["first_decade"] == -9
    assert "thumbnail" not in found["differing"][0]


def test_the_batches_do_not_matter(data):
    one, many = Evaluation(LABELS), Evaluation(LABELS)
    first = run(data, one, Fixed(error=50.0), Fixed(), (0, 60))
    second = run(data, many, Fixed(error=50.0), Fixed(), tuple(range(61)))
    assert first.keys() == second.keys()
    assert all(np.allclose(first[key], second[key]) for key in first)
    assert one.details().differing == many.details().differing


def test_a_row_for_every_image_in_order(data):
    rows = []
    figures = run(data, Evaluation(LABELS, each=lambda row, place: rows.append(row)), Fixed(error=100.0), Fixed())
    assert [row.name for row in rows] == [record.name for record in data[0]]
    assert [row.true for row in rows] == data[2].tolist()
    assert [row.reference for row in rows] == data[2].tolist()
    assert sum(not row.agrees for row in rows) == figures["disagreeing"]
    assert all(row.agrees == (row.predicted == row.reference) for row in rows)
    assert all(0 < row.score <= 1 and row.divergence >= 0 for row in rows)


def test_without_a_reference_and_without_classes(data):
    records, images, targets = data
    rows = []
    evaluation = Evaluation(LABELS, each=lambda row, place: rows.append(row))
    figures = run((records, images, np.full_like(targets, -1)), evaluation, Fixed(), None)
    assert figures == {"images": 60}
    assert rows[0][:1] + rows[0][4:] == ("/data/0.png", None, None, None, None)
    assert rows[0].true is None
    details = evaluation.details()
    assert (details.classes, details.differing, details.divergences) == ([], [], None)
    assert details.reference_reliability is None


def test_real_labels_are_counted_in_the_same_pass(data):
    real = RealLabels([frozenset({int(t), 0}) if i % 2 else frozenset() for i, t in enumerate(data[2])])
    figures = run(data, Evaluation(LABELS, real), Fixed(error=1000.0), Fixed())  # always class 0
    assert (figures["real_images"], figures["real_top1"], figures["reference_real_top1"]) == (30, 100.0, 100.0)
    assert figures["top1"] < 50


def test_memory_does_not_grow_with_the_images(data):
    import tracemalloc

    records, images, targets = data
    evaluation = Evaluation(LABELS)

    def kept(times):
        tracemalloc.start()
        batch = Labelled(records, images, targets)
        evaluate(Fixed(error=50.0), Fixed(), (batch for _ in range(times)), evaluation)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return used

    kept(60)  # the images that differ most are found
    assert kept(120) < 10_000  # bytes, of 7,200 images: the sums are integers of some 300 bytes
