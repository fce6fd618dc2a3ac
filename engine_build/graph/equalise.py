"""Channels of the residual stream brought to like ranges, so that one int8 scale fits them all.

Within a stage of an iResNet the shortcut meets no ReLU and no BN: every block adds to it, and its channels drift to
different ranges. TensorRT takes one scale for the whole tensor, so a quiet channel is left with few of its steps. Any
positive factor on a channel of the stream can be undone exactly where the stream is read:

    rows of the convolutions that add to it       times f
    BN and convolution columns that read it       divided by f

ReLU, max-pool and addition pass such factors through (this is the cross-layer equalisation of Nagel et al., "Data-free
quantization through weight equalization and bias correction", 2019, over a whole stage at once). The ranges come
from the statistics of the BNs that read the stream, so no image is needed, and the float function stays the same to
rounding. ``f = range^-0.8``, normalised; the exponent was chosen on the shipped model (docs/int8.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.onnx_index import Index, attribute
from calibration.tensors import why_floating

EXPONENT = 0.8
DEVIATIONS = 3.0
_PASS_THROUGH = ("Relu", "MaxPool", "Add")


@dataclass
class Stream:
    """Tensors that share their channel factors, what writes them and what reads them."""

    tensors: set[str] = field(default_factory=set)
    writers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)

    @property
    def norms(self) -> list[onnx.NodeProto]:
        """The BNs that read the stream."""
        return [node for node in self.readers if node.op_type == "BatchNormalization"]


def residual_streams(index: Index) -> list[Stream]:
    """Streams that contain an addition, are read by a BN, and whose every writer and reader can take a factor."""
    streams: dict[str, Stream] = {}  # tensor to its stream, shared by all of the stream's tensors

    def joined(*names: str) -> Stream:
        merged = Stream()
        for stream in {id(s): s for s in (streams.get(n) or Stream({n}) for n in names)}.values():
            merged.tensors |= stream.tensors
            merged.writers += stream.writers
            merged.readers += stream.readers
        for name in merged.tensors:
            streams[name] = merged
        return merged

    blocked: set[str] = set(index.outputs)
    added: set[str] = set()
    for node in index.graph.node:
        inputs = [name for name in node.input if name and name not in index.constants]
        constants = len(inputs) < len([name for name in node.input if name])
        if node.op_type in _PASS_THROUGH and not constants:
            joined(*inputs, node.output[0])
            added |= set(node.output) if node.op_type == "Add" else set()
        elif node.op_type == "Conv" and why_floating(node, index) is None:
            joined(node.output[0]).writers.append(node)
            joined(inputs[0]).readers.append(node)
        elif node.op_type == "BatchNormalization" and all(name in index.constants for name in node.input[1:5]):
            blocked |= set(node.output)
            joined(inputs[0]).readers.append(node)
        else:
            blocked |= {*inputs, *node.output}
    unique = {id(stream): stream for stream in streams.values()}
    return [s for s in unique.values() if s.writers and s.norms and s.tensors & added and not s.tensors & blocked]


def equalise_streams(model: onnx.ModelProto) -> int:
    """Equalise every residual stream of a float graph, in place. Run it while BNs still have their statistics.

    Returns:
        How many streams were equalised.
    """
    index = Index(model)
    done = 0
    for stream in residual_streams(index):
        if any(_groups(node) != 1 for node in stream.readers):
            continue
        factors = _factors(stream, index)
        for node in stream.writers:
            _scale_rows(node, index, factors)
        for node in stream.readers:
            _scale_columns(node, index, factors)
        done += 1
    index.set_nodes(model.graph.node)
    return done


def _factors(stream: Stream, index: Index) -> NDArray[np.float64]:
    ranges = []
    for norm in stream.norms:
        mean, variance = (index.value(name).astype(np.float64) for name in norm.input[3:5])
        extent = np.abs(mean) + DEVIATIONS * np.sqrt(variance)
        ranges.append(extent / max(float(extent.max()), np.finfo(np.float64).tiny))
    widest = np.maximum(np.max(ranges, axis=0), 1e-3)
    factors = widest**-EXPONENT
    return factors / np.exp(np.log(factors).mean())


def _groups(node: onnx.NodeProto) -> int:
    """1, unless ``node`` is a grouped convolution, whose columns are numbered within each group."""
    return attribute(node, "group", 1) if node.op_type == "Conv" else 1


def _scale_rows(node: onnx.NodeProto, index: Index, factors: NDArray[np.float64]) -> None:
    weight = index.value(node.input[1])
    _replace(index, node.input[1], weight * factors.reshape(-1, *[1] * (weight.ndim - 1)))
    if len(node.input) > 2 and node.input[2]:
        _replace(index, node.input[2], index.value(node.input[2]) * factors)


def _scale_columns(node: onnx.NodeProto, index: Index, factors: NDArray[np.float64]) -> None:
    if node.op_type == "BatchNormalization":
        # Its statistics follow the stream; epsilon is negligible beside the variance but is kept exact too.
        epsilon = attribute(node, "epsilon", 1e-5)
        mean, variance = index.value(node.input[3]), index.value(node.input[4])
        _replace(index, node.input[3], mean * factors)
        _replace(index, node.input[4], (variance + epsilon) * factors**2 - epsilon)
        return
    weight = index.value(node.input[1])
    _replace(index, node.input[1], weight / factors.reshape(1, -1, *[1] * (weight.ndim - 2)))


def _replace(index: Index, name: str, value: NDArray[np.float64]) -> None:
    index.set_constant(name, value.astype(np.float32))
