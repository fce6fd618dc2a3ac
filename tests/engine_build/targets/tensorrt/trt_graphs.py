"""Small ONNX classifiers for the TensorRT tests, the way the real ones are built: uint8 NHWC in, float32 out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

FLOAT_TYPES = {"fp32": T.FLOAT, "fp16": T.FLOAT16, "bf16": T.BFLOAT16, "int8": T.FLOAT, "fp8": T.FLOAT}
MACS = ("/conv0/Conv", "/conv1/Conv", "/conv2/Conv", "/fc/Gemm")


class TinyClassifier:
    """Cast, normalise, three convolutions with ReLU, global pool, Gemm.

    ``scale_shape`` is the shape of the activation scales: () is what TensorRT turns into int8 kernels. ``plain`` are
    the convolutions left without Q/DQ.
    """

    def __init__(self, precision="fp32", scale_shape=(), named=True, plain=(), batch="N"):
        self.precision, self.scale_shape, self.named, self.plain = precision, scale_shape, named, plain
        self.float_type = FLOAT_TYPES[precision]
        self.nodes, self.inits = [], []
        self.rng = np.random.default_rng(7)
        x = self.node("Cast", ["images"], "f", "/Cast", to=self.float_type)
        x = self.node("Mul", [x, self.constant("inv255", np.float32(1 / 255))], "n", "/Mul")
        x = self.node("Transpose", [x], "t", "/Transpose", perm=[0, 3, 1, 2])
        for k, (ci, co, size) in enumerate([(3, 16, 3), (16, 32, 3), (32, 32, 1)]):
            weight = self.rng.normal(size=(co, ci, size, size)).astype(np.float32) * 0.1
            a, w = self.quantised(x, f"w{k}", weight, f"/conv{k}")
            bias = self.constant(f"b{k}", self.rng.normal(size=co).astype(np.float32))
            x = self.node("Conv", [a, w, bias], f"y{k}", f"/conv{k}/Conv", pads=[size // 2] * 4)
            x = self.node("Relu", [x], f"r{k}", f"/relu{k}/Relu")
        x = self.node("GlobalAveragePool", [x], "g", "/pool")
        x = self.node("Flatten", [x], "flat", "/Flatten")
        a, w = self.quantised(x, "fw", self.rng.normal(size=(10, 32)).astype(np.float32), "/fc")
        x = self.node("Gemm", [a, w, self.constant("fb", np.zeros(10, np.float32))], "lg", "/fc/Gemm", transB=1)
        self.node("Cast", [x], "logits", "/Cast_1", to=T.FLOAT)
        self.batch = batch

    def save(self, path: Path) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("images", T.UINT8, [self.batch, 16, 16, 3])],
            [helper.make_tensor_value_info("logits", T.FLOAT, [self.batch, 10])],
            self.inits,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        return path

    def node(self, op, inputs, output, name, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=name if self.named else "", **attributes))
        return output

    def constant(self, name, array, dtype=None):
        array = np.asarray(array)
        dtype = self.float_type if dtype is None else dtype
        if dtype == T.FLOAT:  # as bytes, which can be moved to a file of their own
            self.inits.append(numpy_helper.from_array(array.astype(np.float32), name))
        else:
            self.inits.append(helper.make_tensor(name, dtype, array.shape, array.ravel().tolist()))
        return name

    def quantised(self, x, w, weight, tag):
        if self.precision not in ("int8", "fp8") or f"{tag}/Conv" in self.plain:
            return x, self.constant(w, weight)
        dtype, largest = (T.INT8, 127) if self.precision == "int8" else (T.FLOAT8E4M3FN, 448)
        scale = self.constant(f"{tag}/scale", np.full(self.scale_shape, 0.05), T.FLOAT)
        zero = self.constant(f"{tag}/zero", np.zeros(self.scale_shape, int), dtype)
        q = self.node("QuantizeLinear", [x, scale, zero], f"{tag}/q", f"{tag}/QuantizeLinear")
        a = self.node("DequantizeLinear", [q, scale, zero], f"{tag}/dq", f"{tag}/DequantizeLinear")
        scales = np.abs(weight).reshape(len(weight), -1).max(1) / largest
        levels = weight / scales.reshape(-1, *[1] * (weight.ndim - 1))
        levels = np.round(levels).astype(int) if self.precision == "int8" else levels
        inputs = [
            self.constant(f"{w}/q", levels, dtype),
            self.constant(f"{w}/scale", scales, T.FLOAT),
            self.constant(f"{w}/zero", np.zeros(len(weight), int), dtype),
        ]
        return a, self.node("DequantizeLinear", inputs, f"{w}/dq", f"{w}/DequantizeLinear", axis=0)


def save_nodes(path: Path, nodes, initializers=(), shape=("N", 3, 8, 8), dtype=T.FLOAT) -> Path:
    """A graph of ``nodes`` from ``images`` to ``y``, unchecked: some tests need graphs that are wrong."""
    graph = helper.make_graph(
        list(nodes),
        "nodes",
        [helper.make_tensor_value_info("images", dtype, list(shape))],
        [helper.make_tensor_value_info("y", T.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in dict(initializers).items()],
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("custom", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return path
