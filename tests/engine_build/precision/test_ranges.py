"""Largest magnitudes of activations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_checks import activation_ranges
from onnx import numpy_helper
from small_models import CLASSES, CLASSIFIER, SPEC, classifier_constants, graph, pictures

from engine_build.graph.passes import prepare
from engine_build.graph.reference import graph_logits, normalise


@pytest.fixture(scope="module")
def model():
    nodes = [("Neg", "x", "n"), ("Conv", "n stem.weight", "c"), *CLASSIFIER[1:]]
    made = graph(nodes, classifier_constants())
    prepare(made, SPEC, CLASSES, graph_logits(graph(nodes, classifier_constants()), SPEC))
    return made


def test_every_float_tensor_is_measured(model):
    images = pictures(4)
    amax = activation_ranges(model, images)
    inside = normalise(images, SPEC)
    assert amax["n_output"] == pytest.approx(np.abs(inside).max(), rel=1e-5)
    assert amax["logits"] == pytest.approx(np.abs(graph_logits(model, SPEC)(images)).max(), rel=1e-4)
    activations = {name for node in model.graph.node for name in node.output} - {"classes", "top_k_indices"}
    assert set(amax) >= activations - {"scores", "softmax_output"}


def test_negative_extremes_count_and_every_image_counts(model):
    dark, bright = np.zeros((1, 32, 32, 3), np.uint8), np.full((1, 32, 32, 3), 255, np.uint8)
    low, high = activation_ranges(model, dark), activation_ranges(model, bright)
    both = activation_ranges(model, np.concatenate([dark, bright]))
    again = activation_ranges(model, np.concatenate([bright, dark]))
    for name in ("n_output", "logits"):
        assert both[name] == pytest.approx(max(low[name], high[name]), rel=1e-5)
        assert again[name] == pytest.approx(both[name], rel=1e-5)
    assert low["n_output"] == pytest.approx(max(m / s for m, s in zip(SPEC.mean, SPEC.std, strict=True)), rel=1e-5)


def test_the_graph_is_left_alone(model):
    before = model.SerializeToString()
    activation_ranges(model, pictures(1))
    assert model.SerializeToString() == before
    assert all(numpy_helper.to_array(tensor).size for tensor in model.graph.initializer)
    onnx.checker.check_model(model)
