"""Verdicts about pre-processing and precision, and the intervals they stand on."""

from __future__ import annotations

import math

import pytest
from specs import sized

from infer.bundle import ModelInfo
from infer.bundle.accuracy_record import Figures
from infer.bundle.preprocessing import IMAGENET
from infer.verify.diagnosis import diagnose, standard_error

PUBLISHED = 77.31
OFFICIAL = ModelInfo(
    name="iresnet50", num_classes=1000, weights="official", weights_sha256="0" * 64, trained=True,
    top1=PUBLISHED, top5=93.588, published="a paper",
)  # fmt: skip
OWN = ModelInfo(name="iresnet50", num_classes=1000, weights="mine.pth", weights_sha256="0" * 64, trained=True)


def figures(top1, reference=None, images=50_000, lost=None, gained=None):
    result = Figures(images=images, labelled=images, top1=top1, reference_top1=reference)
    if reference is not None:
        drop = round((reference - top1) / 100 * images)
        result.lost = max(drop, 0) + images // 500 if lost is None else lost
        result.gained = result.lost - drop if gained is None else gained
    return result


def kind(figures, *, model=OFFICIAL, spec=IMAGENET, precision="int8", validation_set=True, **options):
    found = diagnose(figures, model, spec, precision=precision, validation_set=validation_set, **options)
    assert "\n" not in found.text
    return found


def test_as_published():
    found = kind(figures(77.20, 77.17))
    assert found.kind == "ok"
    assert "FP32 has 77.17 % top-1, published are 77.31 %, so the pre-processing is right" in found.text
    assert kind(figures(76.9, 77.31 - 0.49)).kind == "ok"


def test_squashed_images_are_recognised():
    found = kind(figures(75.60, PUBLISHED - 1.65))
    assert found.kind == "pre-processing"
    assert "1.65 points are missing before any precision is lost, which smells of wrong pre-processing" in found.text
    assert "squashed to 256x256 in place of a resized short side (that cost one deployment 1.65 points)" in found.text
    assert kind(figures(76.79, 76.80)).kind == "pre-processing"


def test_what_the_bundle_itself_does_otherwise_is_named():
    spec = sized(resize=232, mean=(0.5, 0.5, 0.5))
    text = kind(figures(75.6, 75.6), spec=spec).text
    assert "built with resize 232 in place of 256; mean 0.5 0.5 0.5 in place of 0.485 0.456 0.406" in text
    assert "squashed" not in text


def test_precision():
    found = kind(figures(74.0, 77.2))
    assert found.kind == "precision"
    assert "so the pre-processing is right; the loss is one of precision: 3.20 points of top-1 below FP32" in found.text
    assert "1700 images lost, 100 gained). Look at --layers" in found.text
    assert "See whether another --target" in kind(figures(74.0, 77.2), precision="fp16").text


def test_both():
    found = kind(figures(70.0, 75.6))
    assert found.kind == "both"
    assert "smells of wrong pre-processing" in found.text and "Besides, the loss is one of precision" in found.text


@pytest.mark.parametrize(
    ("drop", "lost", "gained", "images", "expected"),
    [
        (0.6, 310, 10, 50_000, "precision"),  # 300 images net of 320 that changed
        (0.4, 210, 10, 50_000, "ok"),  # within half a point
        (0.6, 60, 24, 6_000, "precision"),  # 36 net, chance gives up to 2 sqrt(84) = 18
        (0.6, 600, 564, 6_000, "ok"),  # 36 net, chance gives up to 2 sqrt(1164) = 68
    ],
)
def test_a_loss_of_precision_must_exceed_chance(drop, lost, gained, images, expected):
    assert kind(figures(77.2 - drop, 77.2, images, lost, gained)).kind == expected


def test_a_small_subset_accuses_nobody():
    found = kind(figures(70.0, 70.0, images=1_000))
    assert found.kind == "subset"
    assert "with 1000 images the standard error is 1.45 points, so this says nothing about" in found.text
    assert kind(figures(75.5, 75.5, images=4_999)).kind == "subset"
    assert kind(figures(75.0, 75.0, images=5_000)).kind == "pre-processing"
    assert kind(figures(60.0, 75.0, images=1_000, lost=160, gained=10)).kind == "precision"  # no matter of the sample


def test_a_large_subset_is_given_the_benefit_of_chance():
    doubt = 2 * 100 * math.sqrt(0.76 * 0.24 / 6_000 * (1 - 6_000 / 50_000))
    assert 1 < doubt < 1.1
    assert kind(figures(76.0, 76.0, images=6_000)).kind == "ok"  # 1.31 points
    assert kind(figures(75.6, 75.6, images=6_000)).kind == "pre-processing"  # 1.71 points


def test_more_than_published():
    assert kind(figures(80.0, 80.0)).kind == "unexpected"


def test_other_labels_than_the_official_ones():
    found = kind(figures(30.0, 30.0), foreign_labels=41_000)
    assert found.kind == "labels"
    assert "41000 of 50000 images have another class than ILSVRC2012 gives them" in found.text
    assert kind(figures(76.7, 76.7), foreign_labels=251).kind == "labels"
    assert kind(figures(76.7, 76.7), foreign_labels=100).kind == "ok"  # 0.61 missing, 0.5 + 0.2 explained
    assert kind(figures(76.7, 76.7), foreign_labels=50).kind == "pre-processing"


def test_without_fp32_there_is_no_telling():
    found = kind(figures(75.0))
    assert found.kind == "unknown"
    assert "2.31 points from the published 77.31 %; without FP32 it cannot be said" in found.text
    assert kind(figures(75.0), precision="fp32").kind == "pre-processing"


def test_nothing_to_compare_with():
    assert kind(figures(50.0, 50.0), model=OWN).text.startswith("no accuracy is published for these weights")
    assert "not known to be images of the ILSVRC2012" in kind(figures(50.0, 50.0), validation_set=False).text
    assert kind(figures(50.0, 55.0), model=OWN).kind == "precision"
    assert kind(Figures(images=5, agreement=100.0)).kind == "unknown"
    assert kind(figures(50.0, 50.0), model=replace_top5(OFFICIAL)).kind == "pre-processing"


def replace_top5(model):
    return type(model)(**{f: getattr(model, f) for f in model.__struct_fields__} | {"top5": None, "published": None})


def test_standard_error():
    assert standard_error(50, 10_000) == pytest.approx(0.5)
    assert standard_error(50, 10_000, 10_000) == 0
    assert standard_error(50, 10_000, 20_000) == pytest.approx(0.5 / math.sqrt(2))


def test_one_field_of_the_pre_processing_is_enough():
    text = kind(figures(75.6, 75.6), spec=sized(interpolation="bicubic")).text
    assert "built with interpolation bicubic in place of bilinear" in text
