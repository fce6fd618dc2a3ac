"""How much each layer, rounded to int8 alone, moves the logits.

The measure is the mean squared error of the logits against float32 when only this one layer is rounded. Such errors
are small and nearly independent, so they add up: on the shipped model their sum is within 15 % of the error with all
layers rounded (docs/auto.md). That makes them a sound order in which to give layers back their precision, and a far
steadier one than the gain from un-rounding a layer among rounded ones, which drowns in the noise of the others.

Rounding is computed with elementary operations (divide, round, clip, multiply) in float32, so that no optimiser can
take it for something else. Layer by layer only the part of the network from its block on is computed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from calibration.int8 import HIGHEST, LOWEST
from calibration.onnx_index import Index
from calibration.segments import Segment, cut
from infer.errors import GraphError, InputError

_BATCH = 4  # images a run: few enough for the memory of a 224 x 224 network, enough to hide the cost of a call
_MOST_THREADS = 16


@dataclass(frozen=True)
class Rounding:
    """What int8 does to the inputs of one node.

    Attributes:
        activations: input position to ``(scale, offset)``: ``x`` becomes ``s clip(round((x - o) / s), -128, 127) + o``.
        weights: input position to the rounded values, float32.
    """

    activations: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    weights: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)


def roundings(
    quantised: onnx.ModelProto, tensors: Mapping[str, tuple[float, float]], names: list[str]
) -> dict[str, Rounding]:
    """Read from a Q/DQ graph what happens to the inputs of the named nodes.

    Args:
        quantised: the graph, its activations and weights behind DequantizeLinear nodes.
        tensors: scale and offset of each quantised activation tensor of the float graph.
        names: nodes with at least one such input.

    Raises:
        GraphError: a node is missing.
    """
    index = Index(quantised)
    nodes = {node.name: node for node in quantised.graph.node}
    found = {}
    for name in names:
        if name not in nodes:
            raise GraphError(f"the quantised graph has no node {name!r}")
        activations: dict[int, tuple[float, float]] = {}
        weights: dict[int, NDArray[np.float32]] = {}
        for position, tensor in enumerate(nodes[name].input):
            restore = index.producer.get(tensor)
            if restore is None or restore.op_type != "DequantizeLinear":
                continue
            if restore.input[0] in index.constants:
                weights[position] = _dequantised(index, restore)
            else:
                activations[position] = tensors[index.producer[restore.input[0]].input[0]]
        found[name] = Rounding(activations, weights)
    return found


def logit_errors(
    model: onnx.ModelProto,
    candidates: Mapping[str, Rounding],
    images: NDArray[np.uint8],
    *,
    output: str = "logits",
    progress: Callable[[int], None] = lambda count: None,
    threads: int | None = None,
) -> dict[str, float]:
    """Mean squared error of the logits when one node alone is rounded, for each of ``candidates``.

    The same to the last bit for any number of threads: each run has a fixed batch on one thread, and sums are taken
    in the order of the images.

    Args:
        model: float32 graph with one input.
        candidates: node name to its rounding.
        images: inputs, uint8 ``[N, crop, crop, 3]``. All intermediate results of one place in the network are held.
        output: name of the logits, float32 ``[N, C]``.
        progress: called with 1 after each node.
        threads: CPU threads; None for all that this process may use.

    Returns:
        Node name to error, in units of the logits squared, in the order of ``candidates``.

    Raises:
        InputError: no images.
        GraphError: the graph does not run, or lacks a node.
    """
    if not len(images):
        raise InputError("no images to measure the sensitivity of layers with; expected at least one")
    segments = cut(model, output, candidates)
    known = {name for segment in segments for name in segment.nodes}
    if missing := [name for name in candidates if name not in known]:
        raise GraphError(f"the logits do not depend on {missing[0]!r}; expected nodes of the graph")
    chain = [_Session(segment) for segment in segments]
    errors: dict[str, float] = {}
    with ThreadPoolExecutor(_workers(threads), thread_name_prefix="sensitivity") as pool:

        def run_all(sessions: list[_Session], parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
            def run(part: NDArray[Any]) -> NDArray[Any]:
                for session in sessions:
                    part = session.run(part)
                return part

            return list(pool.map(run, parts))

        at_segment: list[NDArray[Any]] = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        expected = run_all(chain, at_segment)
        for position, segment in enumerate(segments):
            for name in (name for name in segment.nodes if name in candidates):
                rounded = _Session(with_rounding(segment, name, candidates[name]))
                found = run_all([rounded, *chain[position + 1 :]], at_segment)
                errors[name] = _mean_squared_error(found, expected)
                progress(1)
            at_segment = run_all([chain[position]], at_segment)
    return {name: errors[name] for name in candidates}


def with_rounding(segment: Segment, name: str, rounding: Rounding) -> Segment:
    """``segment`` with the inputs of the node ``name`` rounded."""
    model = onnx.ModelProto()
    model.CopyFrom(segment.model)
    index = Index(model)
    node = next(node for node in model.graph.node if node.name == name)
    before: list[onnx.NodeProto] = []
    for position, (scale, offset) in rounding.activations.items():
        node.input[position] = _round(index, before, node.input[position], f"{name}.{position}", scale, offset)
    for position, values in rounding.weights.items():
        node.input[position] = index.set_constant(f"{name}.{position}.rounded", values)
    nodes = list(model.graph.node)
    at = next(i for i, other in enumerate(nodes) if other.name == name)
    index.set_nodes([*nodes[:at], *before, *nodes[at:]])
    return Segment(model, segment.input, segment.output, segment.nodes)


def _round(index: Index, nodes: list[onnx.NodeProto], tensor: str, prefix: str, scale: float, offset: float) -> str:
    """Append nodes that round ``tensor``; gives the name of the result."""
    steps = (
        ("Sub", (offset,)),
        ("Div", (scale,)),
        ("Round", ()),
        ("Clip", (float(LOWEST), float(HIGHEST))),
        ("Mul", (scale,)),
        ("Add", (offset,)),
    )
    for operator, values in steps:
        if operator in ("Sub", "Add") and not offset:
            continue
        label = f"{prefix}.{operator.lower()}"
        constants = [
            index.set_constant(f"{label}.{number}", np.array(value, np.float32)) for number, value in enumerate(values)
        ]
        nodes.append(helper.make_node(operator, [tensor, *constants], [label], label))
        tensor = label
    return tensor


def _dequantised(index: Index, node: onnx.NodeProto) -> NDArray[np.float32]:
    integers, scale = index.value(node.input[0]), index.value(node.input[1]).astype(np.float32)
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    if scale.ndim:
        scale = scale.reshape([-1 if at == axis else 1 for at in range(integers.ndim)])
    return (integers.astype(np.float32) * scale).astype(np.float32)


def _mean_squared_error(found: list[NDArray[Any]], expected: list[NDArray[Any]]) -> float:
    total, count = 0.0, 0
    for one, other in zip(found, expected, strict=True):
        total += float(((one.astype(np.float64) - other) ** 2).sum())
        count += one.size
    return total / count


class _Session:
    """A segment in ONNX Runtime, one thread a run. Safe to call from several threads."""

    def __init__(self, segment: Segment) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                segment.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base
            raise GraphError(f"ONNX Runtime does not accept a part of the graph ({str(error)[:300]})") from error
        self._input, self._output = segment.input, segment.output

    def run(self, value: NDArray[Any]) -> NDArray[Any]:
        try:
            result: NDArray[Any] = self._session.run([self._output], {self._input: value})[0]
        except Exception as error:  # as above
            raise GraphError(f"ONNX Runtime cannot run a part of the graph ({str(error)[:300]})") from error
        return result


def _workers(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise InputError(f"threads: expected at least 1, found {threads}")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return threads or min(cpus, _MOST_THREADS)
