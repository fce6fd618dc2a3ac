"""How well activation scales fit some images, tensor by tensor, from histograms of what the float graph computes.

Nothing is run in int8: an error that many layers amplify is measured where it is made, so that the figure means the
same in a network with random weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from calibration.histogram import Histogram
from calibration.int8 import SYMMETRIC_STEPS
from calibration.statistics import Statistics
from calibration.thresholds import quantisation_error
from infer.checks.blame import ScaleFit

# Mean squared relative error of rounding to E4M3: steps of 1/8 of the power of two below.
_FP8_ROUNDING = 6.5e-4


def scale_fit(
    statistics: Statistics,
    amax: Mapping[str, float],
    steps: Mapping[str, int],
    *,
    method: str = "unknown",
    fp8: bool = False,
) -> ScaleFit | None:
    """The error that the scales make on the images of ``statistics``, against the least possible.

    The noise to signal ratios of all tensors are added up. None where no tensor has both a scale and a signal.

    Args:
        statistics: with histograms.
        amax: largest magnitude that each tensor's integers, or fp8 numbers, reach; tensors without one are left out.
        steps: of tensors that have other than 127 from 0 to amax.
        method: of the calibration, for the result.
        fp8: numbers are E4M3, where only clipping depends on the scale.
    """
    best = statistics.amax("minmax" if fp8 else "mse", steps)
    total = least = 0.0
    worst, most = "", -math.inf
    for name, seen in statistics.tensors.items():
        chosen, signal = amax.get(name, 0.0), 0.0 if seen.histogram is None else _mean_square(seen.histogram)
        if seen.histogram is None or chosen <= 0 or signal <= 0 or best[name] <= 0:
            continue
        errors = [_error(seen.histogram, at, steps.get(name, SYMMETRIC_STEPS), fp8) for at in (chosen, best[name])]
        found, possible = (error / signal + (_FP8_ROUNDING if fp8 else 0.0) for error in errors)
        total, least = total + found, least + possible
        if found - possible > most:
            worst, most = name, found - possible
    if not worst:
        return None
    loss = 10 * math.log10(max(total, 1e-30) / max(least, 1e-30))
    return ScaleFit(method, loss, worst, amax[worst] / best[worst])


def _error(histogram: Histogram, amax: float, steps: int, fp8: bool) -> float:
    if not fp8:
        return float(quantisation_error(histogram, np.array([amax]), steps)[0])
    beyond = np.maximum(_middles(histogram) - amax, 0.0)
    return float((histogram.counts * beyond**2).sum() / max(histogram.counts.sum(), 1))


def _mean_square(histogram: Histogram) -> float:
    return float((histogram.counts[1:] * _middles(histogram)[1:] ** 2).sum() / max(histogram.counts.sum(), 1))


def _middles(histogram: Histogram) -> np.ndarray:
    return (np.arange(histogram.counts.size) + 0.5) * histogram.width
