"""How far single images are from FP32, and the images that are farthest.

The measure is the Kullback-Leibler divergence of the class probabilities, ``sum p ln(p / q)`` with p those of FP32 and
q those of the bundle, in nats: 0 for equal ones, and not moved by a constant added to all logits.
"""

from __future__ import annotations

import heapq
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infer.backends.base import Outputs
from infer.names import escape_name

KEPT = 24
# Decades of the histogram, 10^-9 to 10^2 nats; what is outside goes into the first or last.
DECADES = (-9, 2)
_THUMBNAIL = 128


def divergence(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Divergence of each row from its reference, nats, float64 ``[N]``.

    Args:
        logits, reference: ``[N, C]``. A row that is not finite gives infinity.
    """
    finite = np.isfinite(logits).all(axis=1) & np.isfinite(reference).all(axis=1)
    result = np.full(len(logits), math.inf)
    q, p = _log_softmax(logits[finite]), _log_softmax(reference[finite])
    # Rounding can leave a tiny negative sum.
    result[finite] = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0)
    return result


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


@dataclass(frozen=True)
class Deviation:
    """One image on which the bundle and FP32 differ.

    Attributes:
        name: of the image.
        target: true class, -1 where unknown.
        predicted, score: top-1 of the bundle and its probability.
        reference, reference_score: the same of FP32.
        divergence: nats; infinite where the logits are not finite.
        thumbnail: what the network saw, scaled down, as JPEG.
    """

    name: str
    target: int
    predicted: int
    score: float
    reference: int
    reference_score: float
    divergence: float
    thumbnail: bytes = field(repr=False)

    @property
    def flipped(self) -> bool:
        """Whether the top-1 differs."""
        return self.predicted != self.reference

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """The fields without the thumbnail, with class names; null for what is not finite."""
        return {
            "name": escape_name(self.name),
            "true": self.target if self.target >= 0 else None,
            "true_label": labels[self.target] if self.target >= 0 else None,
            "predicted": self.predicted,
            "predicted_label": labels[self.predicted],
            "score": _finite(self.score),
            "reference": self.reference,
            "reference_label": labels[self.reference],
            "reference_score": _finite(self.reference_score),
            "flipped": self.flipped,
            "divergence": _finite(self.divergence),
        }


def _finite(value: float) -> float | None:
    return round(value, 9) if math.isfinite(value) else None


class Deviations:
    """The ``kept`` images that differ most, those with another top-1 first, and a histogram of all.

    Memory: the thumbnails of ``kept`` images. One is made only when its image enters.

    Attributes:
        histogram: int64 ``[2, decades]``, images by decade of their divergence: same top-1, other top-1.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        # The place in the set breaks ties: the earlier image stays.
        self._heap: list[tuple[bool, float, int, Deviation]] = []
        self.histogram = np.zeros((2, DECADES[1] - DECADES[0]), np.int64)

    def add(
        self,
        names: list[str],
        images: NDArray[np.uint8],
        targets: NDArray[np.int64],
        outputs: Outputs,
        reference: Outputs,
        places: Sequence[int],
    ) -> NDArray[np.float64]:
        """Look at a batch of N images (uint8 ``[N, crop, crop, 3]``), with their places in the set.

        Returns:
            Their divergences ``[N]``.
        """
        distances = divergence(outputs.logits, reference.logits)
        flipped = outputs.classes[:, 0] != reference.classes[:, 0]
        with np.errstate(divide="ignore"):
            decade = np.clip(np.floor(np.log10(distances)) - DECADES[0], 0, self.histogram.shape[1] - 1)
        np.add.at(self.histogram, (flipped.astype(np.int64), decade.astype(np.int64)), 1)
        for row, distance in enumerate(distances.tolist()):

            def item(row: int = row, distance: float = distance) -> Deviation:
                return Deviation(
                    names[row],
                    int(targets[row]),
                    int(outputs.classes[row, 0]),
                    float(outputs.scores[row, 0]),
                    int(reference.classes[row, 0]),
                    float(reference.scores[row, 0]),
                    distance,
                    _thumbnail(images[row]),
                )

            self.keep(bool(flipped[row]), distance, places[row], item)
        return distances

    def keep(self, flipped: bool, distance: float, place: int, make: Callable[[], Deviation]) -> None:
        """Take an image in where it is among those that differ most; it is made only then."""
        key = flipped, distance, -place
        if len(self._heap) == self._kept and key <= self._heap[0][:3]:
            return
        push = heapq.heappush if len(self._heap) < self._kept else heapq.heapreplace
        push(self._heap, (*key, make()))

    def placed(self) -> list[tuple[int, Deviation]]:
        """The images that differ most, worst first, with their places."""
        return [(-place, item) for *_, place, item in sorted(self._heap, key=lambda entry: entry[:3], reverse=True)]

    def worst(self) -> list[Deviation]:
        """The images that differ most, worst first."""
        return [item for _, item in self.placed()]


def _thumbnail(image: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()
