"""The whole int8 range for activations behind a ReLU.

A symmetric int8 tensor that is never negative uses 127 of its 255 steps. The zero-point that would mend this is not
accepted by TensorRT, but the same result can be had with zero-point 0: the tensor is moved down by ``c = 128 s``,

    max(u, 0)        becomes   max(u - c, -c)     the -c goes into the bias or BN shift that makes u
    W x + b          becomes   W x' + (b + c sum(W))

which is exact as long as the reader does no zero padding: 1x1 convolutions and the classifier, more than half of the
layers of a bottleneck network. ``sum(W)`` is over the *dequantised* weights, so that no error is added. The steps are
half as wide, which takes 6 dB off the rounding noise of these tensors (docs/int8.md has the effect on whole networks).
Max-pooling and global average pooling commute with the move. Where a residual addition reads the tensor too, as in the
second block of every stage, whose shortcut carries the ReLU's result, the bias of the convolution that is added gives
``c`` back, which is exact again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calibration.int8 import LOWEST, SHIFTED_STEPS
from calibration.onnx_index import Index
from calibration.tensors import ShiftGroup
from engine_build.quantise.weight_scales import half_scale


def shift_of(group: ShiftGroup, amax: Mapping[str, float]) -> tuple[float, float]:
    """Scale of the tensors of a group and by how much they are moved down; as :func:`half_scale` rounds them."""
    scale = float(half_scale(np.float32(amax[group.tensors[0]] / SHIFTED_STEPS)))
    return scale, -LOWEST * scale


def apply_shift(index: Index, group: ShiftGroup, amax: Mapping[str, float]) -> tuple[float, float]:
    """Move one group in the float graph, in place: the ReLU becomes a clip at ``-c``, additions get ``c`` back.

    The layers that read it still expect the old values; ``offset * sum(weights)`` in their bias mends that.

    Returns:
        As :func:`shift_of`.
    """
    scale, offset = shift_of(group, amax)
    relu = next(node for node in index.graph.node if node.name == group.relu)
    relu.op_type = "Clip"
    relu.input.append(index.set_constant(f"{relu.name}.lower", np.array(-offset, np.float32)))
    _lower(index, relu, offset)
    for node in [node for node in index.graph.node if node.name in group.branches]:
        add_to_bias(index, node, np.full(index.constants[node.input[1]].dims[0], offset))
    return scale, offset


def _lower(index: Index, relu: onnx.NodeProto, offset: float) -> None:
    """Subtract ``offset`` from what ``relu`` reads: in the bias before it where it alone reads that, else by a node."""
    source = relu.input[0]
    producer = index.producer.get(source)
    if producer is not None and index.only_consumer(source) is relu:
        position = {"Conv": 2, "BatchNormalization": 2}.get(producer.op_type)
        if position is not None and len(producer.input) > position and producer.input[position] in index.constants:
            bias = index.value(producer.input[position])
            name = f"{producer.input[position]}.lowered"
            producer.input[position] = index.set_constant(name, (bias - np.float32(offset)).astype(np.float32))
            return
    constant = index.set_constant(f"{relu.name}.offset", np.array(offset, np.float32))
    moved = f"{relu.name}.moved"
    nodes = list(index.graph.node)
    at = next(i for i, node in enumerate(nodes) if node is relu or node.name == relu.name)
    nodes.insert(at, helper.make_node("Sub", [source, constant], [moved], f"{relu.name}.subtract"))
    relu.input[0] = moved
    index.set_nodes(nodes)


def add_to_bias(index: Index, node: onnx.NodeProto, amount: NDArray[np.float64]) -> None:
    """Add ``amount`` ``[output channels]`` to the bias of a Conv or Gemm, in place, in a constant of its own."""
    old = index.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(len(amount))
    name = index.set_constant(f"{node.name}.moved_bias", (old + amount).astype(np.float32))
    del node.input[2:]
    node.input.append(name)
