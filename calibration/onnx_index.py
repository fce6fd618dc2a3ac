"""An ONNX graph with its edges indexed, for passes that rewrite it in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from infer.errors import GraphError


class Index:
    """Producers, consumers and constants of ``model.graph``; call :meth:`refresh` after a rewrite.

    Attributes:
        model: the model, changed in place.
        producer: tensor name to the node that makes it.
        consumers: tensor name to the nodes that read it.
        constants: tensor name to its value (initializers and Constant nodes).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.refresh()

    def refresh(self) -> None:
        """Index again."""
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        self.constants: dict[str, onnx.TensorProto] = {t.name: t for t in self.graph.initializer}
        for node in self.graph.node:
            for name in node.output:
                self.producer[name] = node
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
            if node.op_type == "Constant":
                self.constants[node.output[0]] = _constant(node)
        self.outputs = {value.name for value in self.graph.output}

    def value(self, name: str) -> NDArray[Any]:
        """The constant called ``name`` as an array.

        Raises:
            GraphError: it is not a constant.
        """
        if name not in self.constants:
            raise GraphError(f"expected {name!r} to be a constant")
        return numpy_helper.to_array(self.constants[name])

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads ``name``, None when there are several or it is a graph output."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def set_constant(self, name: str, value: NDArray[Any]) -> str:
        """Add or replace the initializer ``name``.

        Raises:
            GraphError: several nodes read it, so that the change for one would change the others.
        """
        if (
            name in self.constants
            and len(self.consumers.get(name, [])) > 1
            and not np.array_equal(value, self.value(name))
        ):
            readers = ", ".join(node.name for node in self.consumers[name][:3])
            raise GraphError(f"constant {name!r} is read by several nodes ({readers}); give each a copy first")
        tensor = numpy_helper.from_array(np.asarray(value, order="C"), name)
        for old in self.graph.initializer:
            if old.name == name:
                old.CopyFrom(tensor)
                break
        else:
            self.graph.initializer.append(tensor)
        self.constants[name] = tensor
        return name

    def fresh_name(self, name: str) -> str:
        """``name``, with underscores behind it where a tensor is called so already."""
        while name in self.constants or name in self.producer or name in self.consumers:
            name += "_"
        return name

    def replace_reads(self, old: str, new: str, but: Iterable[onnx.NodeProto] = ()) -> None:
        """Let every node that reads ``old``, other than those in ``but``, read ``new``."""
        skipped = [id(node) for node in but]
        for node in self.consumers.get(old, []):
            if id(node) in skipped:
                continue
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new

    def set_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Replace the node list, drop constants nobody reads, index again."""
        nodes = list(nodes)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input} | self.outputs
        for at in reversed(range(len(self.graph.initializer))):  # in place: filling the list again copies every weight
            if self.graph.initializer[at].name not in read:
                del self.graph.initializer[at]
        self.refresh()

    def op_counts(self) -> Counter[str]:
        """How many nodes of each type."""
        return Counter(node.op_type for node in self.graph.node)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
    """The tensor of a Constant node, which may hold it as ``value`` or as bare numbers."""
    name = node.attribute[0].name
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if name == "value":
        return value
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name not in kinds:
        raise GraphError(f"constant {node.output[0]!r}: expected a tensor or numbers, found {name}")
    return numpy_helper.from_array(np.array(value, kinds[name]), node.output[0])


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, ``default`` when it is absent."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default
