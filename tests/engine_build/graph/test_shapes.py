"""Shape inference without the weights gives what ONNX gives with them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import graph

from engine_build.graph.shapes import infer_shapes
from infer.bundle import GRAPH


def described(values):
    return {
        v.name: (v.type.tensor_type.elem_type, [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim])
        for v in values
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_same_as_with_the_weights(shipped, precision):
    model = onnx.load(shipped(precision) / GRAPH)
    whole = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    light = infer_shapes(model)
    assert described(light.value_info) == described(whole.value_info)
    assert described(light.output) == described(whole.output)
    assert light.ByteSize() < model.ByteSize() / 4
    assert len(model.graph.initializer) > len(light.initializer)  # the model itself is as it was


def test_shapes_that_depend_on_values():
    model = graph(
        [("Reshape", "x shape", "y"), ("Relu", "y", "z")], {"shape": np.array([2, 6])},
        inputs=[("x", TensorProto.FLOAT, [3, 4])], outputs=[("z", TensorProto.FLOAT, [2, 6])],
    )  # fmt: skip
    assert described(infer_shapes(model).value_info)["y"] == (TensorProto.FLOAT, [2, 6])


def test_contradictions_are_errors():
    inputs = [("x", TensorProto.FLOAT, [3, 4]), ("y", TensorProto.FLOAT, [5, 7])]
    model = graph([("Add", "x y", "z")], {}, inputs=inputs, outputs=[("z", TensorProto.FLOAT, [3, 4])])
    with pytest.raises(onnx.shape_inference.InferenceError):
        infer_shapes(model)
