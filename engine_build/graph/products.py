"""Matrix products and their biases in one form: ``Gemm`` without factors, a vector as its bias.

Exporters write a classifier as Gemm with alpha and beta, as MatMul, as MatMul and Add, or with its input transposed.
The passes and the quantiser know ``Conv`` and ``Gemm(x, weight, bias)``, with or without ``transB``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calibration.onnx_index import Index, attribute
from calibration.tensors import channel_axis, why_floating
from engine_build.graph.shapes import tensor_ranks


def plain_products(index: Index) -> None:
    """Rewrite matrix products, in place; what cannot be rewritten stays.

    A MatMul of matrices becomes a Gemm; alpha goes into the weights, beta and a scalar or row into a bias vector;
    a transposed input gets a Transpose node; an Add of one constant a channel behind Conv or Gemm becomes its bias.
    """
    ranks = tensor_ranks(index) if index.op_counts()["MatMul"] else {}
    names = {node.name for node in index.graph.node}
    nodes: list[onnx.NodeProto] = []
    for node in index.graph.node:
        if node.op_type == "MatMul" and ranks.get(node.input[0]) == 2 and ranks.get(node.input[1]) == 2:
            node.op_type = "Gemm"
        if node.op_type == "Gemm":
            nodes += _transposed_input(node, index, names)
            _without_factors(node, index)
        nodes.append(node)
    index.set_nodes(nodes)
    dropped = [node for node in index.graph.node if node.op_type == "Add" and _becomes_bias(node, index)]
    gone = {id(node) for node in dropped}
    index.set_nodes([node for node in index.graph.node if id(node) not in gone])


def _transposed_input(node: onnx.NodeProto, index: Index, names: set[str]) -> list[onnx.NodeProto]:
    """The Transpose that stands before a Gemm with ``transA``, which is taken from it; else nothing."""
    if not attribute(node, "transA", 0):
        return []
    name = f"{node.name}.turn"
    while name in names:
        name += "_"
    turned = index.fresh_name(f"{name}_output")
    before = helper.make_node("Transpose", [node.input[0]], [turned], name, perm=[1, 0])
    node.input[0] = turned
    _drop(node, "transA")
    return [before]


def _without_factors(node: onnx.NodeProto, index: Index) -> None:
    """Take alpha and beta into constant weights and bias."""
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if alpha != 1.0 and node.input[1] in index.constants:
        node.input[1] = _set(index, node, "weight", alpha * index.value(node.input[1]).astype(np.float64))
        _drop(node, "alpha")
    if len(node.input) < 3:
        _drop(node, "beta")
    elif beta == 0:
        del node.input[2:]
        _drop(node, "beta")
    elif node.input[2] in index.constants and node.input[1] in index.constants:
        channels = index.value(node.input[1]).shape[channel_axis(node)]
        vector = _vector(index.value(node.input[2]), channels, rank=2)
        if vector is not None:
            node.input[2] = _set(index, node, "bias", beta * vector)
            _drop(node, "beta")


def _becomes_bias(add: onnx.NodeProto, index: Index) -> bool:
    """Put the constant of an Add into the layer whose result it alone reads; False where it is no such Add."""
    for name, other in ((add.input[0], add.input[1]), (add.input[1], add.input[0])):
        layer = index.producer.get(name)
        if layer is None or layer.op_type not in ("Conv", "Gemm") or other not in index.constants:
            continue
        if index.only_consumer(name) is None or why_floating(layer, index) is not None:
            continue
        weight = index.value(layer.input[1])
        vector = _vector(index.value(other), weight.shape[channel_axis(layer)], weight.ndim)
        if vector is None:
            continue
        old = index.value(layer.input[2]) if len(layer.input) > 2 else np.zeros(1)
        bias = _set(index, layer, "bias", old.astype(np.float64) + vector)
        del layer.input[2:]
        layer.input.append(bias)
        if add.output[0] in index.outputs:
            layer.output[0] = add.output[0]
        else:
            index.replace_reads(add.output[0], name)
        return True
    return False


def _vector(value: NDArray[Any], channels: int, rank: int) -> NDArray[np.float64] | None:
    """``value`` as float64 ``[channels]``, where adding it to ``[N, channels, ...]`` adds one number a channel."""
    shape = (1,) * (rank - value.ndim) + value.shape
    if len(shape) != rank or shape[1] not in (1, channels) or any(size != 1 for size in (shape[0], *shape[2:])):
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), (channels,))


def _set(index: Index, node: onnx.NodeProto, part: str, value: NDArray[np.float64]) -> str:
    """A new float32 constant, called after ``node``."""
    return index.set_constant(index.fresh_name(f"{node.name}.{part}"), value.astype(np.float32))


def _drop(node: onnx.NodeProto, name: str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
