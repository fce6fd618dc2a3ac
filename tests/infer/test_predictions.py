"""Outputs as named, ranked classes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from infer.backends.base import Outputs
from infer.predictions import Prediction, Ranked, rank

LABELS = ["cat", "dog", "bird"]


@pytest.fixture
def outputs():
    scores = np.array([[0.7, 0.2, 0.1], [0.5, 0.30000001, 0.2]], np.float32)
    return Outputs(np.zeros((2, 3), np.float32), scores, np.array([[2, 0, 1], [1, 2, 0]], np.int32))


def test_rank(outputs):
    first, second = rank(["a", "b"], outputs, LABELS)
    assert [(r.index, r.label) for r in first.top] == [(2, "bird"), (0, "cat"), (1, "dog")]
    assert [r.score for r in first.top] == pytest.approx([0.7, 0.2, 0.1])
    assert (second.name, second.top[0].label, second.error) == ("b", "dog", None)


@pytest.mark.parametrize(("top", "count"), [(1, 1), (2, 2), (None, 3), (9, 3)])
def test_top(outputs, top, count):
    assert [len(p.top) for p in rank(["a", "b"], outputs, LABELS, top)] == [count, count]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_answer(outputs, value):
    outputs.scores[0, 1] = value
    bad, good = rank(["a", "b"], outputs, LABELS)
    assert bad.top == () and bad.error.startswith("a: the network gave NaN or infinite scores")
    assert good.error is None and set(bad.to_json()) == {"name", "error"}


def test_no_rows(outputs):
    assert rank([], Outputs(*(array[:0] for array in outputs)), LABELS) == []


def test_json(outputs):
    value = json.loads(json.dumps(rank(["a", "b"], outputs, LABELS, 1)[0].to_json()))
    assert value == {"name": "a", "top": [{"index": 2, "label": "bird", "score": 0.7}]}


def test_json_of_a_failure():
    assert Prediction("a", error="a: damaged").to_json() == {"name": "a", "error": "a: damaged"}


def test_predictions_are_values():
    assert Prediction("a", (Ranked(1, "dog", 0.5),)) == Prediction("a", (Ranked(1, "dog", 0.5),))
    with pytest.raises(AttributeError):
        Prediction("a").name = "b"
