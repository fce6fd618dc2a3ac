"""What a target needs to know of the ONNX graph that it builds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

MAC_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose kernels do the arithmetic: multiply-accumulates."""


def mac_nodes(model: onnx.ModelProto) -> dict[str, str]:
    """Names and operators of the convolutions and matrix products of ``model``, in graph order.

    A node without a name is called ``node_of_<first output>``, as TensorRT's parser does.
    """
    return {
        node.name or f"node_of_{node.output[0]}": node.op_type
        for node in model.graph.node
        if node.op_type in MAC_OPERATORS
    }


def mac_results(model: onnx.ModelProto) -> dict[str, str]:
    """The name of the convolution or matrix product that writes each tensor, by the tensor's name."""
    return {node.output[0]: node.name for node in model.graph.node if node.op_type in MAC_OPERATORS}


def uses_fp8(model: onnx.ModelProto) -> bool:
    """Whether ``model`` holds fp8 weights or zero-points, or casts to fp8."""
    from onnx import TensorProto

    kinds = {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2FNUZ}
    casts = (attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "to")
    return any(tensor.data_type in kinds for tensor in model.graph.initializer) or any(kind in kinds for kind in casts)
