"""Where int8 loses: the error of every quantised tensor against FP32, by running both graphs of the bundles.

ONNX Runtime computes ``model.onnx`` of the int8 bundle and of the FP32 bundle with its optimisations off, so that each
Q/DQ pair is computed as it is written, and gives out the tensors inside. Errors add up along the network: a tensor
shows its own rounding on top of what came before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.bundle import GRAPH, Manifest, check_files, read_manifest
from infer.errors import InputError, TargetUnavailableError
from infer.files import replacing

_INT8 = np.iinfo(np.int8)


@dataclass(frozen=True)
class TensorError:
    """Error of one quantised tensor over all images.

    Attributes:
        tensor: name in the FP32 graph.
        sqnr_db: signal to quantisation noise ratio, dB; infinite for an exact tensor.
        scale: step of its integers.
        clipped: share of its values, 0 to 1, that FP32 has outside of what the integers reach.
    """

    tensor: str
    sqnr_db: float
    scale: float
    clipped: float

    def to_json(self) -> dict[str, Any]:
        """The fields; an infinite ratio becomes null."""
        return {**asdict(self), "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None}


def layer_errors(
    folder: Path,
    reference: Path,
    batches: Iterable[NDArray[np.uint8]],
    progress: Callable[[int], None] = lambda count: None,
) -> list[TensorError]:
    """Compare every quantised tensor of an int8 bundle with FP32, worst first.

    Args:
        folder: the int8 bundle.
        reference: FP32 bundle of the same network.
        batches: uint8 ``[N, crop, crop, 3]``; some dozens of images are enough. Small batches keep the memory low.
        progress: called with the number of images of each batch.

    Raises:
        InputError: not an int8 bundle, or no images.
        TargetUnavailableError: ONNX Runtime is missing or refuses a graph.
        BundleError: a graph is damaged.
    """
    manifest, fp32 = read_manifest(folder), read_manifest(reference)
    tensors = manifest.calibration and manifest.calibration.tensors
    if not tensors:
        raise InputError(
            f"{folder} is {manifest.precision} and has no quantised tensors to compare; pass an int8 bundle"
        )
    calibrated = manifest.calibration and manifest.calibration.graph_sha256
    if calibrated not in (None, fp32.graph.sha256):
        raise InputError(f"{reference} has another float graph than {folder} was made from; build both again")
    ours = _Probe(folder, manifest, [f"{name}.dequantised" for name in tensors])
    theirs = _Probe(reference, fp32, list(tensors))
    signal, noise, clipped, count = (dict.fromkeys(tensors, 0.0) for _ in range(4))
    for images in batches:
        for name, found, expected in zip(tensors, ours.run(images), theirs.run(images), strict=True):
            scale, offset = tensors[name].scale, tensors[name].offset
            x = expected.astype(np.float64)
            signal[name] += float((x**2).sum())
            noise[name] += float(((found.astype(np.float64) + offset - x) ** 2).sum())
            moved = x - offset
            clipped[name] += float(((moved > (_INT8.max + 0.5) * scale) | (moved < (_INT8.min - 0.5) * scale)).sum())
            count[name] += x.size
        progress(len(images))
    if not all(count.values()):
        raise InputError("no image to compare the layers with; check the data")
    errors = [
        TensorError(name, _decibels(signal[name], noise[name]), tensors[name].scale, clipped[name] / count[name])
        for name in tensors
    ]
    return sorted(errors, key=lambda error: error.sqnr_db)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


class _Probe:
    """A graph of a bundle in ONNX Runtime, with tensors inside it as outputs."""

    def __init__(self, folder: Path, manifest: Manifest, tensors: list[str]) -> None:
        from infer.backends.onnxruntime import why_unavailable

        if (missing := why_unavailable()) is not None:
            raise TargetUnavailableError(f"comparing layers needs ONNX Runtime: {missing}")
        import onnxruntime

        check_files(folder, [manifest.graph])
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        content = (folder / GRAPH).read_bytes() + _more_outputs(tensors)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise TargetUnavailableError(f"ONNX Runtime cannot run {folder / GRAPH}: {str(error)[:300]}") from error
        self._tensors = tensors

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = self._session.run(self._tensors, {"images": images})
        return found


def _more_outputs(names: list[str]) -> bytes:
    """Bytes that, appended to an ONNX file, add graph outputs.

    Protocol buffers merge repeated occurrences of a message field (https://protobuf.dev/programming-guides/encoding/,
    "Last One Wins"), so this is ``ModelProto.graph`` (7) with ``GraphProto.output`` (12) with ``ValueInfoProto.name``
    (1). The onnx package, which a deployment does not have, is not needed.
    """
    outputs = b"".join(_field(12, _field(1, name.encode())) for name in names)
    return _field(7, outputs)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def plot_layers(errors: list[TensorError], path: Path, title: str) -> None:
    """Draw the errors, worst at the top, as a bar chart in PNG, SVG or PDF.

    Raises:
        TargetUnavailableError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise TargetUnavailableError("a plot needs matplotlib: pip install matplotlib") from None
    shown = [error for error in errors if math.isfinite(error.sqnr_db)]
    figure = Figure(figsize=(8, 1 + 0.18 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([error.tensor for error in shown], [error.sqnr_db for error in shown], color="#4c72b0")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("SQNR against FP32, dB")
    axes.set_title(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:] or None)
