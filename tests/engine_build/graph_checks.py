"""Questions that tests ask of graphs and weights."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from engine_build.precision.ranges import channel_ranges
from engine_build.quantise.pairs import LIMIT, pair_orders, window
from infer.bundle.tensors import CLASSES, LOGITS, SCORES


def activation_ranges(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, float]:
    """As :func:`channel_ranges`, the largest of all channels."""
    return {name: float(amax.max()) for name, amax in channel_ranges(model, images).items()}


def outputs_are_float32(model: onnx.ModelProto) -> bool:
    """Whether logits and scores are float32 and classes int32, as the bundle promises."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    return kinds == {LOGITS: TensorProto.FLOAT, SCORES: TensorProto.FLOAT, CLASSES: TensorProto.INT32}


def saturating_pairs(weights: NDArray[np.int8], axis: int = 0) -> int:
    """How many pairs of integer weights could overflow int16, in any order.

    Args:
        weights: int8 ``[..]``, of a Conv (``axis`` 0) or a matrix product.
        axis: of the output channels.
    """
    rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1).astype(np.int32)
    return sum(
        # Of different signs they cannot reach the limit: the larger alone is at most 127.
        int((np.abs(rows[:, first] + rows[:, second]) > LIMIT).sum())
        for first, second in pair_orders(*window(weights.shape, axis))
    )
