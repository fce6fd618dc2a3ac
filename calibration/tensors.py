"""Which activation tensors an int8 graph quantises, and how many steps each of them has.

Quantised are the inputs of every convolution and matrix product with constant weights, and the shortcut input of every
residual addition: that is what lets TensorRT join the addition to the int8 convolution before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx

from calibration.int8 import SHIFTED_STEPS
from calibration.onnx_index import Index, attribute

#: Steps of a tensor that is never negative and may be moved down to use the negative integers too.
_LAYERS = ("Conv", "Gemm", "MatMul")
# Arithmetic of the same kind that has no int8 form here; it is listed beside the layers that were left out.
_OTHERS = ("ConvTranspose", "DeformConv", "Einsum", "Attention", "GRU", "LSTM", "RNN")
_REARRANGES = ("Add", "Div", "Gather", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_THROUGH = ("MaxPool", "GlobalAveragePool", "Flatten")


@dataclass(frozen=True)
class ShiftGroup:
    """A ReLU whose result may be moved, and the quantised tensors that follow from it.

    Attributes:
        relu: name of the node.
        tensors: tensors that are quantised, all with the scale of the first.
        branches: convolutions whose result is added to such a tensor: what the tensor lost, their bias gives back.
    """

    relu: str
    tensors: tuple[str, ...]
    branches: tuple[str, ...] = ()


def quantisable_nodes(index: Index) -> list[onnx.NodeProto]:
    """Conv, Gemm and MatMul nodes that can be quantised, in graph order."""
    return [n for n in index.graph.node if n.op_type in _LAYERS and why_floating(n, index) is None]


def floating_products(index: Index) -> dict[str, str]:
    """Names of the convolutions and matrix products that cannot be quantised, in graph order, each with the reason."""
    reasons = {n.name: why_floating(n, index) for n in index.graph.node if n.op_type in (*_LAYERS, *_OTHERS)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def channel_axis(node: onnx.NodeProto) -> int:
    """The axis of the output channels in the weights of a Conv, Gemm or MatMul."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def why_floating(node: onnx.NodeProto, index: Index) -> str | None:
    """Why a convolution or product cannot be quantised; None for the plain form: an activation, constant weights, and
    no bias or a constant one."""
    if node.op_type not in _LAYERS:
        return f"{node.op_type} has no int8 form"
    return _why_weights(node, index) or _why_bias(node, index) or _why_result(node, index)


def _why_weights(node: onnx.NodeProto, index: Index) -> str | None:
    data, weight = node.input[:2]
    if data in index.constants:
        return "its constant is the first operand, int8 needs it as the second"
    if weight not in index.constants:
        producer = index.producer.get(weight)
        return "its weights are not constant" + ("" if producer is None else f", {producer.name} computes them")
    dims = index.constants[weight].dims
    if node.op_type != "Conv" and len(dims) != 2:
        return f"its weights have {len(dims)} dimensions, int8 needs a matrix"
    return None


def _why_bias(node: onnx.NodeProto, index: Index) -> str | None:
    if node.op_type == "Gemm" and _has_factors(node):
        return "it has alpha, beta or transA"
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = index.constants.get(node.input[2])
    if bias is None:
        return "its bias is not constant"
    channels = index.constants[node.input[1]].dims[channel_axis(node)]
    if list(bias.dims) == [channels]:
        return None
    return f"its bias has the shape {list(bias.dims)}, int8 needs one number a channel"


def _why_result(node: onnx.NodeProto, index: Index) -> str | None:
    """TensorRT divides the weights of an attention's joint projection too, and then computes it in floating point."""
    if node.op_type != "MatMul":
        return None
    waiting, seen = [(name, False) for name in node.output], set()
    while waiting:
        name, divided = waiting.pop()
        readers = index.consumers.get(name, [])
        kinds = [reader.op_type for reader in readers]
        divided = divided or "Split" in kinds or kinds.count("Gather") + kinds.count("Slice") > 1
        for reader in readers:
            if divided and reader.op_type == "MatMul" and not index.constants.keys() & set(reader.input):
                return f"its result is divided among the operands of {reader.name}, TensorRT then leaves int8"
            if reader.op_type in _REARRANGES and id(reader) not in seen:
                seen.add(id(reader))
                waiting += [(result, divided) for result in reader.output]
    return None


def _has_factors(node: onnx.NodeProto) -> bool:
    factors = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    return bool(attribute(node, "transA", 0)) or factors != (1.0, 1.0)


def residual_inputs(index: Index) -> dict[str, tuple[str, str]]:
    """Residual additions: node name to ``(shortcut input, branch input)``.

    The branch is the input with more convolutions behind it.
    """
    depth: dict[str, int] = {}
    found = {}
    for node in index.graph.node:
        below = max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, below + (node.op_type == "Conv")))
        if node.op_type == "Add" and not any(name in index.constants for name in node.input):
            shortcut, branch = sorted(node.input, key=lambda name: depth.get(name, 0))
            found[node.name] = (shortcut, branch)
    return found


def residual_choice(shortcut: str, branch: str, residual: str) -> list[str]:
    """The inputs of an addition that are quantised: ``identity`` (the shortcut), ``none`` or ``both``."""
    return {"identity": [shortcut], "none": [], "both": [shortcut, branch]}[residual]


def activation_tensors(model: onnx.ModelProto, residual: str = "identity") -> list[str]:
    """Names of the activation tensors that need a range, in graph order."""
    index = Index(model)
    wanted = [node.input[0] for node in quantisable_nodes(index)]
    for shortcut, branch in residual_inputs(index).values():
        wanted += residual_choice(shortcut, branch, residual)
    order = {name: at for at, node in enumerate(model.graph.node) for name in node.output}
    return sorted(dict.fromkeys(wanted), key=lambda name: order.get(name, -1))


def activation_steps(model: onnx.ModelProto) -> dict[str, int]:
    """Steps from 0 to amax of the tensors that have more than symmetric int8's 127."""
    index = Index(model)
    groups = shift_groups(index, {node.name for node in quantisable_nodes(index)})
    return {tensor: SHIFTED_STEPS for group in groups for tensor in group.tensors}


def shift_groups(index: Index, quantised: Collection[str]) -> list[ShiftGroup]:
    """The ReLUs whose every reader, through pools, is an unpadded quantised layer or a residual addition.

    The addition must take the tensor as its shortcut, and a convolution's result, which nothing else reads, as its
    branch.

    Args:
        index: the float graph.
        quantised: names of the layers that are quantised.
    """
    return list(_shift_groups(index, quantised))


def _shift_groups(index: Index, quantised: Collection[str]) -> Iterator[ShiftGroup]:
    residuals = residual_inputs(index)
    for node in index.graph.node:
        if node.op_type == "Relu" and node.output[0] not in index.outputs:
            found = _Followers(index, quantised, residuals)
            if found.follow(node.output[0]) and found.tensors:
                yield ShiftGroup(node.name, tuple(found.tensors), tuple(found.branches))


class _Followers:
    """What follows from a tensor that is moved."""

    def __init__(self, index: Index, quantised: Collection[str], residuals: dict[str, tuple[str, str]]) -> None:
        self._index, self._quantised, self._residuals = index, quantised, residuals
        self.tensors: list[str] = []
        self.branches: list[str] = []

    def follow(self, tensor: str) -> bool:
        """Collect what is behind ``tensor``; False when a reader cannot take a moved value.

        An average has another range than what is averaged, so nothing may share a scale with it.
        """
        direct = False
        at = len(self.tensors)
        readers = self._index.consumers.get(tensor, [])
        for reader in readers:
            if reader.op_type in _THROUGH and reader.output[0] not in self._index.outputs:
                average = reader.op_type == "GlobalAveragePool"
                if (average and len(readers) > 1) or not self.follow(reader.output[0]):
                    return False
            elif reader.name in self._quantised and reader.input[0] == tensor and _is_unpadded(reader):
                direct = True
            elif (branch := self._branch(reader, tensor)) is not None:
                self.branches.append(branch)
                direct = True
            else:
                return False
        if direct:
            self.tensors.insert(at, tensor)
        return True

    def _branch(self, addition: onnx.NodeProto, tensor: str) -> str | None:
        """The convolution that is added to ``tensor``, where it can make up for what the tensor lost."""
        shortcut, branch = self._residuals.get(addition.name, ("", ""))
        producer = self._index.producer.get(branch)
        if shortcut != tensor or producer is None or producer.op_type != "Conv":
            return None
        return producer.name if self._index.only_consumer(branch) is addition else None


def _is_unpadded(node: onnx.NodeProto) -> bool:
    if node.op_type != "Conv":
        return node.op_type == "Gemm"  # a MatMul has no bias that could make up for the move
    return not any(attribute(node, "pads", [])) and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
