"""Accuracy class by class, and which classes are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ClassRow:
    """One class that has images. Percentages are 0 to 100; the last two are None without a reference.

    Attributes:
        index, label: of the class.
        images: with this true class.
        top1, reference_top1: share of them that the bundle and FP32 get right.
        agreement: share of them with the same top-1 from both.
    """

    index: int
    label: str
    images: int
    top1: float
    reference_top1: float | None
    agreement: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@dataclass(frozen=True)
class Confusion:
    """Images of class ``true`` that are taken for class ``predicted`` (indices), by the bundle and by FP32."""

    true: int
    predicted: int
    images: int
    reference_images: int | None

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """The fields, with the names of the classes."""
        return {**asdict(self), "true_label": labels[self.true], "predicted_label": labels[self.predicted]}


class ClassTable:
    """Counters for each class, and for each pair that was confused: memory grows with the pairs that occur.

    Args:
        classes: how many there are, C.
    """

    def __init__(self, classes: int) -> None:
        self.images, self.hits, self.reference_hits, self.agreeing = (np.zeros(classes, np.int64) for _ in range(4))
        #: Pairs ``(true, found)`` that are not equal, of the bundle and of FP32.
        self.confused: tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]] = Counter(), Counter()
        self.compared = False

    def add(
        self, targets: NDArray[np.int64], predicted: NDArray[np.int32], reference: NDArray[np.int32] | None = None
    ) -> None:
        """Count N images.

        Args:
            targets: true classes ``[N]``; images with ``-1``, unknown, are left out.
            predicted, reference: top-1 of the bundle and of FP32 ``[N]``.
        """
        known = targets >= 0
        true, found = targets[known], predicted[known]
        classes = len(self.images)
        self.images += np.bincount(true, minlength=classes)
        self.hits += np.bincount(true[found == true], minlength=classes)
        self.confused[0].update(_wrong(true, found))
        if reference is None:
            return
        self.compared = True
        expected = reference[known]
        self.reference_hits += np.bincount(true[expected == true], minlength=classes)
        self.agreeing += np.bincount(true[expected == found], minlength=classes)
        self.confused[1].update(_wrong(true, expected))

    def rows(self, labels: Sequence[str]) -> list[ClassRow]:
        """The classes that have images, in the order of the model."""
        rows = []
        for index in np.flatnonzero(self.images).tolist():
            count = int(self.images[index])
            top1, reference, agreement = (
                100 * int(hits[index]) / count for hits in (self.hits, self.reference_hits, self.agreeing)
            )
            compared = (reference, agreement) if self.compared else (None, None)
            rows.append(ClassRow(index, labels[index], count, top1, *compared))
        return rows

    def reference_pairs(self) -> Counter[tuple[int, int]]:
        """How many images of a class FP32 takes for which, ``(true, found)``; empty without FP32."""
        right = {(index, index): int(hits) for index, hits in enumerate(self.reference_hits) if hits}
        return self.confused[1] + Counter(right)

    def confusions(self, most: int) -> list[Confusion]:
        """The ``most`` frequent ones of the bundle; ties in the order of the classes."""
        ranked = sorted(self.confused[0].items(), key=lambda item: (-item[1], item[0]))[:most]
        return [Confusion(*pair, count, self.confused[1][pair] if self.compared else None) for pair, count in ranked]


def _wrong(true: NDArray[np.int64], found: NDArray[np.int32]) -> list[tuple[int, int]]:
    wrong = true != found
    return list(zip(true[wrong].tolist(), found[wrong].tolist(), strict=True))
