"""Accuracy of classes and their confusions, by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.verify.class_table import ClassRow, ClassTable, Confusion

LABELS = ["ant", "bee", "cat", "dog"]


def table(targets, predicted, reference=None):
    result = ClassTable(len(LABELS))
    arrays = [np.array(values, np.int32) for values in (predicted, reference) if values is not None]
    result.add(np.array(targets, np.int64), *arrays)
    return result


def test_by_hand():
    found = table([0, 0, 0, 2, 2, -1], [0, 1, 1, 2, 0, 3], [0, 0, 1, 2, 2, 3])
    assert found.rows(LABELS) == [
        ClassRow(0, "ant", 3, pytest.approx(100 / 3), pytest.approx(200 / 3), pytest.approx(200 / 3)),
        ClassRow(2, "cat", 2, 50.0, 100.0, 50.0),
    ]
    assert found.confusions(5) == [Confusion(0, 1, 2, 1), Confusion(2, 0, 1, 0)]
    assert found.confusions(1) == [Confusion(0, 1, 2, 1)]
    assert found.confusions(1)[0].to_json(LABELS) == {
        "true": 0, "predicted": 1, "images": 2, "reference_images": 1, "true_label": "ant", "predicted_label": "bee",
    }  # fmt: skip


def test_without_a_reference():
    found = table([1, 1], [1, 3])
    assert found.rows(LABELS) == [ClassRow(1, "bee", 2, 50.0, None, None)]
    assert found.confusions(5) == [Confusion(1, 3, 1, None)]


def test_ties_are_in_the_order_of_the_classes():
    found = table([3, 0, 2], [0, 1, 1])
    assert [(c.true, c.predicted) for c in found.confusions(5)] == [(0, 1), (2, 1), (3, 0)]


@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 200), parts=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_equals_scikit_learn(seed, images, parts):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    targets, found, expected = rng.integers(0, 6, (3, images))
    result = ClassTable(6)
    for chosen in np.array_split(np.arange(images), parts):
        result.add(targets[chosen], found[chosen].astype(np.int32), expected[chosen].astype(np.int32))
    ours, theirs = (metrics.confusion_matrix(targets, x, labels=range(6)) for x in (found, expected))
    rows = result.rows([str(i) for i in range(6)])
    for row in rows:
        assert row.images == ours[row.index].sum()
        assert row.top1 == pytest.approx(100 * ours[row.index, row.index] / row.images, abs=1e-3)
        assert row.reference_top1 == pytest.approx(100 * theirs[row.index, row.index] / row.images, abs=1e-3)
        same = (found == expected)[targets == row.index].mean()
        assert row.agreement == pytest.approx(100 * same, abs=1e-3)
    assert sum(row.images for row in rows) == images
    pairs = {(c.true, c.predicted): (c.images, c.reference_images) for c in result.confusions(100)}
    assert pairs == {(t, p): (ours[t, p], theirs[t, p]) for t in range(6) for p in range(6) if t != p and ours[t, p]}
