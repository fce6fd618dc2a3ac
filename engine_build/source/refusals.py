"""What a user's graph must not be, told before any work: each refusal names the node or tensor and says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from calibration.onnx_index import Index
from engine_build.graph.constants import depends_on_constants
from engine_build.graph.shapes import infer_shapes
from infer.errors import GraphError

_STANDARD = ("", "ai.onnx")
_QUANTISED = re.compile(r"^QLinear|Integer|[Qq]uantize|^Q[A-Z]|NBits|BnB4")
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_COMPUTES = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul")
# Where infinity is a bound or a mask and no weight.
_MAY_BE_INFINITE = ("Clip", "Max", "Min", "Pad", "Where")


def refuse_operators(model: onnx.ModelProto) -> None:
    """Refuse what no pass and no builder takes: operators that are not ONNX's own, control flow, quantised graphs.

    Raises:
        GraphError: without the name of the file.
    """
    for node in _all_nodes(model.graph):
        if node.domain not in _STANDARD and not _QUANTISED.search(node.op_type):
            _refuse_domain(node)
    known: set[str] = set()
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise GraphError(f"initializer {name!r} is sparse; store it as a plain tensor")
    index = Index(model)
    quantised = []
    for node in model.graph.node:
        if node.op_type in _CONTROL_FLOW:
            raise GraphError(
                f"node {called(node)} is control flow ({node.op_type}), which engines are not built from; "
                "export with fixed sizes, so that the exporter can decide it"
            )
        if depends_on_constants(node, index, known) or node.op_type == "Constant":
            known |= set(node.output)
        elif _QUANTISED.search(node.op_type):
            quantised.append(node)
    if quantised:
        raise GraphError(
            f"it is quantised already ({len(quantised)} nodes, first {quantised[0].op_type} {called(quantised[0])}); "
            "pass the float model it was made from: --precision int8 quantises it here, and --cache takes a "
            "calibration cache of its own"
        )


def _refuse_domain(node: onnx.NodeProto) -> None:
    what = f"operator {node.op_type} of domain {node.domain!r} (node {called(node)})"
    if node.domain.startswith("com.microsoft") or node.domain.startswith("com.ms"):
        raise GraphError(
            f"{what} was put there by ONNX Runtime's optimiser, no other engine knows it; pass the model as it was "
            "exported, without ORT optimisation (optimized_model_filepath, onnxruntime.transformers)"
        )
    raise GraphError(f"{what} is not one of ONNX's own; export it with standard operators")


def refuse_constants(model: onnx.ModelProto) -> None:
    """Refuse NaN and infinite weights, batch norms of negative variance, and an output that is a constant.

    Raises:
        GraphError: without the name of the file.
    """
    index = Index(model)
    constant = index.outputs & set(index.constants)
    if constant:
        raise GraphError(f"its output {constant.pop()!r} is a constant, it does not depend on the image")
    for name, tensor in index.constants.items():
        if tensor.data_type not in _FLOATS:
            continue
        value = numpy_helper.to_array(tensor).astype(np.float64)
        count = int(np.isnan(value).sum())
        if not all(node.op_type in _MAY_BE_INFINITE for node in index.consumers.get(name, [])):
            count += int(np.isinf(value).sum())
        if count:
            readers = ", ".join(called(node) for node in index.consumers.get(name, [])[:2]) or "nobody"
            raise GraphError(
                f"weights {name!r} (read by {readers}) hold NaN or infinity in {count} of {value.size} places; "
                "the training diverged or the file is damaged"
            )
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and node.input[4] in index.constants:
            least = index.value(node.input[4]).min(initial=0.0)
            if least < 0:
                raise GraphError(f"variance {node.input[4]!r} of batch norm {called(node)} is negative ({least:.3g})")


def refuse_types(model: onnx.ModelProto) -> None:
    """Refuse graphs that compute in another floating-point type than float32; weights may be stored in any.

    Raises:
        GraphError: without the name of the file.
    """
    try:
        inferred = infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        return  # ONNX Runtime, which runs it next, says better what contradicts what
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    index = Index(model)
    known: set[str] = set()
    for node in model.graph.node:
        if depends_on_constants(node, index, known) or node.op_type == "Constant":
            known |= set(node.output)
            continue
        kind = types.get(node.output[0], TensorProto.UNDEFINED)
        halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        if kind in halves or (kind == TensorProto.DOUBLE and node.op_type in _COMPUTES):
            name = TensorProto.DataType.Name(kind).lower()
            raise GraphError(
                f"it computes in {name} (node {called(node)}); pass the float32 model, the precision is chosen here "
                "(--precision)"
            )


def refuse_one_logit(classes: int | None) -> None:
    """Refuse a classifier of one class.

    Raises:
        GraphError: without the name of the file.
    """
    if classes is not None and classes < 2:
        raise GraphError(
            f"expected logits of two or more classes, found {classes}: the softmax of one is always 1; for a "
            "sigmoid's z export the two logits [0, z]"
        )


def fixed_batches(model: onnx.ModelProto) -> str:
    """The nodes that may hold a fixed batch, ``node 'view' (Reshape to [1, -1])``, at most three; empty for none.

    Args:
        model: a graph whose constants have been computed.
    """
    index = Index(model)
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Reshape", "Expand") or node.input[1] not in index.constants:
            continue
        shape = index.value(node.input[1]).ravel().tolist()
        if shape and shape[0] > 0:
            found.append(f"node {called(node)} ({node.op_type} to {shape})")
    return ", ".join(found[:3])


def called(node: onnx.NodeProto) -> str:
    """The quoted name of a node; where it has none, that of what it writes."""
    return repr(node.name or next(iter(node.output), node.op_type))


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for item in node.attribute:
            for inner in (*((item.g,) if item.HasField("g") else ()), *item.graphs):
                yield from _all_nodes(inner)
