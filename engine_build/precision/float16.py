"""What float16 cannot hold: nodes that stay float32 in an otherwise float16 graph, and why.

float16 ends at 65504 and loses bits below 2^-14, down to nothing at 2^-25. bfloat16 has the exponents of float32, so
what is written here does not concern it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calibration.onnx_index import Index
from engine_build.graph.shapes import infer_shapes

FLOAT16_MAX = 65504.0
#: The smallest normal float16; below it, bits are lost.
FLOAT16_LEAST = 2.0**-14
# Half the smallest subnormal: what is not larger becomes 0.
_VANISHES = 2.0**-25
# Ranges come from sample images; another image may exceed them. Twice the range is still allowed for. At the small end
# nothing is added: a tensor just above the limit still has all of its 11 bits in its largest values.
MARGIN = 2.0

OVERFLOW = "float16 would overflow"
UNDERFLOW = "float16 would underflow to 0"
SUBNORMAL = "float16 would be subnormal"
REASONS = (OVERFLOW, UNDERFLOW, SUBNORMAL)

#: Positions of bounds: whatever float16 cannot hold bounds nothing there, and the nearest float16 does the same.
BOUNDS = {"Clip": (1, 2)}
PAIR = ("QuantizeLinear", "DequantizeLinear")


def float32_nodes(model: onnx.ModelProto, amax: Mapping[str, float], but: Collection[str] = ()) -> dict[str, str]:
    """Nodes that float16 cannot compute, in graph order, each with one of :data:`REASONS`.

    A node counts when a tensor that it reads or writes

    * may exceed the largest float16, with a margin of two, or is nothing but subnormal numbers;
    * is a constant with a number beyond float16, or with nothing but numbers below its normal range;
    * is dequantised with a scale that is no normal float16.

    Q/DQ nodes themselves are not named: they follow their readers (:mod:`engine_build.precision.neighbours`).

    Args:
        model: a float32 graph, with Q/DQ pairs or without.
        amax: largest magnitude seen in each activation tensor; tensors that are missing or 0 say nothing.
        but: names of nodes that are float32 anyway.
    """
    index = Index(model)
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.name in but or node.op_type in PAIR:
            continue
        bounds = BOUNDS.get(node.op_type, ())
        magnitudes = [_of_activation(amax.get(name, 0.0)) for name in node.output]
        for position, name in enumerate(node.input):
            if name in index.constants:
                magnitudes.append(_of_constant(index.value(name), position in bounds))
                continue
            source, scale = _behind_pair(index, name)
            magnitudes += [_of_activation(amax.get(source, 0.0)), scale]
        reasons = [reason for reason in REASONS if reason in magnitudes]
        if reasons:
            found[node.name] = reasons[0]
    return found


def _behind_pair(index: Index, name: str) -> tuple[str, str | None]:
    """The tensor that was quantised into what ``name`` dequantises, itself if none, and what is wrong with a scale."""
    restore = index.producer.get(name)
    if restore is None or restore.op_type != "DequantizeLinear":
        return name, None
    quantise = index.producer.get(restore.input[0])
    source = name if quantise is None else quantise.input[0]
    return source, of_scale(index.value(restore.input[1]))


def _of_activation(amax: float) -> str | None:
    return OVERFLOW if amax > FLOAT16_MAX / MARGIN else _of_small(amax)


def _of_small(largest: float) -> str | None:
    if not 0 < largest < FLOAT16_LEAST:
        return None
    return SUBNORMAL if largest > _VANISHES else UNDERFLOW


def _of_constant(value: NDArray[np.generic], bound: bool) -> str | None:
    if value.dtype != np.float32:
        return None
    finite = np.abs(value[np.isfinite(value)])
    largest = float(finite.max()) if finite.size else 0.0
    return OVERFLOW if largest > FLOAT16_MAX and not bound else _of_small(largest)


def of_scale(scale: NDArray[np.generic]) -> str | None:
    """Why ``scale``, of one Q/DQ node, has to be float32; None where every element is a normal float16."""
    if float(scale.max()) > FLOAT16_MAX:
        return OVERFLOW
    return _of_small(float(scale.min()))


# Constants by operator and position, with the axes of their channels: of the output and of the input.
_CHANNELS: dict[str, dict[int, tuple[int, ...]]] = {
    "Conv": {1: (0, 1)},
    "Gemm": {1: (0, 1)},
    "MatMul": {0: (0, 1), 1: (0, 1)},
    "BatchNormalization": {1: (0,)},
}


@dataclass(frozen=True)
class TinyChannels:
    """Channels that float16 loses, of tensors that it holds otherwise.

    :func:`float32_nodes` sees a tensor that is lost as a whole. Trained networks also have channels that died, whose
    weights are 1e-10 and do nothing, and a network may have channels as small that are made large again behind.
    Only a run can tell the two apart: :meth:`removed_from`.

    Attributes:
        nodes: that have such constants, or read or write such activations, in graph order.
        constants: name and axis of constants with a slice of nothing but numbers below float16's normal range.
        activations: name to the channels, along axis 1, that never rise above it.
    """

    nodes: tuple[str, ...]
    constants: frozenset[tuple[str, int]]
    activations: Mapping[str, NDArray[np.bool_]]

    @classmethod
    def of(
        cls, model: onnx.ModelProto, amax: Mapping[str, NDArray[np.float32]], but: Collection[str] = ()
    ) -> TinyChannels:
        """Those of the float32 graph ``model``, with Q/DQ pairs or without.

        Args:
            model: the graph.
            amax: largest magnitude of each channel of each activation tensor.
            but: names of nodes that are float32 anyway.
        """
        index = Index(model)
        tiny = {name: _is_tiny(each) for name, each in amax.items() if each.max(initial=0) >= FLOAT16_LEAST}
        nodes, constants, touched = [], set(), set()
        for node in model.graph.node:
            if node.name in but or node.op_type in PAIR:
                continue
            tensors = {*node.output, *(_behind_pair(index, name)[0] for name in node.input)}
            found = {name for name in tensors & tiny.keys() if tiny[name].any()}
            if (own := _tiny_constants(node, index)) or found:
                nodes.append(node.name)
            constants |= own
            touched |= found
        return cls(tuple(nodes), frozenset(constants), {name: tiny[name] for name in sorted(touched)})

    def removed_from(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the float32 graph ``model`` in which they all are 0."""
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        index = Index(probe)
        for name, axis in self.constants:
            value = index.value(name)
            index.set_constant(name, np.where(_expanded(_is_tiny_slice(value, axis), axis, value.ndim), 0, value))
        shapes = infer_shapes(model)
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*shapes.value_info, *shapes.output)}
        nodes = []
        for node in probe.graph.node:
            nodes.append(node)
            for position, name in enumerate(node.output):
                if name in self.activations:
                    mask = _expanded(~self.activations[name], 1, ranks[name]).astype(np.float32)
                    node.output[position] = f"{name}.whole"
                    inputs = [f"{name}.whole", index.set_constant(f"{name}.mask", mask)]
                    nodes.append(helper.make_node("Mul", inputs, [name], f"{name}.without"))
        index.set_nodes(nodes)
        return probe


def _tiny_constants(node: onnx.NodeProto, index: Index) -> set[tuple[str, int]]:
    found = set()
    for position, axes in _CHANNELS.get(node.op_type, {}).items():
        name = node.input[position] if position < len(node.input) else ""
        if name in index.constants and (value := index.value(name)).dtype == np.float32:
            found |= {(name, axis) for axis in axes if axis < value.ndim and _is_tiny_slice(value, axis).any()}
    return found


def _is_tiny_slice(value: NDArray[np.float32], axis: int) -> NDArray[np.bool_]:
    others = tuple(at for at in range(value.ndim) if at != axis)
    return _is_tiny(np.abs(value).max(axis=others, initial=0))


def _is_tiny(largest: NDArray[np.float32]) -> NDArray[np.bool_]:
    return (largest > 0) & (largest < FLOAT16_LEAST)


def _expanded(mask: NDArray[np.bool_], axis: int, dimensions: int) -> NDArray[np.bool_]:
    return mask.reshape([-1 if at == axis else 1 for at in range(dimensions)])
