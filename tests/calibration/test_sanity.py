"""Warnings appear for data that are wrong, and only for those."""

import numpy as np
import pytest
from small_graphs import SIZE, TENSORS, float_graph, pictures, residual_graph

from calibration.streaming import collect


def warnings_for(images):
    return collect(residual_graph(), [images], TENSORS).warnings


@pytest.fixture(scope="module")
def good():
    return pictures(120)


def test_good_images_give_no_warning(good):
    assert warnings_for(good) == []


def test_mostly_black_images_are_no_fault(good):
    """Clothes on black, as in Fashion-MNIST."""
    images = good.copy()
    images[:, :, :8] = 0
    images[:, :, 14:] = 0
    assert warnings_for(images) == []


def test_few_images(good):
    assert warnings_for(good[:99]) == ["only 99 images: ranges are reliable from 100, 500 or more are usual"]


def test_black_images(good):
    images = good.copy()
    images[:3] = 0
    found = warnings_for(images)
    assert any("3 of 120 images have one single value everywhere" in line for line in found)
    assert any("only 118 of 120 images are distinct" in line for line in found)


def test_images_scaled_before_they_became_uint8(good):
    found = warnings_for((good / 255).astype(np.uint8))
    assert any("all pixel values lie in 0..1, expected 0..255" in line for line in found)


def test_saturated_images(good):
    found = warnings_for(np.where(good > 5, 255, good).astype(np.uint8))
    assert any("% of all pixel values are 255" in line for line in found)


def test_noise():
    noise = np.random.default_rng(0).integers(0, 256, (120, SIZE, SIZE, 3), np.uint8)
    assert warnings_for(noise) == ["120 of 120 images look like noise: adjacent pixels do not correlate"]


def floats(count=200):
    return np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)


def test_float_input_is_not_judged_as_images():
    assert collect(float_graph(), [floats()], ["y"]).warnings == []


def test_zero_and_constant_tensors():
    assert collect(float_graph(), [-np.abs(floats())], ["x", "y"]).warnings == [
        "always zero, so without a usable range: y"
    ]
    ones = np.concatenate([np.ones((1, 4)) * 1.5, np.full((149, 4), 1.5)]).astype(np.float32)
    found = collect(float_graph(), [ones], ["x", "y"]).warnings
    assert "constant over all images: x, y" in found


def test_clipped_tensor():
    steep = floats(2000)
    assert collect(float_graph(), [steep], ["x"]).warnings == []
    found = collect(float_graph(), [np.clip(steep, -0.5, 0.5)], ["x", "y"]).warnings
    assert any(line.startswith("many values at the very end of the range, as if clipped: x, y") for line in found)


def test_long_lists_are_cut():
    model = float_graph()
    names = [f"y{number}" for number in range(8)]
    for name in names:
        node = model.graph.node.add(op_type="Relu")
        node.input.append("x")
        node.output.append(name)
    found = collect(model, [-np.abs(floats())], names).warnings
    assert found == ["always zero, so without a usable range: y0, y1, y2, y3, y4 and 3 more"]
