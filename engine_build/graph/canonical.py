"""Exporters' variants of one network brought into one form, the first pass of ``engine_build.graph.passes``."""

from __future__ import annotations

import ast
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from calibration.onnx_index import Index, attribute
from engine_build.graph.constants import fold_constants, own_constants
from engine_build.graph.names import RESERVED, clean
from engine_build.graph.products import plain_products
from engine_build.graph.shapes import tensor_ranks

_IMAGE = 4  # dimensions of [N, C, H, W]


def canonicalise(model: onnx.ModelProto) -> None:
    """Bring exporters' variants into one form, in place.

    ``Identity`` nodes go; what depends on constants only becomes an initializer, read by one node and called after it
    (:mod:`engine_build.graph.constants`); matrix products and additions of a bias become plain Conv and Gemm
    (:mod:`engine_build.graph.products`); reductions keep their dimensions, which a Squeeze then drops; ``ReduceMean``
    over the image becomes ``GlobalAveragePool``; what only drops its 1x1 becomes ``Flatten``; nodes and tensors get
    unique names after the module they came from (``layer1.0.conv1``), so that a calibration cache can be read;
    exporters' notes, which hold local paths, go.
    """
    index = Index(model)
    index.set_nodes([node for node in model.graph.node if not _drop_identity(node, index)])
    fold_constants(index)
    ranks = tensor_ranks(index) if any(node.op_type.startswith("Reduce") for node in model.graph.node) else {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        while node.input and not node.input[-1]:  # an input left out at the end is the same as none
            del node.input[-1]
        nodes += _with_dimensions(node, ranks, index) if node.op_type.startswith("Reduce") else [node]
    index.set_nodes(nodes)
    for node in model.graph.node:
        producer = index.producer.get(node.input[0]) if node.input else None
        if node.op_type in ("Reshape", "Squeeze") and _drops_ones(node, producer, index):
            _become(node, helper.make_node("Flatten", node.input[:1], node.output, axis=1))
    index.set_nodes(model.graph.node)
    _rename(index)
    plain_products(index)
    own_constants(index)
    del model.graph.value_info[:]
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _become(node: onnx.NodeProto, other: onnx.NodeProto) -> None:
    """Turn ``node`` into ``other`` but keep its name and the notes that it is named by."""
    other.name = node.name
    other.metadata_props.extend(node.metadata_props)
    node.CopyFrom(other)


def _drop_identity(node: onnx.NodeProto, index: Index) -> bool:
    """Let the readers of an Identity read its input; False for other nodes and where its result is an output."""
    if node.op_type != "Identity" or node.output[0] in index.outputs:
        return False
    index.replace_reads(node.output[0], node.input[0])
    return True


def _drops_ones(node: onnx.NodeProto, producer: onnx.NodeProto | None, index: Index) -> bool:
    """Whether a reshape turns pooled ``[N, C, 1, 1]`` into ``[N, C]``; a computed shape is taken to do so."""
    if producer is None or producer.op_type != "GlobalAveragePool" or len(node.input) < 2:
        return False
    if node.op_type == "Squeeze":
        return node.input[1] in index.constants and sorted(int(a) % 4 for a in index.value(node.input[1])) == [2, 3]
    return node.input[1] not in index.constants or index.value(node.input[1]).size == 2


def _with_dimensions(node: onnx.NodeProto, ranks: Mapping[str, int], index: Index) -> list[onnx.NodeProto]:
    """A reduction that keeps its dimensions, and a Squeeze where it did not; the mean of an image as a pool.

    OpenVINO 2026.4 computes a reduction of three dimensions wrongly when it drops one and is rounded to int8 at once.
    """
    axes = attribute(node, "axes")
    if len(node.input) > 1 and node.input[1] in index.constants:
        axes = index.value(node.input[1]).ravel().tolist()
    if not axes:
        return [node]
    rank = ranks.get(node.input[0], 4)
    keeps = bool(attribute(node, "keepdims", 1))
    result = list(node.output)
    dropped = [] if keeps else [index.fresh_name(f"{result[0]}.kept")]
    if node.op_type == "ReduceMean" and rank == _IMAGE and sorted(axis % rank for axis in axes) == [2, 3]:
        _become(node, helper.make_node("GlobalAveragePool", node.input[:1], dropped or result))
    elif not keeps:
        kept = [item for item in node.attribute if item.name != "keepdims"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("keepdims", 1)])
        node.output[0] = dropped[0]
    if keeps:
        return [node]
    places = index.set_constant(index.fresh_name(f"{result[0]}.axes"), np.array(axes, np.int64))
    squeeze = helper.make_node("Squeeze", [dropped[0], places], result, f"{node.name}.squeeze" if node.name else "")
    squeeze.metadata_props.extend(node.metadata_props)
    return [node, squeeze]


def _rename(index: Index) -> None:
    """Unique names that every text format carries; inputs and outputs of the graph keep theirs."""
    fixed = {value.name for value in (*index.graph.input, *index.graph.output)}
    taken = {_spelled(name) for name in RESERVED}
    tensors: dict[str, str] = {}
    for node in index.graph.node:
        name = base = clean(_module_name(node) or node.name) or node.op_type.lower()
        number = 1
        while _spelled(name) in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(_spelled(name))
        node.name = name
        for position, output in enumerate(node.output):
            if output and output not in fixed:
                tensors[output] = f"{name}_output" + (f"_{position}" if position else "")
    for node in index.graph.node:
        for names in (node.input, node.output):
            for position, old in enumerate(names):
                names[position] = tensors.get(old, old)
    index.refresh()


def _spelled(name: str) -> str:
    """As TensorRT's listing may spell ``name``; two nodes must not become one there."""
    return name.replace(".", "_")


def _module_name(node: onnx.NodeProto) -> str | None:
    """``layer1.0.conv1`` from the weight, else the module path that torch's exporter notes; None if neither."""
    if node.op_type in ("Conv", "Gemm"):  # torch's exporter notes the BN that it folded into them, not their own path
        for name in node.input[1:]:
            if name.endswith(".weight"):
                return name.removesuffix(".weight")
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":
            scopes: list[str] = ast.literal_eval(item.value)
            path = scopes[-2] if len(scopes) > 1 else ""
            kind = node.op_type.lower()
            leaf = node.op_type == "BatchNormalization" or path.rsplit(".", 1)[-1] == kind
            return path if leaf else f"{path}.{kind}".lstrip(".")
    return None
