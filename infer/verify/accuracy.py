"""Accuracy of a bundle against labels and against FP32, measured by running the very bundle.

Differences from FP32 are taken on the logits: ``max |d|``, ``mean |d|``, the mean cosine, and the signal to
quantisation noise ratio ``10 log10(sum r^2 / sum (x - r)^2)`` in dB over all images. *Agreement* is the share of
images with the same top-1 as FP32, a far sharper measure than the loss of accuracy, in which gains hide losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.bundle import Manifest, now
from infer.bundle.accuracy_record import Accuracy, Counts, Figures
from infer.verify.exact_sum import ExactSum
from infer.verify.verdict import Verdict


@dataclass
class Tally:
    """Running sums over images; every derived value is a property. Percentages are 0 to 100.

    Attributes:
        images: counted so far.
        labelled: those of them with a true class.
        top1, top5, reference_top1, reference_top5: hits.
        agreeing: images with the same top-1 as the reference.
        lost, gained: images that only the reference, or only the bundle, gets right.
        not_finite: images with NaN or infinity among their logits, or FP32's; they count nowhere else.
        max_difference: of all logits.
        absolute, signal, noise, cosine: sums over the images, of ``|d|``, ``r^2``, ``d^2`` and the cosine.
        values: logits compared.
    """

    images: int = 0
    labelled: int = 0
    top1: int = 0
    top5: int = 0
    reference_images: int = 0
    reference_top1: int = 0
    reference_top5: int = 0
    agreeing: int = 0
    lost: int = 0
    gained: int = 0
    not_finite: int = 0
    max_difference: float = 0.0
    absolute: ExactSum = field(default_factory=ExactSum)
    values: int = 0
    signal: ExactSum = field(default_factory=ExactSum)
    noise: ExactSum = field(default_factory=ExactSum)
    cosine: ExactSum = field(default_factory=ExactSum)

    def add(self, outputs: Outputs, targets: NDArray[np.int64], reference: Outputs | None = None) -> None:
        """Count a batch.

        Args:
            outputs: of the bundle, N rows.
            targets: true classes int64 ``[N]``, ``-1`` where unknown.
            reference: outputs of FP32 on the same images.
        """
        self.images += len(targets)
        finite = finite_rows(outputs, reference)
        if reference is not None:
            reference = _rows(reference, finite)
        self.not_finite += int((~finite).sum())
        outputs, targets = _rows(outputs, finite), targets[finite]
        self.labelled += int((targets >= 0).sum())
        self.top1 += _hits(outputs, targets, 1)
        self.top5 += _hits(outputs, targets, 5)
        if reference is None:
            return
        self.reference_images += len(targets)
        self.reference_top1 += _hits(reference, targets, 1)
        self.reference_top5 += _hits(reference, targets, 5)
        ours, theirs = outputs.classes[:, 0] == targets, reference.classes[:, 0] == targets
        self.lost += int((theirs & ~ours).sum())
        self.gained += int((ours & ~theirs).sum())
        self.agreeing += int((outputs.classes[:, 0] == reference.classes[:, 0]).sum())
        x, r = outputs.logits.astype(np.float64), reference.logits.astype(np.float64)
        difference = np.abs(x - r)
        self.max_difference = max(self.max_difference, float(difference.max(initial=0)))
        # Sums of single images first: those are the same in whatever batch an image comes.
        self.absolute.add(difference.sum(axis=1))
        self.values += difference.size
        self.noise.add((difference**2).sum(axis=1))
        self.signal.add((r**2).sum(axis=1))
        norms = np.sqrt((x**2).sum(axis=1)) * np.sqrt((r**2).sum(axis=1))
        self.cosine.add((x * r).sum(axis=1) / np.maximum(norms, 1e-30))

    def counts(self) -> Counts:
        """The numbers that the percentages of :meth:`figures` follow from."""
        return Counts(
            images=self.images,
            labelled=self.labelled,
            not_finite=self.not_finite,
            top1=self.top1,
            top5=self.top5,
            reference_images=self.reference_images,
            reference_top1=self.reference_top1,
            reference_top5=self.reference_top5,
            lost=self.lost,
            gained=self.gained,
            agreeing=self.agreeing,
        )

    def figures(self) -> Figures:
        """Every figure that the data allow."""
        found = Figures(images=self.images, labelled=self.labelled, not_finite=self.not_finite)
        if self.labelled:
            found.top1, found.top5 = _percent(self.top1, self.labelled), _percent(self.top5, self.labelled)
        if self.reference_images:
            if self.labelled:
                found.reference_top1 = _percent(self.reference_top1, self.labelled)
                found.reference_top5 = _percent(self.reference_top5, self.labelled)
                found.lost, found.gained = self.lost, self.gained
            found.agreement = _percent(self.agreeing, self.reference_images)
            found.disagreeing = self.reference_images - self.agreeing
            found.max_logit_difference = self.max_difference
            noise, signal = float(self.noise), float(self.signal)
            found.mean_logit_difference = float(self.absolute) / max(1, self.values)
            found.cosine = float(self.cosine) / max(1, self.reference_images)
            found.exact = not noise
            found.sqnr_db = 10 * math.log10(signal / noise) if noise and signal else None
        return found


def finite_rows(outputs: Outputs, reference: Outputs | None) -> NDArray[np.bool_]:
    """Which images ``[N]`` have no NaN and no infinity among the logits of either."""
    logits = outputs.logits if reference is None else np.concatenate([outputs.logits, reference.logits], axis=1)
    return np.asarray(np.isfinite(logits).all(axis=1), np.bool_)


def _rows(outputs: Outputs, chosen: NDArray[np.bool_]) -> Outputs:
    return Outputs(outputs.logits[chosen], outputs.scores[chosen], outputs.classes[chosen])


def _hits(outputs: Outputs, targets: NDArray[np.int64], k: int) -> int:
    return int((outputs.classes[:, :k] == targets[:, None]).any(axis=1).sum())


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole


def record(
    manifest: Manifest,
    target: str,
    device: str,
    counts: Counts,
    figures: Figures,
    verdict: Verdict,
    threshold: float,
    data: str,
    reference: str | None,
) -> Accuracy:
    """What goes into the manifest."""
    plans = {plan.target: plan for plan in manifest.plans}
    plan = plans.get(target)
    return Accuracy(
        target=target,
        device=device,
        plan_sha256=plan.files[0].sha256 if plan else None,
        data=data,
        reference=reference,
        outcome=verdict.outcome,
        verdict=verdict.reason,
        threshold=threshold,
        measured=now(),
        counts=counts,
        figures=figures,
    )
