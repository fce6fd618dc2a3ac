"""Arithmetic of a graph, counted on its shapes."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from engine_build.graph.gmac import count_gmac
from engine_build.network.zoo import count_macs, find_model
from infer.bundle import read_manifest


def test_the_shipped_model_as_the_zoo_counts_it(shipped):
    expected = count_macs(find_model("iresnet50_fashion")) / 1e9
    assert read_manifest(shipped("fp32")).gmac == pytest.approx(expected, rel=1e-12)
    assert read_manifest(shipped("int8")).gmac == pytest.approx(expected, rel=1e-12)  # of the graph before Q/DQ


def graph(weight_input=False):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [6, 2, 3, 3], [0.0] * 108)  # two groups
    fc = helper.make_tensor("fc", TensorProto.FLOAT, [6 * 5 * 5, 7], [0.0] * 1050)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["y"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["z"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5, 5])]
    initializers = [weight, fc]
    if weight_input:
        initializers = [weight]
        inputs.append(helper.make_tensor_value_info("fc", TensorProto.FLOAT, [150, 7]))
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 7])]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, initializers), opset_imports=[helper.make_opsetid("", 17)]
    )


def test_groups_and_a_matrix_that_is_not_transposed():
    onnx.checker.check_model(graph())
    assert count_gmac(graph()) == (6 * 25 * 2 * 9 + 150 * 7) / 1e9


def test_unknown_weights():
    assert count_gmac(graph(weight_input=True)) is None
