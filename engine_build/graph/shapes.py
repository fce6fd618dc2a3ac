"""Types and shapes of the tensors of a graph, without moving its weights about."""

from __future__ import annotations

import math

import onnx
from onnx import helper

from calibration.onnx_index import Index

# Shapes and axes have a few elements; no shape depends on the values of a larger tensor.
_LARGEST_VALUE = 1024


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with its weights among the inputs: ONNX copies a model several times, a second at 250 MB."""
    graph = onnx.GraphProto(name=model.graph.name or "graph")
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    known = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _LARGEST_VALUE:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    light = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    return light


def infer_shapes(model: onnx.ModelProto) -> onnx.GraphProto:
    """ONNX shape inference on :func:`without_weights`.

    Returns:
        A graph for looking at, with ``value_info`` of every tensor; weights stand among its inputs.

    Raises:
        onnx.shape_inference.InferenceError: types or shapes contradict each other.
    """
    return onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=True, data_prop=True).graph


def tensor_ranks(index: Index) -> dict[str, int]:
    """How many dimensions each tensor has, as far as that is known."""
    try:
        inferred = infer_shapes(index.model)
    except onnx.shape_inference.InferenceError:  # who runs the graph next says what is wrong with it
        inferred = onnx.GraphProto()
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    kinds = {value.name: value.type.tensor_type for value in values}
    constants = {name: len(tensor.dims) for name, tensor in index.constants.items()}
    return constants | {name: len(kind.shape.dim) for name, kind in kinds.items() if kind.HasField("shape")}
