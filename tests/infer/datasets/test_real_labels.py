"""Reassessed labels of the validation set."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from infer.bundle.accuracy_record import Figures
from infer.datasets.class_names import ClassNames
from infer.datasets.imagenet import imagenet1k
from infer.datasets.real_labels import read_real_labels
from infer.errors import InputError
from infer.sources import Record

WNIDS, NAMES = imagenet1k()


def records(*numbers):
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers]
    return [Record(name, Path(), f"n01440764/{name}") for name in names]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Image 1 shows 3 and 5, image 2 nothing, image 3 shows 7, image 50000 shows 999."""
    lists = [[] for _ in range(50_000)]
    lists[0], lists[2], lists[49_999] = [3, 5], [7], [999]
    path = tmp_path_factory.mktemp("real") / "real.json"
    path.write_text(json.dumps(lists))
    return path


def filled(labels):
    """What the labels put into figures that have nothing."""
    figures = Figures(images=4)
    labels.fill(figures)
    return {name: value for name, value in msgspec.to_builtins(figures).items() if name != "images"}


def test_hits_are_of_any_label_and_empty_lists_do_not_count(file):
    shown = records(1, 2, 3, 50_000)
    labels = read_real_labels(file, shown, ClassNames(NAMES))
    labels.add(shown[:3], np.array([5, 5, 5], np.int32), np.array([3, 3, 7], np.int32))
    labels.add(shown[3:], np.array([999], np.int32), np.array([0], np.int32))
    assert filled(labels) == {
        "real_images": 3,
        "real_top1": pytest.approx(200 / 3),
        "reference_real_top1": pytest.approx(200 / 3),
    }


def test_without_a_reference_and_without_an_image_that_counts(file):
    shown = records(1, 2)
    labels = read_real_labels(file, shown, ClassNames(NAMES))
    labels.add(shown[1:], np.array([5], np.int32), None)
    assert filled(labels) == {}
    labels.add(shown[:1], np.array([4], np.int32), None)
    assert filled(labels) == {"real_images": 1, "real_top1": 0.0}


def test_a_model_with_the_classes_in_another_order(file):
    shown = records(1)
    labels = read_real_labels(file, shown, ClassNames(NAMES[::-1], WNIDS[::-1]))
    labels.add(shown, np.array([994], np.int32), np.array([5], np.int32))
    assert (labels.hits, labels.reference_hits) == (1, 0)


def test_images_that_are_not_of_the_validation_set(file):
    other = [Record("/data/cat.jpg", Path(), "cat.jpg")]
    with pytest.raises(InputError, match=r"/data/cat.jpg: .* expected ILSVRC2012_val_<8 digits>; leave out --real"):
        read_real_labels(file, records(1) + other, ClassNames(NAMES))


def test_a_model_of_other_classes(file):
    with pytest.raises(InputError, match="the model's 2 classes are not"):
        read_real_labels(file, records(1), ClassNames(["cat", "dog"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[1], [2]]", "expected the labels of 50000 images, found 2"), ("{}", "expected a JSON list of lists"),
        ("[[1], 2]", r"list of lists .*\[1\]"), ('[["a"]]', "list of lists"), ("[[1", "list of lists"),
        (b"\xff\xfe", "list of lists"), ("[[0.5]]", "list of lists"),
        (json.dumps([[0]] * 49_999 + [[1000]]), r"image 50000 has \[1000\], expected indices from 0 to 999"),
        (json.dumps([[-1]] + [[0]] * 49_999), r"image 1 has \[-1\]"), (None, "cannot be read"),
    ],
)  # fmt: skip
def test_unusable_files(tmp_path, content, message):
    path = tmp_path / "real.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_real_labels(path, records(1), ClassNames(NAMES))
    assert str(path) in str(caught.value)
