"""Graphs raised to a newer opset: the same names, the same weights, the same results."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import CLASSIFIER, bn_inputs, classifier, classifier_constants, graph, run_graph, weights_of

from engine_build.precision import opsets
from engine_build.precision.casts import value_types
from engine_build.precision.opsets import allows, has_own_type, opset_for, opset_of, raised
from infer.errors import GraphError

F = np.float32
BEHIND_RELU = {
    "mean": ([("ReduceMean", "r", "m", {"axes": [2, 3], "keepdims": 1}), ("Add", "r m", "u")], {}),
    "largest": ([("ReduceMax", "r", "m", {"axes": [2, 3], "keepdims": 1}), ("Add", "r m", "u")], {}),
    "norm": ([("ReduceL2", "r", "m", {"axes": [1], "keepdims": 1}), ("Add", "r m", "u")], {}),
    "split": ([("Split", "r parts", "s1 s2", {"axis": 1}), ("Concat", "s2 s1", "u", {"axis": 1})],
              {"parts": np.array([4, 12])}),
    "halves": ([("Split", "r", "s1 s2", {"axis": 1}), ("Concat", "s2 s1", "u", {"axis": 1})], {}),
    "pad": ([("Pad", "r width", "u", {"mode": "reflect"})], {"width": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "resize": ([("Resize", "r - factors", "u", {"mode": "linear"})], {"factors": np.array([1, 1, 2, 2], F)}),
    "pool": ([("AveragePool", "r", "u", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1})], {}),
    "norm layer": ([("BatchNormalization", f"r {bn_inputs('bn')}", "u")], {}),
    "instance norm": ([("InstanceNormalization", "r one none", "u")], {"one": np.ones(16, F), "none": np.zeros(16, F)}),
    "shape": ([("Shape", "r", "size"), ("Reshape", "r size", "u")], {}),
    "transposed": ([("ConvTranspose", "r large", "u", {"strides": [2, 2]})], {"large": weights_of(16, 16, 3, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHIND_RELU)
def test_names_weights_and_results_stay(name):
    middle, constants = BEHIND_RELU[name]
    image = weights_of(2, 3, 32, 32)
    for opset in (13, 15, 17):
        nodes = [*CLASSIFIER[:3], *middle, ("GlobalAveragePool", "u", "p"), *CLASSIFIER[4:]]
        model = graph(nodes, classifier_constants() | constants, opset=opset, ir_version=8)
        before = model.SerializeToString()
        for target in (19, 22):
            converted = raised(model, target)
            onnx.checker.check_model(converted, full_check=True)
            assert opset_of(converted) == target
            np.testing.assert_allclose(run_graph(converted, image)[0], run_graph(model, image)[0], rtol=1e-5, atol=1e-5)
            names = [node.name for node in converted.graph.node]
            assert {node.name for node in model.graph.node} <= {*names} and all(names)
            weights = {tensor.name: tensor for tensor in converted.graph.initializer}
            assert all(weights[tensor.name].raw_data == tensor.raw_data for tensor in model.graph.initializer)
            assert [v.SerializeToString() for v in (*converted.graph.input, *converted.graph.output)] == [
                v.SerializeToString() for v in (*model.graph.input, *model.graph.output)
            ]
        assert model.SerializeToString() == before


def test_a_newer_graph_is_left_as_it_is():
    model = classifier(opset=21)
    assert raised(model, 19) == model and raised(model, 19) is not model


def test_a_conversion_that_fails_says_what_to_do(monkeypatch):
    def fail(*_):
        raise RuntimeError("Unsupported conversion of X")

    monkeypatch.setattr(opsets.onnx.version_converter, "convert_version", fail)
    with pytest.raises(GraphError, match="Unsupported conversion of X"):
        raised(classifier(opset=17), 19)


def test_a_conversion_that_loses_a_node_is_an_error(monkeypatch):
    def lose(model, _, convert=opsets.onnx.version_converter.convert_version):
        converted = convert(model, 19)
        converted.graph.node[2].name = "another"
        return converted

    monkeypatch.setattr(opsets.onnx.version_converter, "convert_version", lose)
    with pytest.raises(GraphError, match="converted to opset 19, the graph lost its nodes r; export it with opset 19"):
        raised(classifier(opset=17), 19)


def node(operator, inputs):
    return onnx.helper.make_node(operator, [f"i{n}" for n in range(inputs)], ["o"], "n")


@pytest.mark.parametrize(
    ("operator", "position", "kind", "first"),
    [
        ("QuantizeLinear", 0, TensorProto.FLOAT16, 19), ("QuantizeLinear", 1, TensorProto.FLOAT16, 19),
        ("DequantizeLinear", 1, TensorProto.FLOAT16, 19), ("Conv", 1, TensorProto.BFLOAT16, 22),
        ("Relu", 0, TensorProto.BFLOAT16, 13), ("CumSum", 0, TensorProto.FLOAT16, 14),
    ],
)  # fmt: skip
def test_the_first_opset_with_a_type(operator, position, kind, first):
    assert [v for v in range(13, 24) if allows(node(operator, 3), position, kind, v)] == [*range(first, 24)]


def test_inputs_with_a_type_of_their_own():
    assert has_own_type(node("Resize", 3), 2, 22) and not has_own_type(node("Resize", 3), 0, 22)
    assert not has_own_type(node("Celu", 1), 0, 22)  # takes one type only, but by that of its output


def test_the_opset_of_a_whole_graph():
    model = classifier(opset=17)
    types = value_types(model)
    assert opset_for(model, types, TensorProto.FLOAT16, ()) == (17, [])
    assert opset_for(model, types, TensorProto.BFLOAT16, ()) == (22, [])
    everything = {node.name for node in model.graph.node}
    assert opset_for(model, types, TensorProto.BFLOAT16, everything) == (17, [])


def test_an_operator_that_the_opset_does_not_have():
    model = classifier(opset=17)
    model.graph.node[2].op_type = "NoSuchOperator"
    with pytest.raises(GraphError, match="node 'r': ONNX opset 22 has no operator NoSuchOperator"):
        opset_for(model, {"b": TensorProto.FLOAT}, TensorProto.FLOAT16, ())
