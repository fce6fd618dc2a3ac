"""The shipped, trained model through every precision, on shipped test images."""

from __future__ import annotations

import json

import numpy as np
import openvino
import pytest

from engine_build.graph.reference import torch_logits
from engine_build.network.weights import load_weights
from engine_build.network.zoo import MODELS
from infer import open_bundle

ROW = MODELS["iresnet50_fashion"]


@pytest.fixture(scope="module")
def exact(shipped_images):
    """Logits of PyTorch, float32."""
    images, run = shipped_images[0], torch_logits(load_weights(ROW).model, ROW.preprocessing)
    return np.concatenate([run(images[at : at + 100]) for at in range(0, len(images), 100)])


def run(bundle, images, target=None):
    with open_bundle(bundle, target=target) as runner:
        return runner.infer(images)


def agreement(outputs, exact):
    return (outputs.classes[:, 0] == exact[: len(outputs.classes)].argmax(1)).mean()


def test_it_is_really_trained(exact, shipped_images):
    claimed = json.loads((ROW.shipped / "training.json").read_text())["test_top1"]
    found = 100 * (exact.argmax(1) == shipped_images[1]).mean()
    assert found > 91
    assert abs(found - claimed) < 1.5  # 2,000 of the 10,000 images
    counts = np.bincount(shipped_images[1])
    assert counts.tolist() == [200] * 10


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_fp32_has_the_top1_of_pytorch_on_every_image(shipped, shipped_images, exact, target):
    found = run(shipped("fp32"), shipped_images[0], target)
    assert (found.classes[:, 0] != exact.argmax(1)).sum() == 0
    assert np.abs(found.logits - exact).max() < 1e-3


@pytest.mark.parametrize(("target", "count"), [("openvino", 2000), ("onnxruntime", 1000)])
def test_fp16_agrees_with_fp32(shipped, shipped_images, exact, target, count):
    found = run(shipped("fp16"), shipped_images[0][:count], target)
    # Some CPUs really compute in float16: images whose two best classes are that near may change places.
    largest = np.abs(found.logits - exact[:count]).max()
    best = np.sort(exact[:count], axis=1)
    near = best[:, -1] - best[:, -2] < 2 * largest
    assert agreement(found, exact) >= 0.995
    assert (found.classes[:, 0] == exact[:count].argmax(1))[~near].all()
    assert 1e-5 < largest < 0.1


def test_bf16_agrees_with_fp32(shipped, shipped_images, exact):
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16 arithmetic")
    found = run(shipped("bf16"), shipped_images[0])
    assert agreement(found, exact) >= 0.997
    assert 1e-3 < np.abs(found.logits - exact).max() < 1
