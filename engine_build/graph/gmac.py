"""How much arithmetic a graph costs, for the roofline of the benchmark."""

from __future__ import annotations

import math

import onnx

from calibration.onnx_index import Index
from engine_build.graph.shapes import infer_shapes


def count_gmac(graph: onnx.ModelProto) -> float | None:
    """10^9 multiply-accumulates of the convolutions and matrix products for one image; None where a shape is not known.

    Args:
        graph: a prepared float32 graph, whose first dimension is the batch.
    """
    inferred = infer_shapes(graph)
    weights = {name: tensor.dims for name, tensor in Index(graph).constants.items()}
    sizes: dict[str, int] = {}  # elements of one image
    for value in (*inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim[1:]
        if all(dim.HasField("dim_value") for dim in dims):
            sizes[value.name] = math.prod(dim.dim_value for dim in dims)
    total = 0
    for node in graph.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        output, weight = sizes.get(node.output[0]), weights.get(node.input[1])
        if output is None or weight is None:
            return None
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        across = weight[0] if node.op_type == "Conv" or transposed else weight[-1]
        total += output * math.prod(weight) // across
    return total / 1e9
