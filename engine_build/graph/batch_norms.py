"""Batch norms: folded into the layer in front of them where that is theirs alone, and made simple where they stay."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from calibration.onnx_index import Index, attribute
from calibration.tensors import channel_axis, why_floating


def fold_batch_norms(model: onnx.ModelProto) -> int:
    """Fold every BN that alone reads a Conv's or Gemm's result into that layer, in place, in float64.

    Returns:
        How many were folded. A BN behind a residual addition stays: the sum is also the next shortcut.
    """
    index = Index(model)
    folded: list[onnx.NodeProto] = []
    for norm in _constant_norms(index):
        layer = index.producer.get(norm.input[0])
        if layer is None or layer.op_type not in ("Conv", "Gemm") or why_floating(layer, index) is not None:
            continue
        if index.only_consumer(layer.output[0]) is None:
            continue
        gamma, beta, mean, variance = (index.value(name).astype(np.float64) for name in norm.input[1:5])
        scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        weight = index.value(layer.input[1])
        bias = index.value(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else np.zeros(len(scale))
        shape = [1] * weight.ndim
        shape[channel_axis(layer)] = -1
        index.set_constant(layer.input[1], (weight * scale.reshape(shape)).astype(weight.dtype))
        bias_name = index.set_constant(f"{layer.name}.folded_bias", ((bias - mean) * scale + beta).astype(weight.dtype))
        del layer.input[2:]
        layer.input.append(bias_name)
        layer.output[0] = norm.output[0]
        folded.append(norm)
    dropped = {id(norm) for norm in folded}
    index.set_nodes(node for node in model.graph.node if id(node) not in dropped)
    return len(folded)


def _constant_norms(index: Index) -> list[onnx.NodeProto]:
    """The BNs whose parameters are constants."""
    norms = [node for node in index.graph.node if node.op_type == "BatchNormalization"]
    return [norm for norm in norms if all(name in index.constants for name in norm.input[1:5])]


def simplify_batch_norms(model: onnx.ModelProto) -> None:
    """Give every remaining BN mean 0, variance 1 and epsilon 0, in place; scale and shift take the rest.

    In float16 a small variance would underflow; scale and shift do not.
    """
    index = Index(model)
    for norm in _constant_norms(index):
        gamma, beta, mean, variance = (index.value(name).astype(np.float64) for name in norm.input[1:5])
        scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        values = (scale, beta - mean * scale, np.zeros_like(scale), np.ones_like(scale))
        for position, (part, value) in enumerate(zip(("scale", "shift", "zero", "one"), values, strict=True), 1):
            norm.input[position] = index.set_constant(f"{norm.name}.{part}", value.astype(np.float32))
        del norm.attribute[:]
        norm.attribute.append(helper.make_attribute("epsilon", 0.0))
    index.set_nodes(model.graph.node)
