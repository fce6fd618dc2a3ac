"""Weights rounded one after the other, each error carried on to the weights that are still free.

Rounding every weight to the nearest integer makes the least error in the weights; what counts is the error in what the
layer computes. GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022) rounds the columns of a layer in turn and moves each column's error onto those that follow, by the
second moments of the layer's input. Here the moments are centred, since the mean of the error goes into the bias, and
the input is what the int8 kernel reads. A column that its pair (:mod:`engine_build.pairs`) leaves too little room is
clamped, and what was clamped is carried on like any other error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_build.pairs import LIMIT, Pairs
from engine_build.weight_scales import LEVELS

#: Share of the mean diagonal that is added to the moments (Frantar et al., section 3.3).
DAMPING = 0.01
_BLOCK = 128


def round_by_moments(
    rows: NDArray[np.float32],
    scale: NDArray[np.float32],
    orders: list[Pairs],
    covariance: NDArray[np.float64],
    damping: float = DAMPING,
) -> NDArray[np.float32]:
    """Whole numbers in -127..127 for weights ``[channels, K]`` that share their input.

    Args:
        rows: float32 weights.
        scale: of each row.
        orders: pairs to hold; empty for none.
        covariance: centred second moments of the input, ``[K, K]``, in any unit.
        damping: share of the mean of the diagonal that is added to it.
    """
    columns = len(covariance)
    order = np.argsort(-np.diag(covariance), kind="stable")
    factor = _inverse_factor(covariance, order, damping)
    partners = [_partners(pairs, order) for pairs in orders]
    weights = np.ascontiguousarray((rows / scale[:, None]).T[order], np.float32)
    done = np.zeros_like(weights)
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        errors = np.empty((end - begin, weights.shape[1]), np.float32)
        for at in range(begin, end):
            low, high = _room(at, partners, weights, done)
            done[at] = np.rint(np.clip(weights[at], low, high))
            error = errors[at - begin] = (weights[at] - done[at]) / factor[at, at]
            weights[at + 1 : end] -= factor[at, at + 1 : end, None] * error
        weights[end:] -= factor[begin:end, end:].T @ errors
    result = np.empty_like(rows)
    result[:, order] = done.T
    return result


def _inverse_factor(moments: NDArray[np.float64], order: NDArray[np.intp], damping: float) -> NDArray[np.float32]:
    """Upper triangular U with ``U^T U`` the inverse of the damped moments, rows and columns in ``order``.

    With the Cholesky factor L of the moments in reversed order, ``H = R R^T`` for the upper triangular R that L is when
    it is reversed, and U is the inverse of R. The factor is found in float64; for its inverse float32 is enough, since
    its condition is the root of that of the moments, which damping bounds.
    """
    import torch

    last = order[::-1]
    damped = moments[np.ix_(last, last)]
    # A layer whose input never varies has no error to move: any positive number does.
    damped[np.diag_indices_from(damped)] += damping * float(np.trace(damped)) / len(damped) or 1.0
    with torch.inference_mode():
        lower = torch.linalg.cholesky(torch.from_numpy(damped)).float().numpy()
    return np.ascontiguousarray(_triangular_inverse(lower)[::-1, ::-1])


def _triangular_inverse(lower: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse of a lower triangular matrix by halves: a third of what solving for every column costs."""
    import torch

    size = len(lower)
    inverse = np.zeros_like(lower)
    if size <= _BLOCK:
        with torch.inference_mode():
            part = torch.from_numpy(np.ascontiguousarray(lower))
            inverse[:] = torch.linalg.solve_triangular(part, torch.eye(size), upper=False).numpy()
        return inverse
    half = size // 2
    inverse[:half, :half] = _triangular_inverse(lower[:half, :half])
    inverse[half:, half:] = _triangular_inverse(lower[half:, half:])
    inverse[half:, :half] = -inverse[half:, half:] @ (lower[half:, :half] @ inverse[:half, :half])
    return inverse


def _partners(pairs: Pairs, order: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each column in its new place the place of its neighbour, -1 for none."""
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order))
    found = np.full(len(order), -1, np.intp)
    first, second = (place[columns] for columns in pairs)
    found[first], found[second] = second, first
    return found


def _room(
    at: int, partners: list[NDArray[np.intp]], weights: NDArray[np.float32], done: NDArray[np.float32]
) -> tuple[Any, Any]:
    """Least and largest value of a column: what its rounded neighbours leave, and a fair half with one to come."""
    low: Any = -LEVELS
    high: Any = LEVELS
    for partner in partners:
        other = partner[at]
        if other < 0:
            continue
        if other < at:
            low = np.maximum(low, -LIMIT - np.minimum(done[other], 0))
            high = np.minimum(high, LIMIT - np.maximum(done[other], 0))
        else:
            lead = (weights[at] - weights[other]) / 2
            high = np.minimum(high, np.where(weights[other] > 0, np.maximum(lead + LIMIT / 2, 0), LEVELS))
            low = np.maximum(low, np.where(weights[other] < 0, np.minimum(lead - LIMIT / 2, 0), -LEVELS))
    return low, high
