"""Accuracy figures against the same figures computed the long way."""

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
from infer.verify.accuracy import Tally, record
from infer.verify.verdict import Verdict


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
    counts = tally.counts()
    assert (counts.images, counts.labelled, counts.reference_images, counts.top1, counts.agreeing) == (3, 2, 2, 2, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_in_fp32_count_too(bad):
    tally = Tally()
    broken = np.array([[1.0, bad], [0.0, 1.0]])
    tally.add(outputs([[1, 0], [0, 1]]), np.array([0, 1]), outputs(broken))
    counts = tally.counts()
    assert (counts.not_finite, counts.labelled, counts.lost, counts.gained, counts.agreeing) == (1, 1, 0, 0, 1)
    json.dumps(msgspec.to_builtins(tally.figures()), allow_nan=False)


def test_nothing_but_numbers_that_are_none():
    tally = Tally()
    tally.add(outputs([[np.nan, np.nan]]), np.array([0]), outputs([[1, 0]]))
    assert msgspec.to_builtins(tally.figures()) == {"images": 1, "not_finite": 1}


def test_exact_is_said_only_where_nothing_differs():
    zeros, same, other = Tally(), Tally(), Tally()
    zeros.add(outputs([[1, 2]]), np.array([1]), outputs([[0, 0]]))
    same.add(outputs([[1, 2]]), np.array([1]), outputs([[1, 2]]))
    other.add(outputs([[1, 2]]), np.array([1]), outputs([[1, 3]]))
    assert (zeros.figures().sqnr_db, zeros.figures().exact) == (None, False)
    assert zeros.figures().sqnr_text == "none, FP32's logits are all zero"
    assert (same.figures().sqnr_db, same.figures().sqnr_text) == (None, "exact")
    assert other.figures().sqnr_text == "10.0 dB"


def test_record(tiny):
    from infer import open_bundle

    tally = Tally()
    tally.add(outputs([[1, 2], [2, 1], [5, 1]]), np.array([1, 1, -1]), outputs([[1, 2], [1, 2], [4, 1]]))
    with open_bundle(tiny) as runner:
        found = record(
            runner.manifest, runner.target, runner.backend.device, tally.counts(), tally.figures(),
            Verdict("failed", "why"), 0.6, "val", "x on y",
        )  # fmt: skip
        assert found.plan_sha256 == runner.manifest.plans[0].files[0].sha256
    assert (found.target, found.data, found.reference) == ("openvino", "val", "x on y")
    assert (found.outcome, found.threshold) == ("failed", 0.6)
    assert found.verdict == "why"
    assert "CPU" in found.device
    counts = found.counts
    assert (counts.images, counts.labelled, counts.top1, counts.reference_top1) == (3, 2, 1, 2)
    assert (counts.agreeing, counts.lost, counts.gained, counts.not_finite) == (2, 1, 0, 0)
    flat = found.to_json()
    assert flat["agreement"] == 100 * counts.agreeing / counts.reference_images
    assert flat["top1"] == 100 * counts.top1 / counts.labelled
    assert (flat["outcome"], flat["counts"]["lost"]) == ("failed", 1)
