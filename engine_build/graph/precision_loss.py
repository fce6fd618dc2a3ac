"""How far rounding alone can move the logits of a graph: tells a loss of precision from a defect."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from calibration.onnx_index import Index
from infer.bundle.preprocessing import Preprocessing

#: A difference of so many times :func:`rounding_noise` is rounding. Steps that were right stayed below 0.7 times.
SHARE = 4.0
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def rounding_noise(model: onnx.ModelProto, spec: Preprocessing, images: NDArray[np.uint8], trials: int = 3) -> float:
    """Largest change of a logit when every weight of ``model`` moves to a neighbouring number, up or down at random.

    That is what rounding the weights once more would do, and the arithmetic of a run is of the same size.
    """
    from engine_build.graph.reference import graph_logits

    expected = graph_logits(model, spec)(images)
    changes = []
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        moved = onnx.ModelProto()
        moved.CopyFrom(model)
        for tensor in moved.graph.initializer:
            if tensor.data_type in _FLOATS:
                value = numpy_helper.to_array(tensor)
                towards = np.where(rng.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
                tensor.CopyFrom(numpy_helper.from_array(np.nextafter(value, towards), tensor.name))
        changes.append(float(np.abs(graph_logits(moved, spec)(images) - expected).max()))
    return max(changes)


def widest_weights(model: onnx.ModelProto) -> tuple[str, float, float]:
    """The layer whose constants differ most in size, with the smallest and largest magnitude of its channels.

    ``("", 1, 1)`` where no layer has constants.
    """
    index = Index(model)
    found = ("", 1.0, 1.0)
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul", "BatchNormalization"):
            continue
        sizes: list[float] = []
        for name in node.input[1:]:
            if name in index.constants:
                value = np.abs(index.value(name).astype(np.float64))
                rows = value.reshape(value.shape[0], -1).max(axis=1) if value.size else np.zeros(0)
                sizes += rows[rows > 0].tolist()
        if sizes and max(sizes) / min(sizes) > found[2] / found[1]:
            found = (node.name, min(sizes), max(sizes))
    return found


def explain(
    worst: float,
    largest: float,
    model: onnx.ModelProto,
    source: onnx.ModelProto | None,
    spec: Preprocessing,
    images: NDArray[np.uint8],
) -> str | None:
    """What to tell a user whose logits moved by ``worst``, where rounding can move them so far; None where it cannot.

    Args:
        worst: the largest difference of a logit.
        largest: the largest logit.
        model: the graph after a step.
        source: the graph before all steps, where there is one.
        spec: pre-processing of both.
        images: that were compared, uint8 ``[N, H, W, 3]``.
    """
    noise = max(rounding_noise(graph, spec, images) for graph in (model, source) if graph is not None)
    if not np.isfinite(worst) or worst > SHARE * noise:
        return None
    name, least, most = widest_weights(source or model)
    return (
        f"rounding each weight in its last place alone moves them by {noise / largest:.2g} of the largest: the network "
        f"is too ill-conditioned for its number format. Its widest layer is {name!r}, with weights from {least:.2g} to "
        f"{most:.2g}; look for batch norms of nearly no variance and for large numbers that cancel, and train or "
        f"rescale them{', or build fp32' if _is_half(model) else ''}"
    )


def _is_half(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
