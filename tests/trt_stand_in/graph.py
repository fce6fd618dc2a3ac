"""A small classifier with the inputs and outputs of the real ones, as an ONNX graph with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_graph(path: Path, image: tuple[int, int, int] = (8, 8, 3), num_classes: int = 10, top_k: int = 3) -> None:
    """Normalisation, one convolution, pooling, a linear layer, softmax and top-k; weights from a fixed seed."""
    rng = np.random.default_rng(7)
    constants = {
        "scale": np.float32(1 / 255.0),
        "kernel": rng.normal(0, 0.5, (6, 3, 3, 3)).astype(np.float32),
        "weight": rng.normal(0, 2.0, (6, num_classes)).astype(np.float32),
        "bias": rng.normal(0, 0.1, num_classes).astype(np.float32),
        "k": np.array([top_k], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "kernel"], ["conv"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("TopK", ["probabilities", "k"], ["scores", "best"], axis=1),
        helper.make_node("Cast", ["best"], ["classes"], to=TensorProto.INT32),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *image])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", num_classes]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", top_k]),
            helper.make_tensor_value_info("classes", TensorProto.INT32, ["N", top_k]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
