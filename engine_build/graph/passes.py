"""ONNX passes: from a float NCHW classifier to the deployed graph.

:func:`prepare` runs them in order and checks each against a reference: the float model takes normalised float32
``[N, 3, H, W]`` and gives logits; the deployed graph takes ``images`` uint8 ``[N, H, W, 3]`` and gives
``logits`` float32 ``[N, C]``, ``scores`` float32 ``[N, k]`` and ``classes`` int32 ``[N, k]``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from calibration.onnx_index import Index, attribute
from calibration.tensors import channel_axis, why_floating
from engine_build.graph.canonical import canonicalise
from engine_build.graph.equalise import equalise_streams
from engine_build.graph.names import CLASSES, EPILOGUE, INPUT, LOGITS, PROLOGUE, SCORES
from infer.errors import GraphError
from infer.images.resize import Preprocessing

TOP_K = 5
OPSET = 20
# Float rounding only: no pass may move a logit by more than this share of the largest one.
TOLERANCE = 1e-3

Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def fold_batch_norms(model: onnx.ModelProto) -> int:
    """Fold every BN that alone reads a Conv's or Gemm's result into that layer, in place, in float64.

    Returns:
        How many were folded. A BN behind a residual addition stays: the sum is also the next shortcut.
    """
    index = Index(model)
    folded: list[onnx.NodeProto] = []
    for norm in _constant_norms(index):
        layer = index.producer.get(norm.input[0])
        if layer is None or layer.op_type not in ("Conv", "Gemm") or why_floating(layer, index) is not None:
            continue
        if index.only_consumer(layer.output[0]) is None:
            continue
        gamma, beta, mean, variance = (index.value(name).astype(np.float64) for name in norm.input[1:5])
        scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        weight = index.value(layer.input[1])
        bias = index.value(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else np.zeros(len(scale))
        shape = [1] * weight.ndim
        shape[channel_axis(layer)] = -1
        index.set_constant(layer.input[1], (weight * scale.reshape(shape)).astype(weight.dtype))
        bias_name = index.set_constant(f"{layer.name}.folded_bias", ((bias - mean) * scale + beta).astype(weight.dtype))
        del layer.input[2:]
        layer.input.append(bias_name)
        layer.output[0] = norm.output[0]
        folded.append(norm)
    dropped = {id(norm) for norm in folded}
    index.set_nodes(node for node in model.graph.node if id(node) not in dropped)
    return len(folded)


def _constant_norms(index: Index) -> list[onnx.NodeProto]:
    """The BNs whose parameters are constants."""
    norms = [node for node in index.graph.node if node.op_type == "BatchNormalization"]
    return [norm for norm in norms if all(name in index.constants for name in norm.input[1:5])]


def simplify_batch_norms(model: onnx.ModelProto) -> None:
    """Give every remaining BN mean 0, variance 1 and epsilon 0, in place; scale and shift take the rest.

    In float16 a small variance would underflow; scale and shift do not.
    """
    index = Index(model)
    for norm in _constant_norms(index):
        gamma, beta, mean, variance = (index.value(name).astype(np.float64) for name in norm.input[1:5])
        scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        values = (scale, beta - mean * scale, np.zeros_like(scale), np.ones_like(scale))
        for position, (part, value) in enumerate(zip(("scale", "shift", "zero", "one"), values, strict=True), 1):
            norm.input[position] = index.set_constant(f"{norm.name}.{part}", value.astype(np.float32))
        del norm.attribute[:]
        norm.attribute.append(helper.make_attribute("epsilon", 0.0))
    index.set_nodes(model.graph.node)


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


def check_step(
    step: str,
    model: onnx.ModelProto,
    spec: Preprocessing,
    reference: Logits,
    tolerance: float = TOLERANCE,
    source: onnx.ModelProto | None = None,
) -> None:
    """Compare the graph in ONNX Runtime with ``reference`` at batch sizes 1 and 3.

    Args:
        step: what was done last.
        model: the graph after it.
        spec: its pre-processing.
        reference: the right logits.
        tolerance: share of the largest logit by which one may differ.
        source: the graph before all steps, to tell rounding from a defect.

    Raises:
        GraphError: a logit differs by more than ``tolerance`` of the largest, or the graph does not run.
    """
    from engine_build.graph.precision_loss import explain
    from engine_build.graph.reference import graph_logits
    from engine_build.synthetic import synthetic_images

    try:
        logits = graph_logits(model, spec)
        for batch in (1, 3):
            images = synthetic_images(batch, spec.crop, seed=batch)
            expected, found = reference(images), logits(images)
            if expected.shape != found.shape:
                raise GraphError(f"step {step}: expected logits {expected.shape}, found {found.shape}")
            largest = float(np.abs(expected).max())
            worst = float(np.abs(expected - found).max())
            if worst <= tolerance * largest:
                continue
            moved = (
                f"largest logit difference {worst:.3g} at batch {batch}, allowed {tolerance * largest:.3g} "
                f"({tolerance:g} of the largest logit)"
            )
            rounding = explain(worst, largest, model, source, spec, images)
            if rounding is not None:
                raise GraphError(f"step {step} lost precision: {moved}; {rounding}")
            raise GraphError(f"step {step} changed the results: {moved}. This is a defect; report the model")
    except GraphError:
        raise
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        raise GraphError(f"step {step}: ONNX Runtime cannot run the graph ({str(error)[:300]})") from error
