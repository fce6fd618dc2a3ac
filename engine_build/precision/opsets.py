"""ONNX opsets: the first in which an operator takes a type, and graphs raised to one.

An opset says which types each operator may read: Q/DQ with float16 scales are valid from 19 on, a bfloat16 convolution
from 22. Builders are lenient there, ONNX Runtime and the checker are not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx import TensorProto, helper

from engine_build.graph.shapes import without_weights
from infer.errors import GraphError

#: The newest opset that graphs are raised to: all that is known to need one is content with it, and every builder
#: reads it. A graph that comes with a newer one keeps that.
NEWEST = 22
_STANDARD = ("", "ai.onnx")
_TYPE_NAMES = {
    TensorProto.FLOAT: "tensor(float)",
    TensorProto.FLOAT16: "tensor(float16)",
    TensorProto.BFLOAT16: "tensor(bfloat16)",
}


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the standard operators; 1 where the model does not say."""
    return next((entry.version for entry in model.opset_import if entry.domain in _STANDARD), 1)


def allows(node: onnx.NodeProto, position: int, kind: int, opset: int) -> bool:
    """Whether the input at ``position`` may have the element type ``kind``; operators of other domains take any."""
    parameter = _parameter(node, position, opset)
    return parameter is None or _TYPE_NAMES[kind] in parameter.types


def has_own_type(node: onnx.NodeProto, position: int, opset: int) -> bool:
    """Whether the type of this input is fixed whatever the others have, as that of a Resize's factors is."""
    parameter = _parameter(node, position, opset)
    return parameter is not None and parameter.type_str in _TYPE_NAMES.values()  # else the name of a type variable


def _parameter(node: onnx.NodeProto, position: int, opset: int) -> onnx.defs.OpSchema.FormalParameter | None:
    if node.domain not in _STANDARD:
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise GraphError(f"node {node.name!r}: ONNX opset {opset} has no operator {node.op_type}") from error
    return schema.inputs[min(position, len(schema.inputs) - 1)] if schema.inputs else None  # the last may repeat


def opset_for(
    model: onnx.ModelProto, types: Mapping[str, int], kind: int, keep: Collection[str]
) -> tuple[int, list[str]]:
    """The opset in which the floats of ``model`` can have the type ``kind``.

    Args:
        model: a float32 graph.
        types: element type of every tensor.
        kind: float16 or bfloat16.
        keep: names of nodes that stay float32.

    Returns:
        The lowest such opset, at least the model's own, and the names of the nodes that have no form in ``kind``
        up to :data:`NEWEST`.
    """
    own = needed = opset_of(model)
    newest = max(own, NEWEST)
    without = []
    for node in model.graph.node:
        floats = [at for at, name in enumerate(node.input) if types.get(name) in _TYPE_NAMES]
        floats = [at for at in floats if not has_own_type(node, at, newest)]
        if node.name in keep or node.op_type == "Cast" or not floats:
            continue
        fits = (v for v in range(own, newest + 1) if all(allows(node, at, kind, v) for at in floats))
        if (first := next(fits, None)) is None:
            without.append(node.name)
        else:
            needed = max(needed, first)
    return needed, without


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy of ``model`` in ``opset``, or in its own where that is newer; names and weights stay as they are.

    Raises:
        GraphError: ONNX cannot convert it.
    """
    result = onnx.ModelProto()
    if opset_of(model) >= opset:
        result.CopyFrom(model)
        return result
    light = without_weights(model)
    try:
        result.CopyFrom(onnx.version_converter.convert_version(light, opset))
    except Exception as error:  # the converter raises RuntimeError and errors of its own
        raise GraphError(
            f"the graph has opset {opset_of(model)} and needs {opset}, but ONNX cannot convert it "
            f"({' '.join(str(error).split())[:200]}); export it with opset {opset}"
        ) from error
    result.ir_version = max(model.ir_version, helper.find_min_ir_version_for(result.opset_import))
    for field in ("input", "output"):  # the converter may drop what a dimension is called
        del getattr(result.graph, field)[:]
        getattr(result.graph, field).extend(getattr(model.graph, field))
    small = {tensor.name for tensor in light.graph.initializer}
    result.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in small)
    _name_new_nodes(model, result)
    return result


def _name_new_nodes(old: onnx.ModelProto, new: onnx.ModelProto) -> None:
    taken = {node.name for node in new.graph.node}
    missing = sorted({node.name for node in old.graph.node if node.name} - taken)
    if missing:
        raise GraphError(
            f"converted to opset {opset_of(new)}, the graph lost its nodes {', '.join(missing[:5])}; "
            f"export it with opset {opset_of(new)}"
        )
    for node in new.graph.node:
        if not node.name:
            node.name = f"{node.output[0]}.converted"
