"""Largest magnitude of every activation, to find what float16 cannot hold."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from engine_build.graph import CLASSES, LOGITS, SCORES
from engine_build.precision import value_types


def activation_ranges(model: onnx.ModelProto, images: NDArray[np.uint8]) -> dict[str, float]:
    """Largest ``|x|`` of each float activation tensor of a float32 graph over ``images``, run one at a time.

    Args:
        model: graph with the input and outputs of :func:`engine_build.graph.prepare`.
        images: uint8 ``[N, crop, crop, 3]``.
    """
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    types = value_types(model)
    made = [name for node in model.graph.node for name in node.output]
    watched = [n for n in made if types.get(n) == TensorProto.FLOAT and n not in (LOGITS, SCORES, CLASSES)]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in watched)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    watched.append(LOGITS)
    amax = dict.fromkeys(watched, 0.0)
    for image in images:
        for name, value in zip(watched, session.run(watched, {"images": image[None]}), strict=True):
            amax[name] = max(amax[name], float(max(value.max(), -value.min())))
    return amax
