"""Graphs that builders would take and ONNX does not allow."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from small_models import classifier, graph, weights_of

from engine_build.graph.valid import check_valid
from infer.errors import GraphError


def test_a_right_graph_passes():
    check_valid(classifier(), "the graph")


def test_float16_scales_before_opset_19():
    nodes = [("QuantizeLinear", "h s z", "q"), ("DequantizeLinear", "q s z", "d")]
    constants = {"s": np.float16(0.1), "z": np.int8(0)}
    for opset, ir_version in ((17, 8), (18, 8), (19, 9)):
        model = graph(
            [("Cast", "x", "h", {"to": 10}), *nodes, ("Cast", "d", "y", {"to": 1})], constants, opset=opset,
            ir_version=ir_version, outputs=[("y", 1, ["N", 3, 32, 32])],
        )  # fmt: skip
        if opset == 19:
            check_valid(model, "the graph")
            continue
        with pytest.raises(GraphError, match=r"^the int8 graph is not valid ONNX \(.*\). This is a defect"):
            check_valid(model, "the int8 graph")


def test_types_that_contradict_each_other():
    model = classifier()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "stem.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    with pytest.raises(GraphError, match="is not valid ONNX"):
        check_valid(model, "the graph")


def test_what_only_onnxruntime_refuses():
    nodes = [("Conv", "x w", "y", {"auto_pad": "SAME_UPPER", "pads": [1, 1, 1, 1]})]
    model = graph(nodes, {"w": weights_of(4, 3, 3, 3)}, outputs=[("y", 1, None)])
    model.graph.node[0].attribute[0].s = b"NO_SUCH_PADDING"
    with pytest.raises(GraphError, match="is not valid ONNX"):
        check_valid(model, "the graph")
