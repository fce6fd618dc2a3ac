"""The precision written into the graph, as strongly typed ONNX: casts for fp16 and bf16.

TensorRT 11 has only strongly typed networks: a tensor has the type that the graph gives it. Normalisation,
softmax and all inputs and outputs stay float32 at every precision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_index import Index
from engine_build.names import CLASSES, EPILOGUE, LOGITS, PROLOGUE, SCORES
from engine_build.shapes import infer_shapes
from infer.errors import InputError

FLOAT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# What the rest of an int8 graph computes in: halves the traffic between int8 kernels, which write floating point.
REST_OF_INT8 = "fp16"
PRECISIONS = (*FLOAT_TYPES, "int8")
FLOAT16_MAX = 65504.0
# Ranges come from sample images; another image may exceed them. Twice the range is still allowed for.
MARGIN = 2.0
BFLOAT16_OPSET = 22  # the first in which Conv and the pools accept bfloat16

# Inputs that ONNX allows as float32 only, by position: the factors of a Resize.
_ALWAYS_FLOAT32 = {"Resize": (2,)}


def overflowing_nodes(model: onnx.ModelProto, amax: Mapping[str, float]) -> list[str]:
    """Names of the nodes that float16 could not hold.

    A node counts when a tensor it reads or writes may exceed the largest float16, with a margin of two, or when
    one of its constants does.

    Args:
        model: the float32 graph.
        amax: largest magnitude seen in each activation tensor.
    """
    index = Index(model)
    limit = FLOAT16_MAX / MARGIN
    found = []
    for node in model.graph.node:
        if node.name in (*PROLOGUE, *EPILOGUE):
            continue
        activations = max((amax.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        constants = max((_amax(index, name) for name in node.input if name in index.constants), default=0.0)
        if activations > limit or constants > FLOAT16_MAX:
            found.append(node.name)
    return found


def _amax(index: Index, name: str) -> float:
    value = index.value(name)
    return float(np.abs(value).max()) if value.dtype == np.float32 and value.size else 0.0


def to_precision(model: onnx.ModelProto, precision: str, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of the float32 graph ``model`` in which all but the named nodes compute in ``precision``.

    Args:
        model: graph with the input and outputs of :func:`engine_build.graph.prepare`.
        precision: ``fp32``, ``fp16`` or ``bf16``; ``int8`` for a graph that has its Q/DQ pairs and whose rest becomes
            fp16. Scales take the type of their tensors; integers stay.
        keep: names of nodes that stay float32, besides normalisation and softmax.

    Raises:
        InputError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    if precision != "fp32":
        kind = FLOAT_TYPES[REST_OF_INT8 if precision == "int8" else precision]
        _Caster(typed, kind, {*keep, *PROLOGUE, *EPILOGUE}).run()
    if precision == "bf16" and _opset(typed) < BFLOAT16_OPSET:
        typed = onnx.version_converter.convert_version(typed, BFLOAT16_OPSET)
    return typed


def _opset(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


class _Caster:
    """Rewrites one graph so that every node outside ``keep`` has inputs and outputs of ``kind``."""

    def __init__(self, model: onnx.ModelProto, kind: int, keep: Collection[str]) -> None:
        self.index = Index(model)
        self.kind, self.keep = kind, keep
        self.types = value_types(model)
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in list(self.index.graph.node):
            kind = TensorProto.FLOAT if node.name in self.keep else self.kind
            fixed = _ALWAYS_FLOAT32.get(node.op_type, ())
            floats = [i for i, name in enumerate(node.input) if self.types.get(name) in FLOAT_TYPES.values()]
            for position in floats:
                node.input[position] = self._as(node.input[position], TensorProto.FLOAT if position in fixed else kind)
            self.nodes.append(node)
            if kind == TensorProto.FLOAT or node.op_type == "Cast" or not floats:
                continue  # a node that reads no floats (ConstantOfShape) writes the type that it is told to
            for position, name in enumerate(node.output):
                if self.types.get(name) == TensorProto.FLOAT:
                    self.types[name] = kind
                    if name in self.index.outputs:
                        self._restore_output(node, position, kind)
        del self.index.graph.value_info[:]
        self.index.set_nodes(self.nodes)

    def _as(self, name: str, kind: int) -> str:
        """``name`` as a tensor of ``kind``: itself, a converted constant, or the result of one shared Cast."""
        if self.types[name] == kind:
            return name
        key = (name, kind)
        if key not in self.casts:
            suffix = TensorProto.DataType.Name(kind).lower()
            new = self.casts[key] = f"{name}.{suffix}"
            if name in self.index.constants:
                tensor = _converted(self.index.constants[name], new, kind)
                self.index.graph.initializer.append(tensor)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [new], f"{name}.to_{suffix}", to=kind))
            self.types[new] = kind
        return self.casts[key]

    def _restore_output(self, node: onnx.NodeProto, position: int, kind: int) -> None:
        name = node.output[position]
        inner = f"{name}.{TensorProto.DataType.Name(kind).lower()}"
        node.output[position] = inner
        self.types[inner], self.types[name] = kind, TensorProto.FLOAT
        self.casts[name, kind] = inner
        self.nodes.append(helper.make_node("Cast", [inner], [name], f"{name}.to_float", to=TensorProto.FLOAT))


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, by ONNX shape inference."""
    inferred = infer_shapes(model)
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    return types


def _converted(tensor: onnx.TensorProto, name: str, kind: int) -> onnx.TensorProto:
    value = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def outputs_are_float32(model: onnx.ModelProto) -> bool:
    """Whether logits and scores are float32 and classes int32, as the bundle promises."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    return kinds == {LOGITS: TensorProto.FLOAT, SCORES: TensorProto.FLOAT, CLASSES: TensorProto.INT32}
