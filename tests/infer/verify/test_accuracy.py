"""Accuracy figures against the same figures computed the long way, and the verdict."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.backends.base import Outputs
from infer.bundle.accuracy_record import Figures
from infer.verify.accuracy import Tally, judge, record


def outputs(logits, k=5):
    logits = np.asarray(logits, np.float32)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k].astype(np.int32)
    with np.errstate(invalid="ignore"):
        scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    return Outputs(logits, np.take_along_axis(scores, order, 1), order)


@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 40),
    classes=st.integers(2, 12),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_tally_equals_brute_force(seed, images, classes, noise, cuts):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(images, classes)).astype(np.float32)
    found = (reference + noise * rng.normal(size=reference.shape)).astype(np.float32)
    targets = rng.integers(-1, classes, images)  # -1: no label
    tally = Tally()
    edges = sorted({0, images, *(cut for cut in cuts if cut < images)})
    for first, last in pairwise(edges):
        part = slice(first, last)
        tally.add(outputs(found[part]), targets[part], outputs(reference[part]))
    result = msgspec.to_builtins(tally.figures())

    known = [i for i in range(images) if targets[i] >= 0]
    hits1 = [found[i].argmax() == targets[i] for i in known]
    hits5 = [targets[i] in np.argsort(-found[i], kind="stable")[:5] for i in known]
    assert result["images"] == images
    if known:
        assert result["labelled"] == len(known)
        assert result["top1"] == pytest.approx(100 * np.mean(hits1), abs=1e-3)
        assert result["top5"] == pytest.approx(100 * np.mean(hits5), abs=1e-3)
        assert result["reference_top1"] == pytest.approx(
            100 * np.mean([reference[i].argmax() == targets[i] for i in known]), abs=1e-3
        )
        ours, theirs = (x.argmax(1)[known] == targets[known] for x in (found, reference))
        assert (result["lost"], result["gained"]) == ((theirs & ~ours).sum(), (ours & ~theirs).sum())
    else:
        assert "top1" not in result
    same = found.argmax(1) == reference.argmax(1)
    assert result["agreement"] == pytest.approx(100 * same.mean(), abs=1e-3)
    assert result["disagreeing"] == (~same).sum()
    x, r = found.astype(float), reference.astype(float)
    assert result["max_logit_difference"] == pytest.approx(np.abs(x - r).max())
    assert result["mean_logit_difference"] == pytest.approx(np.abs(x - r).mean())
    cosine = (x * r).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(r, axis=1)
    assert result["cosine"] == pytest.approx(cosine.mean())
    if noise:
        assert result["sqnr_db"] == pytest.approx(10 * math.log10((r**2).sum() / ((x - r) ** 2).sum()))
    else:
        assert result["sqnr_db"] is None


def test_without_a_reference():
    tally = Tally()
    tally.add(outputs([[1, 0], [0, 1]]), np.array([0, 0]))
    assert msgspec.to_builtins(tally.figures()) == {"images": 2, "labelled": 2, "top1": 50.0, "top5": 100.0}


def test_without_labels():
    tally = Tally()
    tally.add(outputs([[1, 0], [0, 1]]), np.array([-1, -1]), outputs([[1, 0], [1, 0]]))
    result = msgspec.to_builtins(tally.figures())
    assert (result["agreement"], "labelled" in result, "reference_top1" in result) == (50.0, False, False)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_counted_and_fail(bad):
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    broken = logits.copy()
    broken[1, 0] = bad
    tally = Tally()
    tally.add(outputs(broken), np.array([0, 1, 0]), outputs(logits))
    result = msgspec.to_builtins(tally.figures())
    assert result["not_finite"] == 1
    assert result["max_logit_difference"] == 0.0  # of the other two
    assert result["cosine"] == pytest.approx(1)
    json.loads(json.dumps(result, allow_nan=False))  # the manifest is JSON, which has no NaN
    verdict = judge(tally.figures())
    assert verdict.outcome == "failed"
    assert verdict.reason == "NaN or infinite logits for 1 of 3 images"


def test_nothing_but_numbers_that_are_none():
    tally = Tally()
    tally.add(outputs([[np.nan, np.nan]]), np.array([0]), outputs([[1, 0]]))
    result = msgspec.to_builtins(tally.figures())
    assert (result["not_finite"], result["cosine"], result["sqnr_db"]) == (1, 0.0, None)
    assert judge(tally.figures()).outcome == "failed"


def test_a_reference_of_zeros():
    tally = Tally()
    tally.add(outputs([[1, 2]]), np.array([1]), outputs([[0, 0]]))
    assert tally.figures().sqnr_db is None


@pytest.mark.parametrize(
    ("top1", "reference", "threshold", "passed"),
    [
        (99.0, 100.0, 0.99, True), (98.999, 100.0, 0.99, False), (75.0, 75.0, 1.0, True), (76.0, 75.0, 1.0, True),
        (0.0, 0.0, 0.99, True), (50.0, 75.0, 0.5, True), (74.9, 75.0, 1.0, False),
    ],
)  # fmt: skip
def test_verdict_with_labels(top1, reference, threshold, passed):
    verdict = judge(Figures(images=9, top1=top1, reference_top1=reference, agreement=0.0), threshold)
    assert verdict.outcome == ("passed" if passed else "failed")
    assert f"top-1 {top1:.2f} % against" in verdict.reason


@pytest.mark.parametrize(("agreement", "outcome"), [(99.0, "passed"), (98.9, "failed"), (100.0, "passed")])
def test_verdict_without_labels(agreement, outcome):
    verdict = judge(Figures(images=9, agreement=agreement))
    assert (verdict.outcome, verdict.reason) == (outcome, f"agreement {agreement:.2f} % against 99.00 % needed")


def test_no_verdict_without_a_reference():
    verdict = judge(Figures(images=9, top1=100.0))
    assert verdict.outcome == "failed"
    assert "pass --reference BUNDLE" in verdict.reason


def test_record(tiny):
    from infer import open_bundle

    tally = Tally()
    tally.add(outputs([[1, 2], [2, 1], [5, 1]]), np.array([1, 1, -1]), outputs([[1, 2], [1, 2], [4, 1]]))
    with open_bundle(tiny) as runner:
        found = record(runner, tally.counts(), tally.figures(), 0.6, "val", "x on y")
        assert found.plan_sha256 == runner.manifest.plans[0].files[0].sha256
    assert (found.target, found.data, found.reference) == ("openvino", "val", "x on y")
    assert (found.outcome, found.threshold) == ("failed", 0.6)
    assert found.verdict.startswith("top-1 50.00 % against 60.00 % needed")
    assert "CPU" in found.device
    counts = found.counts
    assert (counts.images, counts.labelled, counts.top1, counts.reference_top1) == (3, 2, 1, 2)
    assert (counts.agreeing, counts.lost, counts.gained, counts.not_finite) == (2, 1, 0, 0)
    flat = found.to_json()
    assert flat["agreement"] == round(100 * counts.agreeing / counts.reference_images, 3)
    assert flat["top1"] == 100 * counts.top1 / counts.labelled
    assert (flat["outcome"], flat["counts"]["lost"]) == ("failed", 1)
