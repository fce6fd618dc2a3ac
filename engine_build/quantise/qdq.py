"""INT8 written into the graph: Q/DQ pairs placed for residual networks.

TensorRT 11 has no calibrator; a layer runs in INT8 when its input and its weights come from DequantizeLinear nodes.
What the builder turns into INT8 kernels, and what it accepts and silently runs in floating point, was measured (see
docs/int8.md): activations need one *scalar* scale (shape ``[]``), weights one scale a channel on axis 0, and every
zero-point is 0.

Quantised are the input and the weights of every convolution and of the classifier. The shortcut input of a residual
addition can be too, for a builder that joins the addition to the INT8 kernel before it; in these networks a BN reads
the sum in floating point, the listing of TensorRT-RTX is hardly shorter, and more than half of the noise would come
from there (docs/int8.md). The pair stands behind ReLU and pool,
never only before them; a max-pool between two pairs of one scale works on integers, with the same result. A tensor
with no known scale keeps its readers in floating point; they are reported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from calibration.choices import RESIDUALS
from calibration.int8 import SYMMETRIC_STEPS
from calibration.onnx_index import Index
from calibration.tensors import (
    ShiftGroup,
    channel_axis,
    quantisable_nodes,
    shift_groups,
)
from engine_build.quantise.shifted import add_to_bias, apply_shift, shift_of
from engine_build.quantise.weight_scales import RoundedWeights, half_scale, quantise_weights, weight_rows
from engine_build.quantise.writer import PairWriter, choose_additions, choose_layers
from infer.errors import InputError


@dataclass(frozen=True)
class Placement:
    """Where activations are quantised.

    Attributes:
        residual: inputs of residual additions that are quantised: ``none``, ``identity`` (the shortcut) or ``both``.
        weights: how weight scales are chosen, see :func:`engine_build.quantise.weight_scales.quantise_weights`.
        shift: use the whole int8 range behind ReLUs, see :mod:`engine_build.quantise.shifted`.
        pool: let max-pools work on integers.
    """

    residual: str = "none"
    weights: str = "mse"
    shift: bool = True
    pool: bool = True

    def __post_init__(self) -> None:
        if self.residual not in RESIDUALS:
            raise InputError(f"residual: expected one of {', '.join(RESIDUALS)}, found {self.residual!r}")


@dataclass(frozen=True)
class Quantised:
    """What :func:`insert_qdq` did.

    Attributes:
        nodes: Conv, Gemm and MatMul nodes that now have INT8 inputs and weights.
        additions: residual additions with a quantised input.
        shifted: activation tensors that use the whole int8 range.
        tensors: quantised activation tensors, each with the scale of its integers and by how much it was moved down.
        skipped: every other convolution and matrix product, and the reason.
    """

    nodes: tuple[str, ...]
    additions: tuple[str, ...]
    shifted: tuple[str, ...]
    tensors: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]


def insert_qdq(
    model: onnx.ModelProto,
    amax: Mapping[str, float],
    placement: Placement | None = None,
    exclude: Collection[str] = (),
    *,
    pair_safe: bool = True,
    rounded: Mapping[str, RoundedWeights] | None = None,
) -> tuple[onnx.ModelProto, Quantised]:
    """A copy of the float32 graph with Q/DQ pairs; everything else stays float32.

    Scales are rounded to float16 values, so that the same integers result when the rest of the graph is cast to it.

    Args:
        model: graph of :func:`engine_build.graph.passes.prepare`.
        amax: largest magnitude to represent, of each tensor of
            :func:`calibration.tensors.activation_tensors`. Tensors that are missing or 0 are not quantised.
        placement: where to quantise; None for the default.
        exclude: Conv and Gemm nodes, and residual additions, to leave in floating point.
        pair_safe: weights that no int8 kernel can saturate with, see :mod:`engine_build.quantise.pairs`.
        rounded: weights that were rounded already, by layer; the others are rounded to nearest.
    """
    placement = placement or Placement()
    rounded = rounded or {}
    work = onnx.ModelProto()
    work.CopyFrom(model)
    index = Index(work)
    chosen, skipped = choose_layers(index, amax, exclude)
    additions = choose_additions(index, amax, exclude, placement.residual)
    moved: dict[str, tuple[float, float]] = {}
    for group in _moved_groups(index, chosen, amax, placement):
        moved.update(dict.fromkeys(group.tensors, apply_shift(index, group, amax)))
        # A branch that gives back has another range than was calibrated.
        lifted = {output for node in work.graph.node if node.name in group.branches for output in node.output}
        additions = {name: [t for t in read if t not in lifted] for name, read in additions.items()}

    def scale_of(tensor: str) -> float:
        return moved[tensor][0] if tensor in moved else tensor_scale(amax.get(tensor, 0.0))

    writer = PairWriter(index, np.int8, "int8", lambda tensor: np.float32(scale_of(tensor)))
    for node in quantisable_nodes(index):
        if node.name in chosen:
            weights = rounded.get(node.name) or nearest(index, node, placement.weights, pair_safe)
            _quantise_layer(writer, node, weights, moved.get(node.input[0], (0.0, 0.0))[1])
    for node in work.graph.node:
        for position, tensor in enumerate(node.input):
            if tensor in additions.get(node.name, []):
                node.input[position] = writer.activation(tensor)
    if placement.pool:
        for node in work.graph.node:
            if node.op_type == "MaxPool":
                _quantise_pool(writer, node)
    index.set_nodes(writer.place())
    done = tuple(name for name, tensors in additions.items() if tensors)
    tensors = {tensor: (scale_of(tensor), moved.get(tensor, (0.0, 0.0))[1]) for tensor in writer.pairs}
    return work, Quantised(tuple(chosen), done, tuple(moved), tensors, skipped)


def _quantise_layer(writer: PairWriter, node: onnx.NodeProto, weights: RoundedWeights, offset: float) -> None:
    axis, integers, scale = channel_axis(node), weights.integers, weights.scale
    moved = weight_rows(integers, axis).sum(axis=1, dtype=np.float64) * scale * offset + weights.bias
    if moved.any() and node.op_type != "MatMul":  # which has no bias, and is never moved
        add_to_bias(writer.index, node, moved)
    node.input[1] = writer.weight(node.input[1], axis, lambda: (integers, scale))
    node.input[0] = writer.activation(node.input[0])


def _quantise_pool(writer: PairWriter, node: onnx.NodeProto) -> None:
    """Let a max-pool read the pair of its input where its output has one of the same scale: rounding keeps order,
    so the largest integer is the integer of the largest value."""
    source, result = node.input[0], node.output[0]
    if source in writer.pairs and result in writer.pairs and writer.scale_of(source) == writer.scale_of(result):
        node.input[0] = writer.activation(source)


def layer_scales(
    index: Index, amax: Mapping[str, float], placement: Placement, exclude: Collection[str] = ()
) -> dict[str, tuple[float, float]]:
    """What :func:`insert_qdq` makes of the input of each layer it quantises: tensor to its scale and offset."""
    chosen, _ = choose_layers(index, amax, exclude)
    found = {
        node.input[0]: (tensor_scale(amax[node.input[0]]), 0.0)
        for node in quantisable_nodes(index)
        if node.name in chosen
    }
    for group in _moved_groups(index, chosen, amax, placement):
        found.update({tensor: shift_of(group, amax) for tensor in group.tensors if tensor in found})
    return found


def _moved_groups(
    index: Index, chosen: Collection[str], amax: Mapping[str, float], placement: Placement
) -> list[ShiftGroup]:
    if not placement.shift:
        return []
    return [group for group in shift_groups(index, chosen) if amax.get(group.tensors[0], 0) > 0]


def tensor_scale(amax: float) -> float:
    """The scale of a tensor whose largest magnitude is ``amax``, exact in float16."""
    return float(half_scale(np.float32(amax / SYMMETRIC_STEPS)))


def nearest(index: Index, node: onnx.NodeProto, method: str, pair_safe: bool) -> RoundedWeights:
    """A layer's weights, each rounded by itself."""
    integers, scale = quantise_weights(index.value(node.input[1]), channel_axis(node), method, pair_safe=pair_safe)
    return RoundedWeights(integers, scale, np.zeros(len(scale)))
