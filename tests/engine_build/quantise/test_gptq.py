"""Rounding by second moments: against the textbook algorithm, brute force, and rounding to nearest."""

import itertools

import numpy as np
import pytest

from engine_build.quantise.gptq import DAMPING, round_by_moments
from engine_build.quantise.pairs import pair_orders


def textbook(rows, scale, covariance, damping=DAMPING):
    """GPTQ as the paper writes it: the inverse is updated by elimination after every column, in float64."""
    moments = covariance + damping * np.diag(covariance).mean() * np.eye(len(covariance))
    left, weights = list(range(len(moments))), rows / scale[:, None]
    result = np.zeros_like(weights)
    while left:
        column = max(left, key=lambda at: covariance[at, at])
        inverse = np.linalg.inv(moments[np.ix_(left, left)])
        at = left.index(column)
        result[:, column] = np.clip(np.rint(weights[:, column]), -127, 127)
        error = (weights[:, column] - result[:, column]) / inverse[at, at]
        weights[:, left] -= error[:, None] * inverse[at]
        left.remove(column)
    return result


def correlated(columns, seed, samples=2000):
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((columns, columns)) * np.geomspace(1, 0.1, columns)
    return np.cov((generator.standard_normal((samples, columns)) @ mixing).T)


def output_error(rows, scale, integers, covariance):
    error = rows - integers * scale[:, None]
    return float(np.einsum("ij,jk,ik->", error, covariance, error))


@pytest.mark.parametrize("columns", [3, 20, 150])  # below and above one block
def test_equals_the_textbook(columns):
    covariance = correlated(columns, 1)
    rows = np.random.default_rng(2).standard_normal((16, columns)).astype(np.float32)
    scale = (np.abs(rows).max(axis=1) / 20).astype(np.float32)
    found, expected = round_by_moments(rows, scale, [], covariance), textbook(rows, scale, covariance)
    assert (found == expected).mean() > 0.995  # a tie may fall the other way in float32


def test_moves_the_error_where_it_costs_least():
    covariance = correlated(64, 3)
    rows = np.random.default_rng(4).standard_normal((32, 64)).astype(np.float32)
    scale = (np.abs(rows).max(axis=1) / 30).astype(np.float32)
    nearest = np.rint(rows / scale[:, None])
    found = round_by_moments(rows, scale, [], covariance)
    assert output_error(rows, scale, found, covariance) < 0.5 * output_error(rows, scale, nearest, covariance)


def test_is_near_the_best_of_all_roundings():
    covariance = correlated(6, 5)
    rows = np.random.default_rng(6).standard_normal((8, 6)).astype(np.float32)
    scale = np.full(8, 0.5, np.float32)
    found = round_by_moments(rows, scale, [], covariance, damping=1e-6)
    floor = np.floor(rows / scale[:, None])
    best = sum(
        min(
            output_error(rows[i : i + 1], scale[i : i + 1], (floor[i] + np.array(bits))[None], covariance)
            for bits in itertools.product((-1, 0, 1, 2), repeat=6)
        )
        for i in range(8)
    )
    assert output_error(rows, scale, found, covariance) < 1.5 * best


def test_without_correlation_it_is_rounding_to_nearest():
    rows = np.random.default_rng(7).standard_normal((4, 30)).astype(np.float32)
    scale = np.full(4, 0.02, np.float32)
    found = round_by_moments(rows, scale, [], np.diag(np.arange(1.0, 31.0)))
    assert (found == np.clip(np.rint(rows / scale[:, None]), -127, 127)).all()


def test_a_clamped_error_is_carried_on():
    """Two weights of a pair want 127 each; a third column that is nearly a copy of them takes what they lack."""
    covariance = np.full((4, 4), 0.999) + 0.001 * np.eye(4)
    rows = np.array([[120.0, 120.0, 10.0, 0.0]], np.float32)
    found = round_by_moments(rows, np.ones(1, np.float32), pair_orders(4, 1), covariance, damping=1e-6)
    assert found[0, 0] + found[0, 1] <= 128
    assert found.sum() == pytest.approx(250, abs=1)


@pytest.mark.parametrize("covariance", [np.zeros((5, 5)), np.ones((5, 5))])
def test_inputs_that_never_vary_or_always_together(covariance):
    rows = np.random.default_rng(8).standard_normal((3, 5)).astype(np.float32)
    found = round_by_moments(rows, np.full(3, 0.05, np.float32), [], covariance)
    assert np.isfinite(found).all() and (np.abs(found * 0.05 - rows) < 0.5).all()
