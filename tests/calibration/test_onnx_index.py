"""The index over an ONNX graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import classifier, graph

from calibration.onnx_index import Index, attribute
from infer.errors import GraphError


@pytest.fixture
def index():
    return Index(classifier())


def test_edges(index):
    assert index.producer["c"].op_type == "Conv"
    assert "x" not in index.producer
    assert [node.op_type for node in index.consumers["x"]] == ["Conv"]
    assert index.outputs == {"y"}
    assert index.op_counts() == dict.fromkeys(
        ("Conv", "BatchNormalization", "Relu", "GlobalAveragePool", "Flatten", "Gemm"), 1
    )


def test_only_consumer():
    index = Index(graph([("Relu", "x", "a"), ("Relu", "a", "b"), ("Add", "a b", "y"), ("Relu", "y", "z")], {}))
    assert index.only_consumer("a") is None  # two nodes
    assert index.only_consumer("b").op_type == "Add"
    assert index.only_consumer("y") is None  # a node and the caller of the graph
    assert index.only_consumer("z") is None  # nobody


def test_a_node_that_reads_twice_is_not_an_only_consumer():
    index = Index(graph([("Relu", "x", "a"), ("Mul", "a a", "y")], {}))
    assert index.only_consumer("a") is None


def test_values(index):
    assert index.value("fc.weight").shape == (10, 16)
    with pytest.raises(GraphError, match="expected 'c' to be a constant"):
        index.value("c")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"value": onnx.numpy_helper.from_array(np.eye(2, dtype=np.float32))}, np.eye(2, dtype=np.float32)),
        ({"value_float": 6.0}, np.float32(6)),
        ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [2, 3]}, np.array([2, 3])),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_constant_nodes(given, expected):
    model = graph([("Relu", "x", "y")], {})
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], "k", **given))
    found = Index(model).value("k")
    assert np.array_equal(found, expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)


def test_constants_that_are_not_numbers():
    model = graph([("Relu", "x", "y")], {})
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], "k", value_string="text"))
    with pytest.raises(GraphError, match="constant 'k': expected a tensor or numbers, found value_string"):
        Index(model)


def test_set_constant_adds_and_replaces(index):
    before = len(index.graph.initializer)
    index.set_constant("fc.bias", np.ones(10, np.float32))
    assert len(index.graph.initializer) == before
    assert index.set_constant("new", np.zeros((2, 2), np.float32)[:, ::-1]) == "new"
    assert len(index.graph.initializer) == before + 1
    again = Index(index.model)
    assert again.value("fc.bias").tolist() == [1] * 10
    assert index.value("new").shape == (2, 2)


def test_replace_reads():
    index = Index(graph([("Relu", "x", "a"), ("Add", "a a", "b"), ("Add", "b a", "y")], {}))
    skipped = index.producer["y"]
    index.replace_reads("a", "x", but=[skipped])
    assert list(index.producer["b"].input) == ["x", "x"]
    assert list(skipped.input) == ["b", "a"]


def test_set_nodes_drops_unread_constants_and_indexes_again(index):
    kept = [node for node in index.graph.node if node.op_type in ("Conv", "BatchNormalization")]
    kept[0].output[0] = "renamed"
    kept[1].input[0] = "renamed"
    index.set_nodes(kept)
    assert {tensor.name for tensor in index.graph.initializer} == {name for n in kept for name in n.input} - {
        "x",
        "renamed",
    }
    assert index.producer["renamed"].op_type == "Conv"
    assert "fc.weight" not in index.constants


def test_attribute(index):
    conv = index.producer["c"]
    assert list(attribute(conv, "strides")) == [2, 2]
    assert attribute(conv, "group") is None
    assert attribute(conv, "group", 1) == 1
