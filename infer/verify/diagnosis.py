"""What a loss of accuracy comes from: the pre-processing, the precision, or chance.

Two differences are told apart. FP32 against the published accuracy of the same weights: it has lost nothing to
precision, so what it lacks was lost before the network, in the images. The bundle against FP32 on the same images: they
saw the same pixels, so what it lacks was lost in the arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

from infer.bundle import ModelInfo
from infer.bundle.accuracy_record import Diagnosis, Figures
from infer.bundle.preprocessing import IMAGENET, Preprocessing
from infer.checks.blame import Blame
from infer.datasets.imagenet import VALIDATION_IMAGES

TOLERANCE = 0.5
"""Points of top-1 that explain nothing: two published evaluations of the same iResNet weights differ by up to 0.19."""

SUBSET = 5_000
"""Fewer images than this accuse nobody."""

_SQUASHED = 1.65


def standard_error(top1: float, images: int, population: int | None = None) -> float:
    """Binomial standard error in points of a top-1 in percent; with a ``population`` of which the images are a part,
    of the difference from its top-1, which is 0 for the whole."""
    share = top1 / 100
    part = max(0.0, 1 - images / population) if population else 1.0
    return 100 * math.sqrt(share * (1 - share) / images * part)


def diagnose(
    figures: Figures,
    model: ModelInfo,
    spec: Preprocessing,
    *,
    precision: str,
    validation_set: bool,
    foreign_labels: int = 0,
    fast_decode: bool = False,
    cause: Blame | None = None,
) -> Diagnosis:
    """Say where the accuracy went.

    Args:
        figures: from :meth:`infer.verify.accuracy.Tally.figures`.
        model: of the bundle, with the published figures where there are any.
        spec: its pre-processing.
        precision: of the bundle; without a reference, the top-1 of an fp32 bundle is FP32's.
        validation_set: the images are those of ILSVRC2012's validation set.
        foreign_labels: images whose class is not the one that ILSVRC2012 gives them.
        fast_decode: the bundle saw other pixels than FP32.
        cause: what lost accuracy against FP32, from :func:`infer.verify.cause.find_cause`.
    """
    found = _diagnose(figures, model, spec, precision, validation_set, foreign_labels, fast_decode, cause)
    return found if cause is None else Diagnosis(found.kind, found.text, cause.part)


def _diagnose(
    figures: Figures,
    model: ModelInfo,
    spec: Preprocessing,
    precision: str,
    validation_set: bool,
    foreign_labels: int,
    fast_decode: bool,
    cause: Blame | None,
) -> Diagnosis:
    if figures.top1 is None:
        return Diagnosis(
            "precision" if cause else "unknown", cause.text if cause else "no labels, no accuracy to explain"
        )
    lost = _precision_loss(figures, precision, cause)
    if lost is not None and fast_decode:
        lost += " (fast decoding included)"
    if model.top1 is None or not validation_set:
        why = (
            "no accuracy is published for these weights"
            if model.top1 is None
            else "these are not known to be images of the ILSVRC2012 validation set (ILSVRC2012_val_*)"
        )
        if lost is not None:
            return Diagnosis("precision", lost)
        return Diagnosis("unknown", f"{why}, so wrong pre-processing would not show here")
    top1 = figures.reference_top1
    if top1 is None and precision == "fp32":
        top1 = figures.top1
    images = figures.labelled
    if top1 is None:
        gap = model.top1 - figures.top1
        return Diagnosis(
            "unknown",
            f"top-1 is {figures.top1:.2f} %, {_points(gap)} from the published {model.top1:.2f} %; without FP32 it "
            "cannot be said whether pre-processing or precision is the reason. Pass --reference BUNDLE",
        )
    return _against_published(top1, model.top1, images, lost, foreign_labels, spec)


def _against_published(
    top1: float, published: float, images: int, lost: str | None, foreign_labels: int, spec: Preprocessing
) -> Diagnosis:
    gap = published - top1
    compared = f"FP32 has {top1:.2f} % top-1, published are {published:.2f} %"
    foreign = 100 * foreign_labels / images  # more than so many points they cannot make
    if foreign > TOLERANCE:
        return Diagnosis(
            "labels",
            f"{foreign_labels} of {images} images have another class than ILSVRC2012 gives them, so the published "
            f"accuracy does not apply ({compared}). Check the ground-truth file or the folders",
        )
    if images < SUBSET:
        error = standard_error(top1, images)
        text = (
            f"{compared}; with {images} images the standard error is {error:.2f} points, so this says nothing about "
            f"the pre-processing. Use {SUBSET:,} images or more"
        )
        return Diagnosis("precision" if lost else "subset", f"{lost}. {text}" if lost else text)
    doubt = 2 * standard_error(top1, images, VALIDATION_IMAGES) + foreign
    if gap > TOLERANCE + doubt:
        text = (
            f"{compared}: {_points(gap)} are missing before any precision is lost, which smells of wrong "
            f"pre-processing. {_what_to_check(spec)}"
        )
        return Diagnosis("both", f"{text}. Besides, {lost}") if lost else Diagnosis("pre-processing", text)
    if gap < -TOLERANCE - doubt:
        return Diagnosis(
            "unexpected",
            f"{compared}: {_points(-gap)} more than published. Are these the official weights, and the images and "
            "labels of the validation set?",
        )
    if lost is not None:
        return Diagnosis("precision", f"{compared}, so the pre-processing is right; {lost}")
    return Diagnosis("ok", f"{compared}, so the pre-processing is right; the precision agrees with FP32")


def lost_precision(figures: Figures) -> bool:
    """Whether the bundle's top-1 is worse than FP32's by more than tolerance and chance."""
    if figures.reference_top1 is None or figures.top1 is None:
        return False
    drop = figures.reference_top1 - figures.top1
    # Only the images that one gets right and the other wrong decide (McNemar 1947).
    doubt = 2 * 100 * math.sqrt((figures.lost or 0) + (figures.gained or 0)) / figures.labelled
    return drop > TOLERANCE and drop > doubt


def _precision_loss(figures: Figures, precision: str, cause: Blame | None) -> str | None:
    """One line on what is lost against FP32; None where nothing is."""
    if not lost_precision(figures):
        return None if cause is None else cause.text
    assert figures.reference_top1 is not None and figures.top1 is not None
    drop = figures.reference_top1 - figures.top1
    what_to_do = (
        "Look at --layers-limit 64 and at the calibration data, or build PRECISION=auto"
        if precision in ("int8", "auto", "fp8")
        else "See whether another --target loses it too"
    )
    return (
        f"the loss is one of precision: {_points(drop)} of top-1 below FP32 on the same pixels ({figures.lost or 0} "
        f"images lost, {figures.gained or 0} gained). {what_to_do if cause is None else cause.text}"
    )


def _what_to_check(spec: Preprocessing) -> str:
    differences = [
        f"{name} {_shown(found)} in place of {_shown(expected)}"
        for name, found in spec.to_json().items()
        if found != (expected := IMAGENET.to_json()[name])
    ]
    if differences:
        return f"This bundle was built with {'; '.join(differences)}: build it with the published values"
    return (
        f"The bundle's own is the published one (short side to {IMAGENET.resize}, centre crop {IMAGENET.crop}, RGB), "
        f"so look at the images: squashed to {IMAGENET.resize}x{IMAGENET.resize} in place of a resized short side "
        f"(that cost one deployment {_SQUASHED} points), scaled or cropped beforehand, BGR, or compressed again"
    )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _points(value: float) -> str:
    return f"{value:.2f} points"
