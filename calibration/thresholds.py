"""From a histogram of magnitudes to the largest magnitude that int8 shall represent (``amax``).

Symmetric int8 maps ``[-amax, amax]`` to ``[-127, 127]`` with the step ``amax / 127``; larger magnitudes are clipped.
Every method works on ``|x|``, so a tensor behind a ReLU, which uses one side only, needs no case of its own.
All functions are pure: the same histogram gives the same number.

* ``minmax``: the largest magnitude seen. Clips nothing.
* ``percentile``: the magnitude below which ``percentile`` percent of all values lie.
* ``entropy``: the clipping that keeps most of the distribution's information, as TensorRT's calibrator does it
  (S. Migacz, "8-bit inference with TensorRT", GTC 2017).
* ``mse``: the clipping with the least mean squared error between the values and their int8 images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.choices import METHODS
from calibration.histogram import Histogram
from calibration.int8 import SYMMETRIC_STEPS
from infer.errors import InputError

DEFAULT_PERCENTILE = 99.99
_ENTROPY_LEVELS = 128
_BULK = 0.99
_SAME_DIVERGENCE = 1e-10  # nats
_MSE_LOWEST = 1 / 64  # of amax; no sensible clipping is further down
_MSE_COARSE, _MSE_FINE, _MSE_ROUNDS = 97, 17, 3


def threshold(
    method: str,
    histogram: Histogram,
    amax: float,
    parameters: Mapping[str, Any] | None = None,
    *,
    steps: int = SYMMETRIC_STEPS,
) -> float:
    """The amax that ``method`` chooses, in ``[0, amax]``.

    Args:
        method: one of :data:`METHODS`.
        histogram: magnitudes of one tensor.
        amax: the exact largest magnitude.
        parameters: keyword parameters of the method; of these only ``percentile`` has one, ``percentile``.
        steps: integers from 0 to amax; more of them make clipping less worth while (``mse``).

    Raises:
        InputError: unknown method or parameter, or a parameter out of range.
    """
    check_method(method, parameters or {})
    if amax < histogram.width:  # zero, or too small for the histogram to tell anything about
        return amax
    if method == "mse":
        return min(mse(histogram, amax, steps), amax)
    return min(_FUNCTIONS[method](histogram, amax, **(parameters or {})), amax)


def check_method(method: str, parameters: Mapping[str, Any]) -> None:
    """Check a method and its parameters.

    Raises:
        InputError: unknown method or parameter, or a parameter out of range.
    """
    if method not in METHODS:
        raise InputError(f"unknown calibration method {method!r}; known: {', '.join(METHODS)}")
    unknown = set(parameters) - ({"percentile"} if method == "percentile" else set())
    if unknown:
        raise InputError(f"method {method!r} takes no parameter {', '.join(sorted(unknown))}")
    value = parameters.get("percentile", DEFAULT_PERCENTILE)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 50 <= value <= 100:
        raise InputError(f"percentile must be a number from 50 to 100, found {value!r}; 99.99 is usual")


def minmax(histogram: Histogram, amax: float) -> float:
    """``amax`` itself."""
    return amax


def percentile(histogram: Histogram, amax: float, percentile: float = DEFAULT_PERCENTILE) -> float:
    """The least ``t`` with ``P(|x| <= t) >= percentile / 100``, values taken as uniform inside their bin.

    A tensor that is zero in that many places keeps its whole range: any clipping there would leave nothing of it.
    """
    counts = histogram.counts
    below = np.cumsum(counts)
    wanted = percentile / 100 * float(below[-1])
    at = int(np.searchsorted(below, wanted))
    if percentile == 100 or at == 0:
        return amax
    inside = (wanted - float(below[at] - counts[at])) / float(counts[at])
    return min((at + inside) * histogram.width, amax)


def entropy(histogram: Histogram, amax: float) -> float:
    """The clipping with the least Kullback-Leibler divergence, searched over every bin edge from the 128th on.

    For ``i`` bins kept, the reference P is the first ``i`` bins with everything above added to the last; the
    candidate Q merges the first ``i`` bins into 128 levels and spreads each level evenly over those of its bins that
    P does not leave empty. Minimise ``KL(P || Q) = sum p log(p / q)``, both normalised.

    The bin at zero takes the count of its neighbour: after a ReLU it holds half of all values, which every
    clipping represents exactly, and it would drown the rest (as in NVIDIA's pytorch-quantization).

    The comparison needs a density. Where most bins among those of 99 % of the values are empty there is none: the
    values are few, or discrete as those of the normalised image, and the minimum lies wherever a spike happens to
    be. Such a tensor keeps its range.

    Q is constant on a level, so with prefix sums over the bins each candidate costs 128 terms instead of ``i``:
    ``sum p log p`` is a prefix sum, and ``sum p log q`` is one product a level.
    """
    used = int(amax / histogram.width) + 1
    counts = histogram.counts[:used].astype(np.float64)
    if used <= _ENTROPY_LEVELS:
        return amax
    counts[0] = counts[1]
    mass = _prefix(counts)
    if mass[-1] == 0:
        return amax
    plogp = _prefix(_xlogx(counts))
    occupied = _prefix(counts > 0)
    bulk = int(np.searchsorted(mass, _BULK * mass[-1]))
    if occupied[bulk] < bulk / 2:
        return amax
    kept = np.arange(_ENTROPY_LEVELS, used + 1)
    divergence = np.concatenate([_divergences(part, counts, mass, plogp, occupied) for part in _chunks(kept, 512)])
    # Of candidates that are equal but for rounding the widest: it clips least.
    best = kept[divergence <= divergence.min() + _SAME_DIVERGENCE][-1]
    return min(float(best) * histogram.width, amax)


def _divergences(
    kept: NDArray[np.int64],
    counts: NDArray[np.float64],
    mass: NDArray[np.float64],
    plogp: NDArray[np.float64],
    occupied: NDArray[np.float64],
) -> NDArray[np.float64]:
    """KL divergence in nats of each number of ``kept`` bins, inf where Q is zero and P is not."""
    edges = -(-np.arange(_ENTROPY_LEVELS + 1)[None, :] * kept[:, None] // _ENTROPY_LEVELS)
    outliers = mass[-1] - mass[kept]
    last = counts[kept - 1]
    q_mass = np.diff(mass[edges], axis=1)
    q_bins = np.diff(occupied[edges], axis=1)
    # The outliers belong to P's last bin, and make it count as occupied.
    q_bins[:, -1] += (last == 0) & (outliers > 0)
    p_mass = q_mass.copy()
    p_mass[:, -1] += outliers
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = p_mass * np.log(q_mass / q_bins)
        terms[p_mass == 0] = 0
        total = mass[-1]
        own = plogp[kept - 1] + _xlogx(last + outliers)
        divergence = (own - terms.sum(axis=1)) / total - math.log(total) + np.log(mass[kept])
    return np.where(mass[kept] > 0, divergence, math.inf)


def mse(histogram: Histogram, amax: float, steps: int = SYMMETRIC_STEPS) -> float:
    """The clipping with the least :func:`quantisation_error`, searched from ``amax / 64`` to ``amax``.

    A geometric grid, then finer grids around its best point. The result is within 0.1 % of a local optimum.
    """
    low, high = amax * _MSE_LOWEST, amax
    best, points = amax, _MSE_COARSE
    for _ in range(_MSE_ROUNDS):
        grid = np.geomspace(low, high, points)
        at = int(np.argmin(quantisation_error(histogram, grid, steps)))
        best = float(grid[at])
        low, high, points = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, points - 1)]), _MSE_FINE
    return min(best, amax)


def quantisation_error(
    histogram: Histogram, amax: NDArray[np.float64], steps: int = SYMMETRIC_STEPS
) -> NDArray[np.float64]:
    """Mean squared error of symmetric int8 for each candidate, clipping included.

    With the step ``s = amax / 127`` and ``q = min(round(|x| / s), 127)`` the error of a value is ``(|x| - q s)^2``.
    Values count as uniform inside their bin, those of the first bin as zero (after a ReLU they are). Expanding the
    square and summing by parts leaves the tails of ``1`` and ``|x|`` above the 127 rounding limits
    ``t_q = (q - 1/2) s``:

        sum x^2 - 2 s sum_q tail1(t_q) + s^2 sum_q (2 q - 1) tail0(t_q)

    Args:
        histogram: magnitudes of one tensor.
        amax: float64 ``[K]``, all > 0.
        steps: integers from 0 to amax; the formulas above are for 127.

    Returns:
        float64 ``[K]``, in units of the tensor's values squared.
    """
    counts = histogram.counts.astype(np.float64)
    total = counts.sum()
    counts[0] = 0
    bins = counts.size
    edges = np.arange(bins + 1, dtype=np.float64)
    first = counts * (edges[:-1] + 0.5)
    tail0 = np.append(np.cumsum(counts[::-1])[::-1], 0)
    tail1 = np.append(np.cumsum(first[::-1])[::-1], 0)
    squares = float((counts * (edges[1:] ** 3 - edges[:-1] ** 3)).sum()) / 3

    step = amax / (steps * histogram.width)
    limits = (np.arange(1, steps + 1) - 0.5) * step[:, None]
    at = np.minimum(limits.astype(np.int64), bins - 1)
    limits = np.minimum(limits, bins)
    partial = counts[at]
    above0 = tail0[at + 1] + partial * (at + 1 - limits)
    above1 = tail1[at + 1] + partial * ((at + 1.0) ** 2 - limits**2) / 2
    odd = 2 * np.arange(1, steps + 1) - 1
    error = squares - 2 * step * above1.sum(axis=1) + step**2 * (odd * above0).sum(axis=1)
    result: NDArray[np.float64] = error / max(total, 1) * histogram.width**2
    return result


def _prefix(values: NDArray[Any]) -> NDArray[np.float64]:
    """``out[i] = sum(values[:i])``, one longer than ``values``."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(values: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = values * np.log(np.where(values > 0, values, 1))
    return result


def _chunks(values: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
