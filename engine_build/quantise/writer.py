"""Q/DQ pairs put into a graph: one for each activation tensor, which all its readers share, and one DQ a weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper

from calibration.onnx_index import Index
from calibration.tensors import floating_products, quantisable_nodes, residual_choice, residual_inputs


class PairWriter:
    """Collects the nodes, and puts each behind what it reads.

    Args:
        index: of the graph, which gets the constants at once and the nodes with :meth:`place`.
        kind: of the integers, or of the 8-bit floats.
        word: what names of quantised tensors end with.
        scale_of: scale of an activation tensor, float32.

    Attributes:
        pairs: of each activation tensor that was asked for.
    """

    def __init__(
        self, index: Index, kind: DTypeLike, word: str, scale_of: Callable[[str], np.float32 | NDArray[np.float32]]
    ) -> None:
        self.index, self.kind, self.word, self.scale_of = index, kind, word, scale_of
        self.pairs: dict[str, tuple[onnx.NodeProto, onnx.NodeProto]] = {}
        self._weights: dict[str, onnx.NodeProto] = {}
        self._zero = index.set_constant("quantise.zero", np.array(0, kind))

    def activation(self, tensor: str) -> str:
        """The tensor behind the pair of ``tensor``."""
        if tensor not in self.pairs:
            scale = self.index.set_constant(f"{tensor}.scale", np.array(self.scale_of(tensor), np.float32))
            quantised, restored = f"{tensor}.{self.word}", f"{tensor}.dequantised"
            self.pairs[tensor] = (
                helper.make_node("QuantizeLinear", [tensor, scale, self._zero], [quantised], f"{tensor}.quantise"),
                helper.make_node(
                    "DequantizeLinear", [quantised, scale, self._zero], [restored], f"{tensor}.dequantise"
                ),
            )
        return str(self.pairs[tensor][1].output[0])

    def weight(self, name: str, axis: int, quantise: Callable[[], tuple[NDArray[Any], NDArray[np.float32]]]) -> str:
        """The tensor behind the DQ of the weight ``name``; ``quantise`` gives its values and scales, once."""
        restored = f"{name}.dequantised"
        if name not in self._weights:
            values, scale = quantise()
            inputs = (
                self.index.set_constant(f"{name}.{self.word}", values),
                self.index.set_constant(f"{name}.scale", scale),
                self.index.set_constant(f"{name}.zero", np.zeros(len(scale), self.kind)),
            )
            node = helper.make_node("DequantizeLinear", inputs, [restored], f"{name}.dequantise", axis=axis)
            self._weights[name] = node
        return restored

    def place(self) -> list[onnx.NodeProto]:
        """All nodes, each pair directly behind the node that makes its tensor."""
        nodes = [*self._weights.values()]
        for name, pair in self.pairs.items():
            if name not in self.index.producer:
                nodes += pair
        for node in self.index.graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += self.pairs.get(name, ())
        return nodes


def choose_layers(
    index: Index,
    amax: Mapping[str, float],
    exclude: Collection[str],
    unfit: Callable[[onnx.NodeProto], str | None] = lambda node: None,
) -> tuple[dict[str, None], dict[str, str]]:
    """Names of the layers to quantise in graph order, and the others with the reason.

    Args:
        index: of the float graph.
        amax: largest magnitude of each activation tensor.
        exclude: nodes to leave in floating point.
        unfit: why a layer cannot be quantised; None where it can.
    """
    chosen: dict[str, None] = {}
    skipped = floating_products(index)
    for node in quantisable_nodes(index):
        if node.name in exclude:
            skipped[node.name] = "kept in floating point on request"
        elif (reason := unfit(node)) is not None:
            skipped[node.name] = reason
        elif amax.get(node.input[0], 0.0) <= 0:
            skipped[node.name] = f"no calibrated range for its input {node.input[0]}"
        else:
            chosen[node.name] = None
    return chosen, skipped


def choose_additions(
    index: Index, amax: Mapping[str, float], exclude: Collection[str], residual: str
) -> dict[str, list[str]]:
    """Of each residual addition the inputs to quantise: ``none``, ``identity`` (the shortcut) or ``both``."""
    return {
        name: [tensor for tensor in residual_choice(shortcut, branch, residual) if amax.get(tensor, 0) > 0]
        for name, (shortcut, branch) in residual_inputs(index).items()
        if name not in exclude
    }
