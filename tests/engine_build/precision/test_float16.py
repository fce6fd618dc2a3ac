"""What float16 cannot hold: found by the tensors and constants a node touches, with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import CLASSES, CLASSIFIER, SPEC, classifier_constants, graph

from engine_build.graph.passes import prepare
from engine_build.graph.reference import graph_logits
from engine_build.precision.float16 import OVERFLOW, SUBNORMAL, UNDERFLOW, float32_nodes, of_scale


def prepared(nodes=CLASSIFIER, **changed):
    constants = classifier_constants() | changed
    model = graph(nodes, constants)
    prepare(model, SPEC, CLASSES, graph_logits(graph(nodes, constants), SPEC))
    return model


def test_the_margin():
    model = prepared()
    just, over = 65504 / 2, 65504 / 2 + 1  # another image may be twice as loud
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    quiet = dict.fromkeys((name for node in model.graph.node for name in node.output), 1.0)
    always = ("softmax", "top_k", "classes.cast")
    assert float32_nodes(model, quiet | {pool.output[0]: just}) == {}
    loud = float32_nodes(model, quiet | {pool.output[0]: over})
    assert loud == {"p": OVERFLOW, "f": OVERFLOW}  # who writes it and who reads it
    assert float32_nodes(model, quiet | {"logits": over}, always) == {"fc": OVERFLOW}


@pytest.mark.parametrize(
    ("amax", "reason"),
    [(0.0, None), (2.0**-14, None), (2.0**-14.1, SUBNORMAL), (2.0**-24.9, SUBNORMAL), (1e-9, UNDERFLOW)],
)
def test_activations_at_the_small_end(amax, reason):
    found = float32_nodes(prepared(), {"p_output": amax})
    assert found == ({} if reason is None else {"p": reason, "f": reason})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("fc.bias", np.full(CLASSES, 1e-9), UNDERFLOW),
        ("fc.bias", np.full(CLASSES, 1e-5), SUBNORMAL),
        ("fc.bias", np.zeros(CLASSES), None),
        ("fc.bias", np.r_[np.full(CLASSES - 1, 1e-9), 1.0], None),
        ("fc.bias", np.r_[np.ones(CLASSES - 1), -7e4], OVERFLOW),
        ("fc.bias", np.r_[np.full(CLASSES - 1, 1e-9), 7e4], OVERFLOW),
    ],
)
def test_constants(name, value, reason):
    found = float32_nodes(prepared(**{name: value.astype(np.float32)}), {})
    assert found == ({} if reason is None else {"fc": reason})


@pytest.mark.parametrize("high", [6.0, 1e9, np.finfo(np.float32).max, np.inf])
def test_a_bound_that_float16_cannot_reach_bounds_nothing(high):
    nodes = [*CLASSIFIER[:2], ("Clip", "b low high", "r"), *CLASSIFIER[3:]]
    model = prepared(nodes, low=np.float32(0), high=np.float32(high))
    assert float32_nodes(model, {}) == {}


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        ([0.1, 2.0**-14, 65504], None), ([0.1, 6e-5], SUBNORMAL), ([0.1, 1e-9], UNDERFLOW), ([0.1, 65505.0], OVERFLOW),
        ([1e-9, 1e9], OVERFLOW), (0.5, None),
    ],
)  # fmt: skip
def test_scales(scale, reason):
    assert of_scale(np.array(scale, np.float32)) == reason
