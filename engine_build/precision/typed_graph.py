"""The last step before the targets: a float32 graph, quantised or not, becomes the typed graph of a bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from calibration.onnx_index import Index
from engine_build.graph.check import TOLERANCE, check_step
from engine_build.graph.valid import check_valid
from engine_build.precision.casts import ALWAYS_FLOAT32, kind_of, to_precision, value_types
from engine_build.precision.float16 import (
    PAIR,
    REASONS,
    UNDERFLOW,
    TinyChannels,
    float32_nodes,
)
from engine_build.precision.neighbours import with_neighbours
from engine_build.precision.opsets import opset_for, opset_of, raised
from engine_build.precision.ranges import channel_ranges
from engine_build.source import Source

#: Why a node has no other type: no opset has its operator in it.
NO_FORM = "ONNX has no such form"
#: Why a node has no other type: its neighbours have none (:mod:`engine_build.precision.neighbours`).
BESIDE = "as its neighbours do"
_SHOWN = 5


@dataclass(frozen=True)
class TypedGraph:
    """A strongly typed graph.

    Attributes:
        graph: as the bundle holds it.
        float32: nodes that stay float32 though the precision is another, in graph order, each with the reason.
    """

    graph: onnx.ModelProto
    float32: dict[str, str]

    def notes(self) -> list[str]:
        """One line a reason, with the first of its nodes."""
        lines = []
        index = Index(self.graph)
        quantised = {n.name for n in self.graph.graph.node if any(_is_dequantised(index, name) for name in n.input)}
        for reason in (*REASONS, NO_FORM, BESIDE):
            names = [name for name, why in self.float32.items() if why == reason]
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                stay = f"{len(names)} nodes stay" if len(names) > 1 else "1 node stays"
                stay += " float32" + (" around their integers" if quantised.intersection(names) else "")
                lines.append(f"{stay}, {reason}: {', '.join(names[:_SHOWN])}{more}")
        return lines


def _is_dequantised(index: Index, name: str) -> bool:
    return name in index.producer and index.producer[name].op_type == "DequantizeLinear"


class Typing:
    """Types graphs of one source; what it measured for one it keeps for the next."""

    def __init__(self, source: Source, images: NDArray[np.uint8]) -> None:
        """``images`` uint8 ``[N, crop, crop, 3]`` show the ranges of the activations."""
        self._source, self._images = source, images
        self._matters: dict[object, bool] = {}
        self._raised: set[int] = {opset_of(source.graph)}

    @cached_property
    def amax(self) -> dict[str, NDArray[np.float32]]:
        """Largest magnitude of each channel of each activation tensor of the source."""
        return channel_ranges(self._source.graph, self._images)

    def measure(self, precision: str) -> None:
        """Measure now what typing a graph in ``precision`` will need."""
        if precision not in ("fp32", "bf16"):
            _ = self.amax

    def typed(self, graph: onnx.ModelProto, precision: str) -> TypedGraph:
        """``graph``, the source's own or that with Q/DQ pairs, in ``precision`` (``int8`` for every one with pairs).

        Raises:
            InputError: unknown precision.
            GraphError: ONNX cannot bring the graph into an opset that has the types, or that changes its results, or
                the outcome is not valid.
        """
        float32 = self.float32_nodes(graph, precision)
        result = to_precision(graph, precision, float32)
        self._check_opset(opset_of(result))
        check_valid(result, f"the {precision} graph")
        return TypedGraph(result, float32)

    def float32_nodes(self, graph: onnx.ModelProto, precision: str) -> dict[str, str]:
        """The nodes of ``graph`` that stay float32 in ``precision``, in graph order, each with the reason."""
        kind = kind_of(precision)
        if kind == TensorProto.FLOAT:
            return {}
        found: dict[str, str] = {}
        if kind == TensorProto.FLOAT16:
            amax = {name: float(channels.max(initial=0)) for name, channels in self.amax.items()}
            found = float32_nodes(graph, amax, ALWAYS_FLOAT32)
            tiny = TinyChannels.of(graph, self.amax, {*found, *ALWAYS_FLOAT32})
            if tiny.nodes and self._matter(tiny):
                found.update(dict.fromkeys(tiny.nodes, UNDERFLOW))
        _, without = opset_for(graph, value_types(graph), kind, {*found, *ALWAYS_FLOAT32})
        found.update(dict.fromkeys(without, NO_FORM))
        kept = with_neighbours(graph, {*found, *ALWAYS_FLOAT32}).difference(ALWAYS_FLOAT32)
        return {
            node.name: found.get(node.name, BESIDE)
            for node in graph.graph.node
            if node.name in kept and node.op_type not in PAIR
        }

    def _matter(self, tiny: TinyChannels) -> bool:
        """Whether the source answers differently without these channels."""
        from engine_build.graph.reference import graph_logits

        constants = {tensor.name for tensor in self._source.graph.graph.initializer}  # others came with the pairs
        tiny = replace(tiny, constants=frozenset(place for place in tiny.constants if place[0] in constants))
        key = (tiny.constants, tuple(tiny.activations))
        if key not in self._matters:
            without = tiny.removed_from(self._source.graph)
            exact, found = (
                graph_logits(model, self._source.spec)(self._images) for model in (self._source.graph, without)
            )
            self._matters[key] = not float(np.abs(found - exact).max()) <= TOLERANCE * float(np.abs(exact).max())
        return self._matters[key]

    def _check_opset(self, opset: int) -> None:
        """Once for each opset: the converted source gives the logits that it gave before."""
        if opset not in self._raised:
            converted = raised(self._source.graph, opset)
            check_step(f"opset {opset}", converted, self._source.spec, self._source.reference)
            self._raised.add(opset)
