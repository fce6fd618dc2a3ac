"""Whether a bundle is good enough, decided on counts of images.

A verdict is about a difference on the same images, so the interval is paired (:func:`infer.verify.intervals.tango`).
*Passed*: all of the interval lies below what the threshold allows to lose. *Failed*: all of it lies above. Else
*inconclusive*: there are too few images to tell. Whatever the threshold, nothing passes that cannot be judged: too many
images that could not be read, numbers that are none, labels that are wrong, an FP32 that is no better than chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from infer.bundle.accuracy_record import Counts, Outcome
from infer.verify.intervals import Z999, images_needed, tango, wilson

DEFAULT_THRESHOLD = 0.99
#: Share of the images that may be unreadable.
DEFAULT_UNREADABLE = 0.01
# FP32 whose 99.9 % bound lies below twice chance (and this share) is at chance, and no matter of few images.
_AT_CHANCE = 0.02


@dataclass(frozen=True)
class Verdict:
    """The outcome, and one line that says why."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Labels:
    """What is known of the labels of the images.

    Attributes:
        classes: of the model.
        commonest: images of the class that has most.
        contradicted: images whose label is not the one that ImageNet gives them by their names.
        hint: what the labels look like where they are wrong, such as ``labels are one too large``; else empty.
    """

    classes: int
    commonest: int = 0
    contradicted: int = 0
    hint: str = ""


def judge(
    counts: Counts,
    labels: Labels,
    threshold: float = DEFAULT_THRESHOLD,
    *,
    unreadable: float = DEFAULT_UNREADABLE,
    complete: bool = True,
) -> Verdict:
    """Compare with FP32: top-1 at least ``threshold`` times FP32's; without labels, agreement at least ``threshold``.

    Args:
        counts: of a pass.
        labels: of its images.
        threshold: share, 0 to 1.
        unreadable: share of the images that may be unreadable, 0 to 1.
        complete: all images of the data set were run, so that there are no more to be had.
    """
    verdict = _unusable(counts, labels, unreadable)
    if verdict is None and counts.labelled:
        verdict = _chance(counts, labels) or _top1(counts, threshold, complete)
    verdict = verdict or _agreement(counts, threshold)
    if not counts.unreadable or "could not be read" in verdict.reason:
        return verdict
    return Verdict(verdict.outcome, f"{verdict.reason}; {counts.unreadable} images could not be read")


def _unusable(counts: Counts, labels: Labels, unreadable: float) -> Verdict | None:
    everything = counts.images + counts.unreadable
    if counts.not_finite:
        return Verdict("failed", f"NaN or infinite logits for {counts.not_finite} of {counts.images} images")
    if counts.unreadable > unreadable * everything:
        share = f"at most {_percent(unreadable, 1)} may be"
        return Verdict("failed", f"{counts.unreadable} of {everything} images could not be read, {share}")
    if not counts.reference_images:
        return Verdict("failed", "no FP32 reference to compare with; pass --reference BUNDLE")
    if counts.labelled and labels.contradicted:
        return Verdict(
            "failed",
            f"{labels.contradicted} images have another label than ImageNet gives the images of these names; check the "
            "ground-truth file or the folders",
        )
    return None


def _chance(counts: Counts, labels: Labels) -> Verdict | None:
    """Refuse an FP32 that does not see what the labels say."""
    bar = max(1 / labels.classes, labels.commonest / counts.labelled)
    low, high = wilson(counts.reference_top1, counts.labelled, Z999)
    if low > bar:
        return None
    found = f"FP32 itself has {_percent(counts.reference_top1, counts.labelled)} top-1"
    if labels.hint:
        return Verdict("failed", f"{found}: {labels.hint}")
    if high <= 2 * max(1 / labels.classes, _AT_CHANCE):
        return Verdict("failed", f"{found}, no better than chance: these labels are not the model's; check their order")
    if labels.commonest == counts.labelled:
        return Verdict("inconclusive", f"{found}, but all images have one label, which says nothing of the others")
    return Verdict(
        "inconclusive",
        f"{found} of {counts.labelled} images: too few to tell it from always naming the commonest label "
        f"({_percent(labels.commonest, counts.labelled)})",
    )


def _top1(counts: Counts, threshold: float, complete: bool) -> Verdict:
    images = counts.labelled
    allowed = (1 - threshold) * counts.reference_top1 / images
    low, high = tango(counts.lost, counts.gained, images)
    both = f"top-1 {_percent(counts.top1, images)}, FP32 {_percent(counts.reference_top1, images)}"
    between = f"the loss lies between {100 * low:.2f} and {100 * high:.2f} points (95 %)"
    text = f"{both}: {between}, {100 * allowed:.2f} are allowed ({threshold:.2%} of FP32's)"
    if high <= allowed:
        return Verdict("passed", text)
    if low > allowed:
        return Verdict("failed", text)
    return Verdict("inconclusive", f"{text}. {_what_would_decide(counts, allowed, high, complete)}")


def _what_would_decide(counts: Counts, allowed: float, high: float, complete: bool) -> str:
    if complete:
        met = 1 - high * counts.labelled / counts.reference_top1
        return f"With all {counts.labelled} images it meets a threshold of {max(0.0, met):.2%}"
    needed = images_needed(counts.lost, counts.gained, counts.labelled, allowed)
    if needed is None:
        return "No number of images like these would decide it"
    return f"Some {needed} images would decide it, if they came out like these {counts.labelled}"


def _agreement(counts: Counts, threshold: float) -> Verdict:
    images = counts.reference_images
    low, high = wilson(counts.agreeing, images)
    text = (
        f"agreement {_percent(counts.agreeing, images)} of {images} images, between {100 * low:.2f} and "
        f"{100 * high:.2f} % (95 %), {_percent(threshold, 1)} are needed"
    )
    outcome: Outcome = "passed" if low >= threshold else "failed" if high < threshold else "inconclusive"
    return Verdict(outcome, text)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f} %"
