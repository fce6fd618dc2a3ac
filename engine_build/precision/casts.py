"""The precision written into the graph, as strongly typed ONNX: casts for fp16 and bf16.

TensorRT 11 has only strongly typed networks: a tensor has the type that the graph gives it. Normalisation,
softmax and all inputs and outputs stay float32 at every precision.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_index import Index
from engine_build.graph.names import EPILOGUE, PROLOGUE
from engine_build.graph.shapes import infer_shapes
from engine_build.precision.float16 import BOUNDS, FLOAT16_MAX
from engine_build.precision.neighbours import with_neighbours
from engine_build.precision.opsets import has_own_type, opset_for, opset_of, raised
from infer.errors import InputError

FLOAT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# What the rest of an int8 graph computes in: halves the traffic between int8 kernels, which write floating point.
REST_OF_INT8 = "fp16"
PRECISIONS = (*FLOAT_TYPES, "int8")

#: Nodes of every graph that are float32 at every precision.
ALWAYS_FLOAT32 = (*PROLOGUE, *EPILOGUE)
_LARGEST = {
    TensorProto.FLOAT16: FLOAT16_MAX,
    TensorProto.BFLOAT16: (2 - 2.0**-7) * 2.0**127,
}


def kind_of(precision: str) -> int:
    """Element type of the floats of a graph of ``precision``.

    Raises:
        InputError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    return FLOAT_TYPES[REST_OF_INT8 if precision == "int8" else precision]


def to_precision(model: onnx.ModelProto, precision: str, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of the float32 graph ``model`` in which all but the named nodes compute in ``precision``.

    Args:
        model: graph with the input and outputs of :func:`engine_build.graph.passes.prepare`.
        precision: ``fp32``, ``fp16`` or ``bf16``; ``int8`` for a graph that has its Q/DQ pairs and whose rest becomes
            fp16. Scales take the type of their tensors; integers stay.
        keep: names of nodes that stay float32, besides normalisation and softmax. So do operators that no opset has
            in that type. Q/DQ pairs have the type of their readers.

    Returns:
        A graph in an opset in which it is valid: its own, or the first that has every type it uses.

    Raises:
        InputError: unknown precision.
        GraphError: ONNX cannot convert the graph to that opset.
    """
    kind = kind_of(precision)
    if kind == TensorProto.FLOAT:
        return raised(model, 0)
    opset, without = opset_for(model, value_types(model), kind, {*keep, *ALWAYS_FLOAT32})
    typed = raised(model, opset)
    _Caster(typed, kind, with_neighbours(typed, {*keep, *without, *ALWAYS_FLOAT32})).run()
    return typed


class _Caster:
    """Rewrites one graph so that every node outside ``keep`` has inputs and outputs of ``kind``."""

    def __init__(self, model: onnx.ModelProto, kind: int, keep: Collection[str]) -> None:
        self.index = Index(model)
        self.kind, self.keep, self.opset = kind, keep, opset_of(model)
        self.types = value_types(model)
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in list(self.index.graph.node):
            kind = TensorProto.FLOAT if node.name in self.keep else self.kind
            floats = [i for i, name in enumerate(node.input) if self.types.get(name) in FLOAT_TYPES.values()]
            if floats and kind != TensorProto.FLOAT and node.op_type in BOUNDS:
                floats = self._bound(node, kind)
            for position in floats:
                own = has_own_type(node, position, self.opset)
                node.input[position] = self._as(node.input[position], TensorProto.FLOAT if own else kind)
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

    def _bound(self, node: onnx.NodeProto, kind: int) -> list[int]:
        """Give a Clip both bounds, none beyond the largest number of ``kind``; the positions of its floats.

        For a bound that is missing TensorRT takes the largest float32, which float16 does not have.
        """
        node.input.extend([""] * (3 - len(node.input)))
        for position, sign in zip(BOUNDS[node.op_type], (-1, 1), strict=True):
            name, limit = node.input[position], np.float32(_LARGEST[kind])
            if name and (name not in self.index.constants or np.abs(self.index.value(name)) <= limit):
                continue
            bound = np.clip(self.index.value(name) if name else np.array(sign * limit), -limit, limit)
            node.input[position] = self.index.set_constant(f"{node.name}.{'lower' if sign < 0 else 'upper'}", bound)
            self.types[node.input[position]] = TensorProto.FLOAT
        return [0, *BOUNDS[node.op_type]]

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
