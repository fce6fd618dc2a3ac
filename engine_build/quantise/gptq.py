"""Weights rounded one after the other, each error carried on to the weights that are still free.

Rounding every weight to the nearest integer makes the least error in the weights; what counts is the error in what the
layer computes. GPTQ (Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022) rounds the columns of a layer in turn and moves each column's error onto those that follow, by the
second moments of the layer's input. Here the moments are centred, since the mean of the error goes into the bias, and
the input is what the int8 kernel reads. With the Cholesky factor of the moments, ``H = L L^T``, and the columns rounded
from the last to the first, a column's best value is its weight plus what the errors of the columns behind it, weighted
by its column of L, ask for: the same result as by the inverse that the paper updates, in another arithmetic (Babai's
nearest plane). A column that its pair (:mod:`engine_build.quantise.pairs`) leaves too little room is
clamped, and what was clamped is carried on like any other error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.int8 import SYMMETRIC_STEPS
from engine_build.quantise.pairs import LIMIT, Pairs

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
    last = np.argsort(-np.diag(covariance), kind="stable")[::-1]  # rounded from its end on
    lower = _factor(covariance[np.ix_(last, last)], damping)
    partners = [_partners(pairs, last) for pairs in orders]
    weights = np.ascontiguousarray((rows / scale[:, None]).T[last], np.float32)
    done, errors = np.zeros_like(weights), np.zeros_like(weights)
    for end in range(len(weights), 0, -_BLOCK):
        begin = max(end - _BLOCK, 0)
        moved = lower[end:, begin:end].T @ errors[end:]
        block = np.ascontiguousarray(lower[begin:end, begin:end].T)
        for at in range(end - 1, begin - 1, -1):
            row = block[at - begin]
            carried = moved[at - begin] + row[at + 1 - begin :] @ errors[at + 1 : end]
            wanted = weights[at] + carried / row[at - begin]
            low, high = _room(at, wanted, partners, weights, done)
            done[at] = np.rint(np.clip(wanted, low, high))
            errors[at] = weights[at] - done[at]
    result = np.empty_like(rows)
    result[:, last] = done.T
    return result


def _factor(moments: NDArray[np.float64], damping: float) -> NDArray[np.float32]:
    """Lower triangular Cholesky factor of the damped moments."""
    import torch

    # A layer whose input never varies has no error to move: any positive number does.
    moments[np.diag_indices_from(moments)] += damping * float(np.trace(moments)) / len(moments) or 1.0
    with torch.inference_mode():
        return torch.linalg.cholesky(torch.from_numpy(moments)).float().numpy()


def _partners(pairs: Pairs, order: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each column in its place in ``order`` the place of its neighbour, -1 for none."""
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order))
    found = np.full(len(order), -1, np.intp)
    first, second = (place[columns] for columns in pairs)
    found[first], found[second] = second, first
    return found


def _room(
    at: int,
    wanted: NDArray[np.float32],
    partners: list[NDArray[np.intp]],
    weights: NDArray[np.float32],
    done: NDArray[np.float32],
) -> tuple[Any, Any]:
    """Least and largest value of a column: what its rounded neighbours leave, and a fair half with one to come."""
    low: Any = -SYMMETRIC_STEPS
    high: Any = SYMMETRIC_STEPS
    for partner in partners:
        other = partner[at]
        if other > at:
            low = np.maximum(low, -LIMIT - np.minimum(done[other], 0))
            high = np.minimum(high, LIMIT - np.maximum(done[other], 0))
        elif other >= 0:
            lead = (wanted - weights[other]) / 2
            high = np.minimum(high, np.where(weights[other] > 0, np.maximum(lead + LIMIT / 2, 0), SYMMETRIC_STEPS))
            low = np.maximum(low, np.where(weights[other] < 0, np.minimum(lead - LIMIT / 2, 0), -SYMMETRIC_STEPS))
    return low, high
