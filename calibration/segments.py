"""A graph cut into a chain of small graphs, wherever a single tensor carries everything that is still needed.

Between two blocks of a residual network only the sum is alive, so such a network falls into its blocks. What changes
inside one block can then be computed again from that block on, with nothing before it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from calibration.onnx_index import Index
from infer.errors import GraphError


@dataclass(frozen=True)
class Segment:
    """A part of a graph with one input and one output.

    Attributes:
        model: a model of its own.
        input, output: names of its tensors.
        nodes: names of its nodes, in order.
    """

    model: onnx.ModelProto
    input: str
    output: str
    nodes: tuple[str, ...]


def cut(model: onnx.ModelProto, output: str, wanted: Collection[str]) -> list[Segment]:
    """Cut what computes ``output`` into as many segments as it has, each with at least one of the ``wanted`` nodes.

    Args:
        model: a graph with one input; its nodes in order of computation.
        output: the tensor that the last segment gives; a graph output.
        wanted: node names.

    Returns:
        Segments, each reading what the one before it gives. What follows the last wanted node is in the last one.

    Raises:
        GraphError: more than one input, or nothing computes ``output``.
    """
    index = Index(model)
    inputs = [value for value in model.graph.input if value.name not in index.constants]
    if len(inputs) != 1:
        raise GraphError(f"expected a graph with one input, found {[value.name for value in inputs]}")
    nodes = _needed(index, output)
    last_use = {name: at for at, node in enumerate(nodes) for name in node.input}
    last_use[output] = len(nodes)

    segments: list[Segment] = []
    alive = {inputs[0].name}
    begin, source = 0, inputs[0].name
    for at, node in enumerate(nodes):
        alive.update(name for name in node.output if last_use.get(name, -1) > at)
        alive = {name for name in alive if last_use[name] > at}
        rest = nodes[at + 1 :]
        has_wanted = any(n.name in wanted for n in nodes[begin : at + 1])
        is_end = not rest
        if is_end or (len(alive) == 1 and has_wanted and any(n.name in wanted for n in rest)):
            (tensor,) = alive
            segments.append(_segment(index, nodes[begin : at + 1], inputs[0] if begin == 0 else source, tensor))
            begin, source = at + 1, tensor
    return segments


def _needed(index: Index, output: str) -> list[onnx.NodeProto]:
    """The nodes that ``output`` depends on, in order, without Constant nodes."""
    if output not in index.producer:
        raise GraphError(f"nothing in the graph computes {output!r}")
    needed: set[str] = {output}
    kept = []
    for node in reversed(index.graph.node):
        if node.op_type != "Constant" and needed.intersection(node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
    return kept[::-1]


def _segment(index: Index, nodes: list[onnx.NodeProto], source: onnx.ValueInfoProto | str, output: str) -> Segment:
    if isinstance(source, str):
        source = helper.make_tensor_value_info(source, TensorProto.FLOAT, None)
    read = dict.fromkeys(name for node in nodes for name in node.input)
    constants = []
    for name in read:
        if name in index.constants:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(index.constants[name])
            tensor.name = name
            constants.append(tensor)
    graph = helper.make_graph(nodes, "segment", [source], [onnx.ValueInfoProto(name=output)], constants)
    part = helper.make_model(graph, opset_imports=index.model.opset_import, ir_version=index.model.ir_version)
    part.functions.extend(index.model.functions)
    return Segment(part, source.name, output, tuple(node.name for node in nodes))
