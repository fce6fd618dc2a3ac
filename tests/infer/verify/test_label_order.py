"""Labels that are not the model's are recognised by what FP32 sees."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from infer.verify.label_order import describe

NAMES = [f"class {i}" for i in range(10)]


def pairs(targets, found):
    return Counter(zip(map(int, targets), map(int, found), strict=True))


@pytest.fixture
def truth():
    rng = np.random.default_rng(3)
    true = rng.integers(0, 10, 2000)
    seen = np.where(rng.random(2000) < 0.9, true, rng.integers(0, 10, 2000))
    return true, seen


@pytest.mark.parametrize(("shift", "words"), [(1, "count from 1: with -1"), (-1, "are one too small: with +1")])
def test_shifted_by_one(truth, shift, words):
    true, seen = truth
    kept = (true + shift >= 0) & (true + shift < 10)
    text = describe(pairs(true[kept] + shift, seen[kept]), 10, NAMES)
    assert text.startswith(f"the labels {words} it is right on 9")


def test_another_order_names_an_exchange(truth):
    true, seen = truth
    order = np.array([0, 1, 2, 7, 4, 5, 6, 3, 9, 8])
    text = describe(pairs(order[true], seen), 10, NAMES)
    assert "what is labelled 'class 3' (3) is 'class 7' (7)" in text and "right on 9" in text


def test_right_labels_and_noise_are_no_order(truth):
    true, seen = truth
    assert describe(pairs(true, seen), 10, NAMES) == ""
    rng = np.random.default_rng(5)
    assert describe(pairs(rng.integers(0, 10, 2000), seen), 10, NAMES) == ""
    assert describe(Counter(), 10, NAMES) == ""


def test_one_confused_pair_is_a_weak_model_and_no_order(truth):
    true, seen = truth
    assert describe(pairs(true, np.where(seen == 3, 5, seen)), 10, NAMES) == ""
