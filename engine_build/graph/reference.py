"""Reference logits in float32: from a torch module and, through ONNX Runtime, from a graph."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from infer.bundle.preprocessing import Preprocessing
from infer.bundle.tensors import INPUT

#: From uint8 images ``[N, H, W, 3]`` to float32 logits ``[N, C]``.
Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def normalise(images: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """uint8 ``[N, H, W, 3]`` to normalised float32 ``[N, 3, H, W]``."""
    mean, std = np.array(spec.mean), np.array(spec.std)
    return np.ascontiguousarray(((images / 255 - mean) / std).transpose(0, 3, 1, 2), np.float32)


def torch_logits(model: torch.nn.Module, spec: Preprocessing) -> Logits:
    """Logits of ``model`` in eval mode."""

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.from_numpy(normalise(images, spec))).numpy()
            return logits

    return run


def remembered(logits: Logits) -> Logits:
    """``logits``, computed once for each batch of images: every step is compared with the same two."""
    known: dict[bytes, NDArray[np.float32]] = {}

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        key = sha256(images.tobytes()).digest()
        if key not in known:
            known[key] = logits(images)
        return known[key]

    return run


def graph_logits(model: onnx.ModelProto, spec: Preprocessing) -> Logits:
    """Logits of a graph in ONNX Runtime; a float NCHW input is fed normalised images, a uint8 one the images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # What "all" gains for four images it loses twice in rewriting the graph.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # be fair to other processes
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    output = session.get_outputs()[0].name
    raw = name == INPUT and session.get_inputs()[0].type == "tensor(uint8)"

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([output], {name: images if raw else normalise(images, spec)})[0]
        return logits

    return run
