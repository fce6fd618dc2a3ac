"""Sums that do not depend on the order: against math.fsum and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.verify.exact_sum import ExactSum

FLOATS = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), max_size=30)


@given(FLOATS, st.randoms())
def test_any_order_and_any_parts_give_the_correctly_rounded_sum(values, random):
    exact = sum(map(Fraction, values), Fraction())
    whole = ExactSum()
    whole.add(np.array(values))
    shuffled = random.sample(values, len(values))
    cut = random.randint(0, len(values))
    first, second = ExactSum(), ExactSum()
    first.add(np.array(shuffled[:cut]))
    second.add(np.array(shuffled[cut:]))
    second.merge(ExactSum(str(first)))
    assert second == whole
    try:
        expected = float(exact)
    except OverflowError:
        return
    assert float(whole) == expected


def test_against_fsum():
    values = np.random.default_rng(0).lognormal(0, 20, 10_000)
    found = ExactSum()
    found.add(values)
    assert float(found) == math.fsum(values.tolist())


@pytest.mark.parametrize("value", [5e-324, -5e-324, 1.7976931348623157e308, 0.0, 1.0])
def test_the_ends_of_the_range(value):
    found = ExactSum()
    found.add(np.array([value]))
    assert float(found) == value
