"""INT8 written into the graph: Q/DQ pairs placed for residual networks.

TensorRT 11 has no calibrator; a layer runs in INT8 when its input and its weights come from DequantizeLinear nodes.
What the builder turns into INT8 kernels, and what it accepts and silently runs in floating point, was measured (see
docs/int8.md): activations need one *scalar* scale (shape ``[]``), weights one scale a channel on axis 0, and every
zero-point is 0.

Quantised are the input and the weights of every convolution and of the classifier, and the shortcut input of every
residual addition, so that the addition can join the INT8 kernel before it. The pair stands behind ReLU and pool,
never before them. A tensor with no known scale keeps its readers in floating point; they are reported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from engine_build.onnx_index import Index, attribute
from engine_build.shifted import apply_shift, compensate, shift_groups, shifted_steps
from engine_build.weight_scales import LEVELS, half_scale, quantise_weights

QUANTISED_TYPES = ("Conv", "Gemm")
RESIDUALS = ("identity", "none", "both")


@dataclass(frozen=True)
class Placement:
    """Where activations are quantised.

    Attributes:
        residual: inputs of residual additions that are quantised: ``identity`` (the shortcut), ``none`` or ``both``.
        weights: how weight scales are chosen, see :func:`engine_build.weight_scales.quantise_weights`.
        shift: use the whole int8 range behind ReLUs, see :mod:`engine_build.shifted`.
    """

    residual: str = "identity"
    weights: str = "mse"
    shift: bool = True


@dataclass(frozen=True)
class Quantised:
    """What :func:`insert_qdq` did.

    Attributes:
        nodes: Conv and Gemm nodes that now have INT8 inputs and weights.
        additions: residual additions with a quantised input.
        shifted: activation tensors that use the whole int8 range.
        skipped: Conv and Gemm nodes left in floating point, and the reason.
    """

    nodes: tuple[str, ...]
    additions: tuple[str, ...]
    shifted: tuple[str, ...]
    skipped: Mapping[str, str]


def activation_tensors(model: onnx.ModelProto, placement: Placement | None = None) -> list[str]:
    """Names of the activation tensors that :func:`insert_qdq` needs scales for, in graph order."""
    index = Index(model)
    wanted = [node.input[0] for node in quantisable_nodes(index)]
    for shortcut, branch in residual_inputs(index).values():
        wanted += _residual_choice(shortcut, branch, placement or Placement())
    order = {name: at for at, node in enumerate(model.graph.node) for name in node.output}
    return sorted(dict.fromkeys(wanted), key=lambda name: order.get(name, -1))


def activation_steps(model: onnx.ModelProto, placement: Placement | None = None) -> dict[str, int]:
    """Int8 steps between 0 and amax of the tensors that have more than the 127 of symmetric int8."""
    if not (placement or Placement()).shift:
        return {}
    index = Index(model)
    return shifted_steps(shift_groups(index, {node.name for node in quantisable_nodes(index)}))


def quantisable_nodes(index: Index) -> list[onnx.NodeProto]:
    """Conv and Gemm nodes with constant weights, in graph order."""
    return [n for n in index.graph.node if n.op_type in QUANTISED_TYPES and n.input[1] in index.constants]


def residual_inputs(index: Index) -> dict[str, tuple[str, str]]:
    """Residual additions: node name to ``(shortcut input, branch input)``.

    The branch is the input with more convolutions behind it since the two parted.
    """
    depth: dict[str, int] = {}
    for node in index.graph.node:
        below = max((depth.get(name, 0) for name in node.input), default=0)
        for name in node.output:
            depth[name] = below + (node.op_type == "Conv")
    found = {}
    for node in index.graph.node:
        if node.op_type == "Add" and not any(name in index.constants for name in node.input):
            shortcut, branch = sorted(node.input, key=lambda name: depth.get(name, 0))
            found[node.name] = (shortcut, branch)
    return found


def insert_qdq(
    model: onnx.ModelProto,
    amax: Mapping[str, float],
    placement: Placement | None = None,
    exclude: Collection[str] = (),
) -> tuple[onnx.ModelProto, Quantised]:
    """A copy of the float32 graph with Q/DQ pairs; everything else stays float32.

    Scales are rounded to float16 values, so that the same integers result when the rest of the graph is cast to it.

    Args:
        model: graph of :func:`engine_build.graph.prepare`.
        amax: largest magnitude to represent, of each tensor of :func:`activation_tensors`. Tensors that are missing
            or 0 are not quantised.
        placement: where to quantise; None for the default.
        exclude: Conv and Gemm nodes, and residual additions, to leave in floating point.
    """
    placement = placement or Placement()
    work = onnx.ModelProto()
    work.CopyFrom(model)
    index = Index(work)
    chosen, skipped = _choose(index, amax, exclude)
    additions = {
        name: [t for t in _residual_choice(shortcut, branch, placement) if amax.get(t, 0) > 0]
        for name, (shortcut, branch) in residual_inputs(index).items()
        if name not in exclude
    }
    groups = [g for g in shift_groups(index, chosen) if amax.get(g.tensors[0], 0) > 0] if placement.shift else []
    moved = {tensor: apply_shift(index, group, amax) for group in groups for tensor in group.tensors[:1]}
    moved.update({tensor: moved[group.tensors[0]] for group in groups for tensor in group.tensors})

    writer = _Writer(index, amax, {tensor: scale for tensor, (scale, _) in moved.items()})
    for node in quantisable_nodes(index):
        if node.name in chosen:
            offset = moved.get(node.input[0], (0.0, 0.0))[1]
            writer.quantise_layer(node, placement.weights, offset)
    for node in work.graph.node:
        for position, tensor in enumerate(node.input):
            if tensor in additions.get(node.name, []):
                node.input[position] = writer.dequantised(tensor)
    index.set_nodes(writer.place())
    done = tuple(name for name, tensors in additions.items() if tensors)
    return work, Quantised(tuple(chosen), done, tuple(moved), skipped)


def _choose(
    index: Index, amax: Mapping[str, float], exclude: Collection[str]
) -> tuple[dict[str, None], dict[str, str]]:
    """Names of the layers to quantise in graph order, and the others with the reason."""
    chosen: dict[str, None] = {}
    skipped: dict[str, str] = {}
    for node in quantisable_nodes(index):
        if node.name in exclude:
            skipped[node.name] = "kept in floating point on request"
        elif amax.get(node.input[0], 0.0) <= 0:
            skipped[node.name] = f"no calibrated range for its input {node.input[0]}"
        else:
            chosen[node.name] = None
    return chosen, skipped


def _residual_choice(shortcut: str, branch: str, placement: Placement) -> list[str]:
    return {"identity": [shortcut], "none": [], "both": [shortcut, branch]}[placement.residual]


class _Writer:
    """Makes one shared Q/DQ pair for each activation tensor and one DQ for each weight."""

    def __init__(self, index: Index, amax: Mapping[str, float], scales: Mapping[str, float]) -> None:
        self.index, self.amax, self.scales = index, amax, scales
        self.pairs: dict[str, tuple[onnx.NodeProto, onnx.NodeProto]] = {}
        self.weights: list[onnx.NodeProto] = []
        self.zero = index.set_constant("quantise.zero", np.array(0, np.int8))

    def dequantised(self, tensor: str) -> str:
        if tensor not in self.pairs:
            value = self.scales.get(tensor, self.amax[tensor] / LEVELS)
            scale = self.index.set_constant(f"{tensor}.scale", half_scale(np.float32(value)))
            quantised, restored = f"{tensor}.int8", f"{tensor}.dequantised"
            self.pairs[tensor] = (
                helper.make_node("QuantizeLinear", [tensor, scale, self.zero], [quantised], f"{tensor}.quantise"),
                helper.make_node("DequantizeLinear", [quantised, scale, self.zero], [restored], f"{tensor}.dequantise"),
            )
        return self.pairs[tensor][1].output[0]

    def quantise_layer(self, node: onnx.NodeProto, method: str, offset: float) -> None:
        name = node.input[1]
        weight = self.index.value(name)
        axis = 1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 0
        integers, scale = quantise_weights(weight, axis, method)
        shape = [1] * weight.ndim
        shape[axis] = -1
        if offset:
            compensate(self.index, node, integers * scale.reshape(shape), axis, offset)
        names = (
            self.index.set_constant(f"{name}.int8", integers),
            self.index.set_constant(f"{name}.scale", scale),
            self.index.set_constant(f"{name}.zero", np.zeros(len(scale), np.int8)),
        )
        restored = f"{name}.dequantised"
        self.weights.append(
            helper.make_node("DequantizeLinear", names, [restored], f"{name}.dequantise", axis=axis)
        )
        node.input[0] = self.dequantised(node.input[0])
        node.input[1] = restored

    def place(self) -> list[onnx.NodeProto]:
        """All nodes, each pair directly behind the node that makes its tensor."""
        nodes = [*self.weights]
        for name, pair in self.pairs.items():
            if name not in self.index.producer:
                nodes += pair
        for node in self.index.graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += self.pairs.get(name, ())
        return nodes
