"""A verdict that cannot be wrong: what passes, what fails, and what nobody can tell."""

from __future__ import annotations

import numpy as np
import pytest

from infer.bundle.accuracy_record import Counts
from infer.verify.verdict import Labels, judge

LABELS = Labels(classes=10, commonest=1000)


def counts(images=10_000, fp32=0.94, lost=11, gained=6, **changes):
    right = round(fp32 * images)
    fields = {
        "images": images, "labelled": images, "reference_images": images, "reference_top1": right,
        "top1": right - lost + gained, "lost": lost, "gained": gained, "agreeing": images - lost - gained,
    }  # fmt: skip
    return Counts(**fields | changes)


def test_a_good_bundle_passes():
    verdict = judge(counts(), LABELS)
    assert verdict.outcome == "passed"
    assert verdict.reason == (
        "top-1 93.95 %, FP32 94.00 %: the loss lies between -0.03 and 0.14 points (95 %), 0.94 are allowed (99.00% of "
        "FP32's)"
    )


def test_a_bad_one_fails():
    assert judge(counts(lost=300, gained=50), LABELS).outcome == "failed"


def test_in_between_it_says_what_would_decide():
    near = counts(lost=110, gained=20)  # 0.90 of 0.94 points
    whole = judge(near, LABELS)
    assert whole.outcome == "inconclusive"
    assert "With all 10000 images it meets a threshold of 98.79%" in whole.reason
    part = judge(near, LABELS, complete=False)
    assert part.outcome == "inconclusive" and "images would decide it" in part.reason


@pytest.mark.parametrize("images", [1, 20, 100])
def test_few_images_do_not_pass(images):
    few = counts(images, fp32=1.0, lost=0, gained=0)
    assert judge(few, Labels(10, -(-images // 10))).outcome == "inconclusive"


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("right", [0.0, 0.05, 0.1])
def test_nothing_passes_with_an_fp32_at_chance(threshold, right):
    verdict = judge(counts(2000, fp32=right, lost=0, gained=0), Labels(10, 200), threshold)
    assert verdict.outcome == "failed" and "no better than chance" in verdict.reason


def test_the_hint_of_the_labels_is_told():
    verdict = judge(counts(2000, fp32=0.0, lost=0, gained=0), Labels(10, 200, hint="the labels count from 1"))
    assert (verdict.outcome, verdict.reason) == ("failed", "FP32 itself has 0.00 % top-1: the labels count from 1")


def test_the_commonest_label_is_no_art():
    naming = counts(1000, fp32=0.9, lost=0, gained=0)
    assert judge(naming, Labels(10, 900)).outcome == "inconclusive"
    assert judge(naming, Labels(10, 500), 0.9).outcome == "passed"
    assert "all images have one label" in judge(naming, Labels(10, 1000)).reason


def test_unreadable_images_fail_above_their_share_and_are_always_named():
    verdict = judge(counts(1, lost=0, gained=0, unreadable=19), LABELS)
    assert verdict.outcome == "failed" and verdict.reason.startswith(
        "19 of 20 images could not be read, at most 1.00 %"
    )
    some = judge(counts(unreadable=100), LABELS)
    assert some.outcome == "passed" and some.reason.endswith("; 100 images could not be read")
    assert judge(counts(unreadable=102), LABELS).outcome == "failed"
    assert judge(counts(unreadable=3000), LABELS, unreadable=0.5).outcome == "passed"


def test_labels_that_imagenet_contradicts_never_pass():
    verdict = judge(counts(), Labels(1000, 50, contradicted=1))
    assert verdict.outcome == "failed" and verdict.reason.startswith("1 images have another label than ImageNet")


def test_numbers_that_are_none_fail():
    verdict = judge(counts(not_finite=1), LABELS)
    assert (verdict.outcome, verdict.reason) == ("failed", "NaN or infinite logits for 1 of 10000 images")


def test_without_a_reference_nothing_is_judged():
    assert "pass --reference BUNDLE" in judge(Counts(images=9, labelled=9, top1=9), LABELS).reason


@pytest.mark.parametrize(
    ("agreeing", "images", "outcome"),
    [(9960, 10_000, "passed"), (9910, 10_000, "inconclusive"), (9700, 10_000, "failed"), (80, 80, "inconclusive")],
)
def test_without_labels_agreement_decides(agreeing, images, outcome):
    verdict = judge(Counts(images=images, reference_images=images, agreeing=agreeing), LABELS)
    assert verdict.outcome == outcome and f"of {images} images, between" in verdict.reason


@pytest.mark.parametrize("images", [500, 2000])
def test_a_bundle_just_below_the_threshold_seldom_passes(images):
    """1,000 verifications of bundles that lose a little more than is allowed: at most 5 % may pass."""
    rng = np.random.default_rng(7)
    fp32, threshold = 0.8, 0.97
    drop = 1.001 * (1 - threshold) * fp32
    passed = 0
    for _ in range(1000):
        both, lost, gained, _ = rng.multinomial(images, (fp32 - 0.01 - drop, 0.01 + drop, 0.01, 0.19 + 0.0))
        right = both + lost
        found = counts(images, right / images, int(lost), int(gained))
        passed += judge(found, Labels(100, images // 100), threshold).outcome == "passed"
    assert passed <= 50


def test_one_image_more_or_less_decides_by_count():
    """Rounded percentages once failed 66.00 % against 66.00 %."""
    equal = counts(150_000, fp32=100 / 150, lost=1000, gained=0)
    assert judge(equal, Labels(1000, 300), 0.99).outcome == "inconclusive"
    assert judge(equal, Labels(1000, 300), 0.985).outcome == "passed"
