"""What options choose from: one list for command lines, records and checks."""

from __future__ import annotations

from typing import Literal, get_args

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "auto"]
#: Who runs a plan, the fastest first.
Target = Literal["tensorrt", "tensorrt_rtx", "openvino"]
#: The targets, and the reference.
Runs = Literal["tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"]
Interpolation = Literal["bilinear", "bicubic"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TARGETS: tuple[Target, ...] = get_args(Target)
#: Those whose plans are TensorRT's.
TENSORRT: tuple[Target, ...] = ("tensorrt", "tensorrt_rtx")
