"""Small ONNX graphs with the operators of the real ones."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 20
TENSORS = ["normalised", "relu1", "relu2", "sum", "pooled"]


def residual_graph(batch="batch", dtype=TensorProto.FLOAT) -> onnx.ModelProto:
    """``images`` uint8 [N, 20, 20, 3] to logits: conv, ReLU, conv, ReLU, conv, add (signed), ReLU, pool, Gemm."""
    random = np.random.default_rng(7)
    as_type = helper.tensor_dtype_to_np_dtype(dtype)

    def weight(name, *shape):
        value = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        return numpy_helper.from_array(value.astype(as_type), name)

    weights = [weight("w1", 32, 3, 3, 3), weight("w2", 64, 32, 1, 1), weight("w3", 32, 64, 3, 3), weight("fc", 32, 10)]
    weights.append(numpy_helper.from_array(np.array([124, 116, 104], as_type), "mean"))
    weights.append(numpy_helper.from_array(np.array([0.017], as_type), "factor"))
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=dtype),
        helper.make_node("Sub", ["float", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "factor"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["normalised"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["normalised", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "w2"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["relu2"]),
        helper.make_node("Conv", ["relu2", "w3"], ["c3"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c3", "c1"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["relu3"]),
        helper.make_node("GlobalAveragePool", ["relu3"], ["average"]),
        helper.make_node("Flatten", ["average"], ["pooled"]),
        helper.make_node("MatMul", ["pooled", "fc"], ["logits"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", dtype, [batch, 10])
    return _model(nodes, images, [logits], weights)


def float_graph(node: str = "Relu", **attributes) -> onnx.ModelProto:
    """``x`` float32 [N, 4] through one node to ``y``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return _model([helper.make_node(node, ["x"], ["y"], **attributes)], x, [y], [])


def _model(nodes, given, outputs, weights) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "small", [given], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Smooth uint8 images [count, 20, 20, 3], all different."""
    random = np.random.default_rng(seed)
    axis = np.arange(SIZE) / SIZE
    phase = random.random((count, 2, 1, 1, 3)) * 6
    wave = np.sin(axis[None, :, None, None] * 5 + phase[:, 0]) + np.cos(axis[None, None, :, None] * 4 + phase[:, 1])
    return np.clip(wave * 60 + 128 + random.integers(-9, 9, wave.shape), 0, 255).astype(np.uint8)
