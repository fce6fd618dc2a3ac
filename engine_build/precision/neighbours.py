"""What has to be float32 because a node beside it is.

Integers have no type to choose, but what is quantised and what is dequantised has, and the scale has it too. A pair
before a layer that stays float32 is float32, scale and all: cast to float16 in between, an activation of 2e5 would be
infinite before it is quantised.

Several layers may read one pair. It could be written twice, once in each type; TensorRT-RTX takes that, but OpenVINO
then runs some of the layers in floating point. So the other readers become float32 too.

A float32 layer alone between a cast to float32 and one back is taken for a float16 layer by TensorRT-RTX 1.7: it casts
the weights, and what overflows there is infinite after all. With a float32 node behind it, it is left alone.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from calibration.onnx_index import Index
from engine_build.precision.float16 import PAIR, of_scale

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def with_neighbours(model: onnx.ModelProto, keep: Collection[str]) -> set[str]:
    """``keep``, names of float32 nodes of ``model``, and what has to be float32 with them.

    * DQ: where one of its readers is, and where its scale is no normal float16; then its other readers too.
    * Q: where the DQ behind it is, where its tensor is, and where its scale is no normal float16.
    * A max-pool between two pairs: where the Q behind it is, for it works on integers only where both have one type.
    * The readers of a layer with floating-point weights that is alone between float16 nodes.
    """
    index = Index(model)
    kept = set(keep)
    before = -1
    while before < len(kept):
        before = len(kept)
        for node in reversed(model.graph.node):  # the readers of a node are known before it
            kept |= _of_pair(node, index, kept)
        for node in model.graph.node:
            kept |= _behind_lone_layer(node, index, kept)
    return kept


def _of_pair(node: onnx.NodeProto, index: Index, kept: Collection[str]) -> set[str]:
    """What is float32 because of the pair ``node`` is of, or stands between."""
    readers = index.consumers.get(node.output[0], [])
    behind = any(reader.name in kept for reader in readers)
    producer = index.producer.get(node.input[0]) if node.input else None
    if node.op_type == "MaxPool":
        between = producer is not None and producer.op_type == "DequantizeLinear"
        between = between and all(reader.op_type == "QuantizeLinear" for reader in readers)
        return {node.name} if between and behind else set()
    if node.op_type not in PAIR:
        return set()
    behind = behind or of_scale(index.value(node.input[1])) is not None
    if node.op_type == "QuantizeLinear":
        return {node.name} if behind or (producer is not None and producer.name in kept) else set()
    return {node.name, *(reader.name for reader in readers)} if behind else set()


def _behind_lone_layer(node: onnx.NodeProto, index: Index, kept: Collection[str]) -> set[str]:
    """The readers of ``node`` where that is a float32 layer with nothing float32 beside it."""
    if node.op_type not in _LAYERS or node.name not in kept or node.output[0] in index.outputs:
        return set()
    readers = {reader.name for reader in index.consumers.get(node.output[0], [])}
    producers = {index.producer[name].name for name in node.input if name in index.producer}  # a pair is float32 too
    return set() if (readers | producers).intersection(kept) else readers
