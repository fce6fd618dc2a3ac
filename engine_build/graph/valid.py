"""Whether a finished graph is valid ONNX, held against the two that know: its checker and ONNX Runtime."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from engine_build.graph.shapes import without_weights
from infer.errors import GraphError


def check_valid(model: onnx.ModelProto, what: str) -> None:
    """Check types, shapes and operators of ``model`` as ONNX's checker and ONNX Runtime see them.

    bfloat16 has too few kernels in ONNX Runtime for CPUs; such a graph is held against the checker alone.

    Args:
        model: with its weights.
        what: what an error calls it.

    Raises:
        GraphError: one of them rejects it.
    """
    try:
        onnx.checker.check_model(without_weights(model), full_check=True)
        if not any(tensor.data_type == TensorProto.BFLOAT16 for tensor in model.graph.initializer):
            _load(model)
    except Exception as error:  # the checker, shape inference and ONNX Runtime raise classes that share no base
        text = " ".join(str(error).split())[:300]
        raise GraphError(f"{what} is not valid ONNX ({text}). This is a defect; report the model") from error


def _load(model: onnx.ModelProto) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # nothing is run
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
