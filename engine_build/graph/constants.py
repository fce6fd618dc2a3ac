"""Constants of a float graph: computed where they can be, and each read by one node only.

Exporters keep weights behind Cast, Transpose, Reshape or DequantizeLinear, and let several nodes read one initializer
when their weights are equal. The passes rewrite the constants of single layers. So both end here, once, before any
pass: a chain of nodes that depends on constants only becomes its result, and every reader gets a copy of its own.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from calibration.onnx_index import Index
from engine_build.graph.shapes import infer_shapes

# A result may have as many elements as what it is computed from, or so many.
_SMALL = 1 << 20
_RANDOM = (
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
_PARTS = {
    "BatchNormalization": ("", "scale", "shift", "mean", "variance"),
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "MatMul": ("", "weight"),
}


def depends_on_constants(node: onnx.NodeProto, index: Index, known: set[str]) -> bool:
    """Whether ``node`` gives the same result at every run: it reads only ``known`` tensors or constants.

    Random numbers, control flow and operators of other domains never count, nor does a result of the whole graph.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM or index.outputs & set(node.output):
        return False
    if any(item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for item in node.attribute):
        return False
    read = [name for name in node.input if name]
    return bool(read) and all(name in index.constants or name in known for name in read)


def fold_constants(index: Index) -> None:
    """Replace every node that depends on constants only by its result, in place.

    ONNX's reference evaluator computes them. A node stays as it is where its result is larger than all it reads and
    than a million elements, or where the evaluator cannot do it.
    """
    for name in list(index.constants):  # those of Constant nodes
        if name in index.producer:
            index.set_constant(name, index.value(name))
    kept = []
    for node in index.graph.node:
        results = _evaluate(node, index) if depends_on_constants(node, index, set()) else None
        if results is not None:
            index.graph.initializer.extend(results)
            index.constants.update({tensor.name: tensor for tensor in results})
        elif node.op_type != "Constant":
            kept.append(node)
    index.set_nodes(kept)


def _evaluate(node: onnx.NodeProto, index: Index) -> list[onnx.TensorProto] | None:
    """The results of a node that reads constants only; None where they are too large or cannot be computed."""
    from onnx.reference import ReferenceEvaluator

    graph = onnx.GraphProto(name="constants", node=[node])
    for name in dict.fromkeys(name for name in node.input if name):
        graph.initializer.add().CopyFrom(index.constants[name])
        graph.initializer[-1].name = name
    model = onnx.ModelProto(ir_version=index.model.ir_version, graph=graph)
    model.opset_import.extend(index.model.opset_import)
    written = [name for name in node.output if name]
    try:
        allowed = max(_SMALL, sum(math.prod(tensor.dims) for tensor in graph.initializer))
        if not all(_fits(value, allowed) for value in infer_shapes(model).value_info):
            return None
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in written)
        values = ReferenceEvaluator(model).run(None, {})
        return [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(written, values, strict=True)]
    except (
        Exception
    ):  # what numpy and ONNX raise has no common base; the node then stays, and is listed with its reader
        return None


def _fits(value: onnx.ValueInfoProto, allowed: int) -> bool:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return False
    return math.prod(dim.dim_value for dim in kind.shape.dim) <= allowed


def own_constants(index: Index) -> None:
    """Give every node constants that no other reads, called after it (``conv1.weight``), in place.

    Node names must be unique. From here on a pass may change a constant of one node without a look at others.
    """
    index.set_nodes(index.graph.node)  # now every constant is an initializer that is read
    taken = {name for node in index.graph.node for name in node.output} | {v.name for v in index.graph.input}
    owned: set[str] = set()
    for node in index.graph.node:
        parts = _PARTS.get(node.op_type, ())
        for position, old in enumerate(node.input):
            if old not in index.constants:
                continue
            part = parts[position] if position < len(parts) and parts[position] else f"input_{position}"
            name = base = f"{node.name}.{part}"
            number = 1
            while name in taken:
                number += 1
                name = f"{base}_{number}"
            taken.add(name)
            node.input[position] = name
            tensor = index.constants[old]
            if old in owned:
                tensor = index.graph.initializer.add()
                tensor.CopyFrom(index.constants[old])
            owned.add(old)
            tensor.name = name
    index.refresh()
