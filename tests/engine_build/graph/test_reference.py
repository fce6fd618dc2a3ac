"""The float32 references."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from small_models import SPEC, classifier, pictures
from specs import sized

from engine_build.graph.reference import graph_logits, normalise, torch_logits


def test_normalise():
    spec = sized(crop=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 1, 0] = (255, 51, 102)
    found = normalise(image, spec)
    assert found.shape == (1, 3, 2, 2)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found[0, :, 1, 0], [0.9 / 0.5, 0.0, 0.1 / 2], atol=1e-6)
    np.testing.assert_allclose(found[0, :, 0, 0], [-0.1 / 0.5, -0.2 / 0.25, -0.3 / 2], atol=1e-6)


def test_torch_logits():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    images = pictures(2)
    expected = normalise(images, SPEC).reshape(2, -1) @ network[1].weight.detach().numpy().T
    found = torch_logits(network, SPEC)(images)
    np.testing.assert_allclose(found, expected + network[1].bias.detach().numpy(), atol=1e-4)
    assert isinstance(found, np.ndarray)


def test_graph_logits_of_float_and_uint8_graphs(tiny):
    images = pictures(3)
    floats = graph_logits(classifier(), SPEC)(images)
    deployed = graph_logits(onnx.load(tiny / "model.onnx"), SPEC)(images)  # has the normalisation inside
    assert floats.shape == (3, 10)
    np.testing.assert_allclose(deployed, floats, atol=1e-4)
    assert np.abs(floats[0] - floats[1]).max() > 0.01
