"""FP8 (E4M3) written into the graph: Q/DQ pairs from the same calibration cache as int8.

FP8 keeps 3 bits of mantissa wherever a value lies, int8 an even step up to the largest. So a scale only has to bring a
tensor into range: ``amax / 448``, where int8 has ``amax / 127``. There is no range to win behind a ReLU by moving it
(:mod:`engine_build.quantise.shifted`), and no step that a smaller clipping would refine.

What TensorRT-RTX makes of it was found with real plans (docs/auto.md): one scalar scale an activation and one scale a
channel of the weights become fp8 kernels, grouped convolutions too. Windows of more than 32 positions do not, and
silently stay in floating point, as NVIDIA documents: the 7x7 convolution of the stem is left out, and reported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from calibration.cache import check_matches
from calibration.from_images import graph_sha256
from calibration.onnx_index import Index
from calibration.tensors import (
    activation_tensors,
    channel_axis,
)
from engine_build.precision.float16 import FLOAT16_LEAST, FLOAT16_MAX
from engine_build.precision.opsets import raised
from engine_build.quantise.int8 import Int8Graph, Int8Options, find_cache
from engine_build.quantise.qdq import Quantised
from engine_build.quantise.writer import PairWriter, choose_additions, choose_layers
from engine_build.source import Source
from infer.backends.cuda.gpus import find_gpus
from infer.bundle.build_record import CalibrationRecord
from infer.errors import BuildError

#: The largest E4M3 number.
LARGEST = 448.0
#: The first opset in which QuantizeLinear writes fp8.
OPSET = 19
#: Compute capability of the first GPUs with fp8 arithmetic, Ada.
OLDEST_GPU = 8.9
_LARGEST_WINDOW = 32
_KIND = ml_dtypes.float8_e4m3fn


@dataclass(frozen=True)
class Fp8Graph(Int8Graph):
    """A graph with FP8 Q/DQ and what is known about it; ``quantised.nodes`` are those that run in fp8."""

    def record(self) -> CalibrationRecord:
        """What the manifest keeps; steps and offsets are of integers."""
        found = super().record()
        found.fp8_nodes, found.fp8_additions = found.int8_nodes, found.int8_additions
        found.int8_nodes = found.int8_additions = found.tensors = found.shifted_tensors = None
        return found


def quantise_fp8(
    source: Source, options: Int8Options, default_cache: Path, tool: str, say: Callable[[str], None]
) -> Fp8Graph:
    """As :func:`engine_build.quantise.int8.quantise`, same arguments and errors, but to FP8."""
    cache, notes = find_cache(source, options, default_cache, tool, say)
    tensors = activation_tensors(source.graph, options.placement.residual)
    fit = check_matches(cache, graph_sha256(source.graph), tensors, accept=options.accept_cache)
    if fit.missing:
        notes.append(f"the calibration cache does not cover every tensor: {fit}; what reads them stays float")
    graph, quantised = insert_fp8(source.graph, cache.amax(), options.placement.residual, options.exclude)
    notes += [
        f"{name} is not fp8: {reason}" for name, reason in quantised.skipped.items() if name not in options.exclude
    ]
    return Fp8Graph(graph, quantised, cache, fit, tuple(notes))


def insert_fp8(
    model: onnx.ModelProto, amax: Mapping[str, float], residual: str = "identity", exclude: Collection[str] = ()
) -> tuple[onnx.ModelProto, Quantised]:
    """A copy of the float32 graph with FP8 Q/DQ pairs; everything else stays float32.

    Args:
        model: graph of :func:`engine_build.graph.passes.prepare`.
        amax: largest magnitude of each tensor of :func:`calibration.tensors.activation_tensors`.
        residual: inputs of residual additions to quantise: ``identity``, ``none`` or ``both``.
        exclude: nodes to leave in floating point.
    """
    work = raised(model, OPSET)
    work.ir_version = max(work.ir_version, 9)  # the first with fp8
    index = Index(work)
    chosen, skipped = choose_layers(index, amax, exclude, partial(_too_large, index))
    additions = choose_additions(index, amax, exclude, residual)
    writer = PairWriter(index, _KIND, "fp8", lambda tensor: fp8_scale(amax[tensor]))
    for node in work.graph.node:
        if node.name in chosen:
            axis, name = channel_axis(node), node.input[1]
            node.input[0] = writer.activation(node.input[0])
            node.input[1] = writer.weight(name, axis, partial(quantise_weights, index.value(name), axis))
        for position, tensor in enumerate(node.input):
            if tensor in additions.get(node.name, ()):
                node.input[position] = writer.activation(tensor)
    index.set_nodes(writer.place())
    tensors = {tensor: (float(fp8_scale(amax[tensor])), 0.0) for tensor in writer.pairs}
    done = tuple(name for name, found in additions.items() if found)
    return work, Quantised(nodes=tuple(chosen), additions=done, shifted=(), tensors=tensors, skipped=skipped)


def _too_large(index: Index, node: onnx.NodeProto) -> str | None:
    """Why TensorRT would not run a layer in fp8; None where it does."""
    window = index.constants[node.input[1]].dims[2:] if node.op_type == "Conv" else ()
    if prod(window) <= _LARGEST_WINDOW:
        return None
    size = "x".join(map(str, window))
    return f"TensorRT has no fp8 kernels for windows of more than 32 positions, this has {size}"


def fp8_scale(amax: ArrayLike) -> NDArray[np.float32]:
    """The smallest scale with which ``amax`` does not exceed :data:`LARGEST`, as float32, in its shape: a float16 where
    that is a normal number. For nothing but zeros every scale does: the smallest normal float16."""
    wanted = np.asarray(amax, np.float64) / LARGEST
    with np.errstate(over="ignore"):
        nearest = wanted.astype(np.float16)
        half = np.where(nearest < wanted, np.nextafter(nearest, np.float16(np.inf)), nearest).astype(np.float32)
    exact = np.nextafter(wanted.astype(np.float32), np.float32(np.inf))  # the division may have rounded down
    scale = np.where((half >= FLOAT16_LEAST) & (half <= FLOAT16_MAX), half, exact)
    return np.where(wanted > 0, scale, np.float32(FLOAT16_LEAST)).astype(np.float32)


def quantise_weights(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Weights as E4M3 numbers of the same shape, and one scale a slice along ``axis``, float32 ``[channels]``."""
    others = tuple(at for at in range(weight.ndim) if at != axis)
    scale = fp8_scale(np.abs(weight).max(axis=others))
    shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
    return np.clip(weight / scale.reshape(shape), -LARGEST, LARGEST).astype(_KIND), scale


def fp8_targets(targets: tuple[str, ...], named: bool) -> tuple[tuple[str, ...], list[str]]:
    """Those of ``targets`` that have fp8 kernels, and a note for each that was left out.

    Args:
        targets: that can be built here.
        named: whether the user asked for these very targets, and not for all that can be built.

    Raises:
        BuildError: a named target, or every target, has none.
    """
    reasons = {target: reason for target in targets if (reason := _without_fp8(target)) is not None}
    left = tuple(target for target in targets if target not in reasons)
    if reasons and (named or not left):
        listing = "; ".join(f"{target}: {reason}" for target, reason in reasons.items())
        raise BuildError(
            f"fp8 needs a target with fp8 kernels; {listing}. tensorrt_rtx builds fp8 plans on any machine"
        )
    return left, [f"{target} was left out: {reason}" for target, reason in reasons.items()]


def _without_fp8(target: str) -> str | None:
    """None when ``target`` has fp8 kernels, else why not."""
    if target == "openvino":
        return "OpenVINO has no fp8 kernels for CPUs, it would compute in float32"
    if target == "tensorrt":
        gpus, _ = find_gpus()
        if gpus and float(gpus[0].compute_capability) < OLDEST_GPU:
            return f"{gpus[0].name} has compute capability {gpus[0].compute_capability}, fp8 came with {OLDEST_GPU}"
    return None
