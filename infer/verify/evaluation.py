"""Everything that one pass over labelled images tells about a bundle.

Memory does not grow with the images: counters for each class, the pairs of classes that were confused, and the few
images that differ most from FP32. The row of each image goes to a file as soon as it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.bundle.accuracy_record import Counts, Figures
from infer.datasets.real_labels import RealLabels
from infer.runner import Runner
from infer.sources import Record
from infer.verify.accuracy import Tally, finite_rows
from infer.verify.class_table import ClassRow, ClassTable, Confusion
from infer.verify.deviations import DECADES, Deviation, Deviations
from infer.verify.intervals import wilson
from infer.verify.reliability import Bin, Reliability

CONFUSIONS = 50


class Labelled(NamedTuple):
    """N images with their names and classes.

    Attributes:
        records: the images.
        images: uint8 ``[N, crop, crop, 3]``.
        targets: true classes int64 ``[N]``, -1 where unknown.
        exact: what the reference gets, of the shape of ``images``; None for the same.
        places: of the images in the data set ``[N]``; None where nobody asks for them.
    """

    records: list[Record]
    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    exact: NDArray[np.uint8] | None = None
    places: Sequence[int] | None = None


class ImageRow(NamedTuple):
    """What the bundle and FP32 say about one image; classes are indices, the last four None without a reference."""

    name: str
    true: int | None
    predicted: int
    score: float
    reference: int | None
    reference_score: float | None
    agrees: bool | None
    divergence: float | None


@dataclass
class Evaluation:
    """Counters of one pass.

    Attributes:
        labels: class names in the order of the model.
        real: reassessed labels to count too.
        each: called with the row of every image, in order, and its place in the set.
    """

    labels: Sequence[str]
    real: RealLabels | None = None
    each: Callable[[ImageRow, int], None] | None = None
    tally: Tally = field(default_factory=Tally)
    reliability: Reliability = field(default_factory=Reliability)
    reference_reliability: Reliability = field(default_factory=Reliability)
    deviations: Deviations = field(default_factory=Deviations)
    classes: ClassTable = field(init=False)
    _seen: int = 0

    def __post_init__(self) -> None:
        self.classes = ClassTable(len(self.labels))

    def add(self, batch: Labelled, outputs: Outputs, reference: Outputs | None) -> None:
        """Count a batch; ``reference`` is what FP32 gives for the same images."""
        targets, found = batch.targets, outputs.classes[:, 0]
        places = range(self._seen, self._seen + len(targets)) if batch.places is None else batch.places
        self._seen += len(targets)
        expected = None if reference is None else reference.classes[:, 0]
        self.tally.add(outputs, targets, reference)
        finite = finite_rows(outputs, reference)
        known = finite & (targets >= 0)
        self.classes.add(targets[finite], found[finite], None if expected is None else expected[finite])
        self.reliability.add(outputs.scores[known, 0], (found == targets)[known])
        distances: NDArray[np.float64] | None = None
        if reference is not None and expected is not None:
            self.reference_reliability.add(reference.scores[known, 0], (expected == targets)[known])
            names = [record.name for record in batch.records]
            distances = self.deviations.add(names, batch.images, targets, outputs, reference, places)
        if self.real is not None:
            records = [record for record, usable in zip(batch.records, finite, strict=True) if usable]
            self.real.add(records, found[finite], None if expected is None else expected[finite])
        if self.each is not None:
            for place, row in zip(places, _rows(batch, outputs, reference, distances), strict=True):
                self.each(row, place)

    def counts(self, unreadable: int) -> Counts:
        """Numbers of images; ``unreadable`` were not among those that were added."""
        counts = self.tally.counts()
        counts.unreadable = unreadable
        if self.real is not None:
            counts.real_images, counts.real_top1 = self.real.images, self.real.hits
            counts.reference_real_top1 = self.real.reference_hits if self.tally.reference_images else 0
        return counts

    def figures(self) -> Figures:
        """Those of :meth:`Tally.figures`, the 95 % interval of top-1, calibration errors and real labels.

        Percentages are 0 to 100, calibration errors percentage points.
        """
        figures = self.tally.figures()
        if self.tally.labelled:
            low, high = wilson(self.tally.top1, self.tally.labelled)
            figures.top1_interval = 100 * low, 100 * high
        figures.ece, figures.reference_ece = self.reliability.error, self.reference_reliability.error
        if self.real is not None:
            self.real.fill(figures)
        return figures

    def details(self) -> Details:
        """What is too much for a manifest."""
        return Details(
            self.classes.rows(self.labels),
            self.classes.confusions(CONFUSIONS),
            self.reliability.bins(),
            self.reference_reliability.bins() if self.tally.reference_images else None,
            self.deviations.histogram if self.tally.reference_images else None,
            self.deviations.worst(),
        )


@dataclass(frozen=True)
class Details:
    """The tables behind the figures.

    Attributes:
        classes: a row for each class that has images.
        confusions: the most frequent ones, most first.
        reliability, reference_reliability: bins, see :class:`infer.verify.reliability.Bin`.
        divergences: int64 ``[2, decades]``, see :class:`infer.verify.deviations.Deviations`; None without a reference.
        differing: the images that differ most from FP32, worst first.
    """

    classes: list[ClassRow]
    confusions: list[Confusion]
    reliability: list[Bin]
    reference_reliability: list[Bin] | None
    divergences: NDArray[np.int64] | None
    differing: list[Deviation]

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """Ready for :func:`json.dump`, without the thumbnails."""
        divergences = None
        if self.divergences is not None:
            same, other = self.divergences.tolist()
            divergences = {"first_decade": DECADES[0], "same_top1": same, "other_top1": other}
        return {
            "classes": [row.to_json() for row in self.classes],
            "confusions": [confusion.to_json(labels) for confusion in self.confusions],
            "reliability": msgspec.to_builtins(self.reliability),
            "reference_reliability": msgspec.to_builtins(self.reference_reliability),
            "divergences": divergences,
            "differing": [item.to_json(labels) for item in self.differing],
        }


def evaluate(runner: Runner, reference: Runner | None, batches: Iterable[Labelled], evaluation: Evaluation) -> None:
    """Run every batch through ``runner`` and, when given, ``reference`` (FP32), into ``evaluation``."""
    for batch, outputs in runner.stream_pairs((batch, batch.images) for batch in batches):
        pixels = batch.images if batch.exact is None else batch.exact
        expected = reference.infer(pixels) if reference is not None else None
        evaluation.add(batch, outputs, expected)


def _rows(
    batch: Labelled, outputs: Outputs, reference: Outputs | None, distances: NDArray[np.float64] | None
) -> Iterable[ImageRow]:
    found, scores = outputs.classes[:, 0].tolist(), outputs.scores[:, 0].tolist()
    for row, (record, target) in enumerate(zip(batch.records, batch.targets.tolist(), strict=True)):
        head = record.name, target if target >= 0 else None, found[row], scores[row]
        if reference is None or distances is None:
            yield ImageRow(*head, None, None, None, None)
        else:
            expected = int(reference.classes[row, 0])
            score = float(reference.scores[row, 0])
            yield ImageRow(*head, expected, score, found[row] == expected, float(distances[row]))
