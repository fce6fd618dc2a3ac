"""Whether the probabilities can be believed: reliability bins and the expected calibration error.

Guo et al. 2017, On Calibration of Modern Neural Networks: the top-1 probabilities are sorted into bins of equal width,
``(0, 1/M], (1/M, 2/M] ...``; a bin is reliable when the share of correct images in it equals their mean probability.
The error is the mean gap between the two, weighted by the images in a bin.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from infer.verify.exact_sum import ExactSum

BINS = 15


class Bin(msgspec.Struct, kw_only=True, rename={"start": "from", "end": "to"}):
    """Images whose confidence lies between two edges, all from 0 to 1.

    Attributes:
        start, end: the edges; ``from`` and ``to`` in JSON.
        images: how many.
        confidence, accuracy: mean of them; None where the bin is empty.
    """

    start: float
    end: float
    images: int
    confidence: float | None
    accuracy: float | None


class Reliability:
    """Counters over images, filled batch by batch.

    Attributes:
        images: int64 ``[bins]``, images in each bin.
        correct: int64 ``[bins]``, those of them whose top-1 is right.
        sums: of their top-1 probabilities, for each bin.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.images, self.correct = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        self.sums = [ExactSum() for _ in range(bins)]

    def add(self, confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_]) -> None:
        """Count N images by top-1 probability ``[N]`` and whether the top-1 is right ``[N]``; NaN is left out."""
        usable = np.isfinite(confidence)
        p, right = confidence[usable].astype(np.float64), correct[usable]
        bins = len(self.images)
        place = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
        self.images += np.bincount(place, minlength=bins)
        self.correct += np.bincount(place[right], minlength=bins)
        for bin_ in np.unique(place).tolist():
            self.sums[bin_].add(p[place == bin_])

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Sums of the top-1 probabilities ``[bins]``."""
        return np.array([float(one) for one in self.sums])

    @property
    def error(self) -> float | None:
        """Expected calibration error in percentage points; None for no images."""
        total = int(self.images.sum())
        return 100 * float(np.abs(self.correct - self.confidence).sum()) / total if total else None

    def bins(self) -> list[Bin]:
        """All of them, in order."""
        count, sums = len(self.images), self.confidence
        return [
            Bin(
                start=round(i / count, 6),
                end=round((i + 1) / count, 6),
                images=images,
                confidence=float(sums[i]) / images if images else None,
                accuracy=int(self.correct[i]) / images if images else None,
            )
            for i, images in enumerate(self.images.tolist())
        ]
