"""ONNX passes: from a float NCHW classifier to the deployed graph.

:func:`prepare` runs them in order and checks each against a reference: the float model takes normalised float32
``[N, 3, H, W]`` and gives logits; the deployed graph takes ``images`` uint8 ``[N, H, W, 3]`` and gives
``logits`` float32 ``[N, C]``, ``scores`` float32 ``[N, k]`` and ``classes`` int32 ``[N, k]``.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from calibration.onnx_index import Index
from engine_build.graph.batch_norms import fold_batch_norms, simplify_batch_norms
from engine_build.graph.canonical import canonicalise
from engine_build.graph.check import check_step
from engine_build.graph.equalise import equalise_streams
from engine_build.graph.names import EPILOGUE, PROLOGUE
from engine_build.graph.reference import Logits
from infer.bundle.preprocessing import Preprocessing
from infer.bundle.tensors import CLASSES, INPUT, LOGITS, SCORES
from infer.errors import GraphError

TOP_K = 5
OPSET = 20


def add_uint8_input(model: onnx.ModelProto, spec: Preprocessing) -> None:
    """Put ``uint8 NHWC -> float32, normalised, NCHW`` in front of the graph, in place.

    ``(x - 255 mean) / (255 std)`` in float32, so that the subtraction is exact to the last bit of a grey level.
    """
    index = Index(model)
    old = model.graph.input[0].name
    mean, std = (np.array(v, np.float64) for v in (spec.mean, spec.std))
    shift = index.set_constant("normalise.shift", (255 * mean).astype(np.float32))
    factor = index.set_constant("normalise.factor", (1 / (255 * std)).astype(np.float32))
    cast, subtract, multiply = PROLOGUE
    front = [
        helper.make_node("Cast", [INPUT], ["normalise.cast_output"], cast, to=TensorProto.FLOAT),
        helper.make_node("Sub", ["normalise.cast_output", shift], ["normalise.sub_output"], subtract),
        helper.make_node("Mul", ["normalise.sub_output", factor], ["normalise.mul_output"], multiply),
        helper.make_node("Transpose", ["normalise.mul_output"], ["normalised"], "normalise.nchw", perm=[0, 3, 1, 2]),
    ]
    index.replace_reads(old, "normalised")
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", spec.crop, spec.crop, 3])
    del model.graph.input[:]
    model.graph.input.append(image)
    index.set_nodes([*front, *model.graph.node])


def add_classification_head(model: onnx.ModelProto, num_classes: int) -> None:
    """Add softmax and top-k behind ``logits``, in place; k is 5, or the number of classes where that is less.

    The classes are ranked by their logits. Where softmax underflows, far behind the first, their scores are all 0.
    """
    index = Index(model)
    k = min(TOP_K, num_classes)
    _rename_output(index, LOGITS)
    size = index.set_constant("top_k.k", np.array([k], np.int64))
    softmax, top_k, gather, cast = EPILOGUE
    tail = [
        helper.make_node("Softmax", [LOGITS], ["softmax_output"], softmax, axis=1),
        helper.make_node("TopK", [LOGITS, size], ["top_k_logits", "top_k_indices"], top_k, axis=1),
        helper.make_node("GatherElements", ["softmax_output", "top_k_indices"], [SCORES], gather, axis=1),
        helper.make_node("Cast", ["top_k_indices"], [CLASSES], cast, to=TensorProto.INT32),
    ]
    del model.graph.output[:]
    for name, kind, width in (
        (LOGITS, TensorProto.FLOAT, num_classes),
        (SCORES, TensorProto.FLOAT, k),
        (CLASSES, TensorProto.INT32, k),
    ):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, ["batch", width]))
    index.refresh()
    index.set_nodes([*model.graph.node, *tail])


def _rename_output(index: Index, new: str) -> None:
    old = index.graph.output[0].name
    if old == new:
        return
    if new in index.producer or new in index.constants:
        raise GraphError(f"the graph has an inner tensor called {new!r}; rename it")
    for position, name in enumerate(index.producer[old].output):
        if name == old:
            index.producer[old].output[position] = new
    index.replace_reads(old, new)
    index.graph.output[0].name = new


def prepare(model: onnx.ModelProto, spec: Preprocessing, num_classes: int, reference: Logits) -> int:
    """Run every pass in place, each checked against ``reference`` at batch sizes 1 and 3.

    Args:
        model: float32 classifier with input ``[N, 3, H, W]`` and output logits ``[N, C]``.
        spec: pre-processing that goes into the graph.
        num_classes: C.
        reference: logits of uint8 ``[N, H, W, 3]`` images from the model this graph came from.

    Returns:
        How many BNs were folded.

    Raises:
        GraphError: a pass changed the results; names it.
    """
    source = onnx.ModelProto()
    source.CopyFrom(model)
    canonicalise(model)
    check_step("canonicalise", model, spec, reference, source=source)
    folded = fold_batch_norms(model)
    check_step("fold_batch_norms", model, spec, reference, source=source)
    equalise_streams(model)
    check_step("equalise_streams", model, spec, reference, source=source)
    simplify_batch_norms(model)
    check_step("simplify_batch_norms", model, spec, reference, source=source)
    add_uint8_input(model, spec)
    check_step("add_uint8_input", model, spec, reference, source=source)
    add_classification_head(model, num_classes)
    check_step("add_classification_head", model, spec, reference, source=source)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the finished graph is not valid ONNX ({str(error)[:300]}). This is a defect") from error
    return folded
