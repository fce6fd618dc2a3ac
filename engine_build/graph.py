"""ONNX passes: from a float NCHW classifier to the deployed graph.

:func:`prepare` runs them in order and checks each against a reference: the float model takes normalised float32
``[N, 3, H, W]`` and gives logits; the deployed graph takes ``images`` uint8 ``[N, H, W, 3]`` and gives
``logits`` float32 ``[N, C]``, ``scores`` float32 ``[N, k]`` and ``classes`` int32 ``[N, k]``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from calibration.onnx_index import Index, attribute
from engine_build.equalise import equalise_streams
from infer.errors import GraphError
from infer.preprocess import Preprocessing

INPUT, LOGITS, SCORES, CLASSES = "images", "logits", "scores", "classes"
TOP_K = 5
OPSET = 20
# Names of the nodes that the passes add; an exporter's node of the same name gets a number.
_ADDED = ("normalise.cast", "normalise.sub", "normalise.mul", "normalise.nchw", "softmax", "top_k", "classes.cast")
# Float rounding only: no pass may move a logit by more than this share of the largest one.
TOLERANCE = 1e-3

Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def canonicalise(model: onnx.ModelProto) -> None:
    """Bring exporters' variants into one form, in place.

    Constant nodes become initializers; ``Identity`` nodes go, also those that stand for shared weights; ``ReduceMean``
    over the image becomes ``GlobalAveragePool``; the reshape that only drops its 1x1 becomes ``Flatten``; nodes and
    tensors get unique names after the module they came from (``layer1.0.conv1``), so that a calibration cache can be
    read; exporters' notes, which hold local paths, go.
    """
    index = Index(model)
    for name in list(index.constants):
        if name in index.producer:
            index.set_constant(name, index.value(name))
    nodes = [node for node in model.graph.node if node.op_type != "Constant" and not _drop_identity(node, index)]
    for node in nodes:
        producer = index.producer.get(node.input[0])
        if node.op_type == "ReduceMean" and _is_spatial_mean(node, index):
            _become(node, helper.make_node("GlobalAveragePool", node.input[:1], node.output))
        elif node.op_type == "Reshape" and _drops_ones(node, producer, index):
            _become(node, helper.make_node("Flatten", node.input[:1], node.output, axis=1))
    _rename(nodes, index)
    del model.graph.value_info[:]
    for item in (model, model.graph, *nodes, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    index.set_nodes(nodes)


def _become(node: onnx.NodeProto, other: onnx.NodeProto) -> None:
    """Turn ``node`` into ``other`` but keep its name and the notes that it is named by."""
    other.name = node.name
    other.metadata_props.extend(node.metadata_props)
    node.CopyFrom(other)


def _drop_identity(node: onnx.NodeProto, index: Index) -> bool:
    """Let the readers of an Identity read its input; False for other nodes and where its result is an output."""
    if node.op_type != "Identity" or node.output[0] in index.outputs:
        return False
    index.replace_reads(node.output[0], node.input[0])
    return True


def _drops_ones(node: onnx.NodeProto, producer: onnx.NodeProto | None, index: Index) -> bool:
    """Whether a reshape turns pooled ``[N, C, 1, 1]`` into ``[N, C]``; a computed shape is taken to do so."""
    if producer is None or producer.op_type != "GlobalAveragePool":
        return False
    return node.input[1] not in index.constants or index.value(node.input[1]).size == 2


def _is_spatial_mean(node: onnx.NodeProto, index: Index) -> bool:
    if len(node.input) < 2 or node.input[1] not in index.constants or not attribute(node, "keepdims", 1):
        return False
    return sorted(int(a) % 4 for a in index.value(node.input[1]).ravel()) == [2, 3]


def _rename(nodes: list[onnx.NodeProto], index: Index) -> None:
    fixed = {value.name for value in (*index.graph.input, *index.graph.output)}
    taken: set[str] = set(_ADDED)
    tensors: dict[str, str] = {}
    for node in nodes:
        name = base = _module_name(node) or node.name or node.op_type.lower()
        number = 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        node.name = name
        for position, output in enumerate(node.output):
            if output and output not in fixed:
                tensors[output] = f"{name}_output" + (f"_{position}" if position else "")
    for node in nodes:
        for names in (node.input, node.output):
            for position, old in enumerate(names):
                names[position] = tensors.get(old, old)


def _module_name(node: onnx.NodeProto) -> str | None:
    """``layer1.0.conv1`` from the weight, else the module path that torch's exporter notes; None if neither."""
    if node.op_type in ("Conv", "Gemm"):  # torch's exporter notes the BN that it folded into them, not their own path
        for name in node.input[1:]:
            if name.endswith(".weight"):
                return name.removesuffix(".weight")
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":
            scopes: list[str] = ast.literal_eval(item.value)
            path = scopes[-2] if len(scopes) > 1 else ""
            kind = node.op_type.lower()
            leaf = node.op_type == "BatchNormalization" or path.rsplit(".", 1)[-1] == kind
            return path if leaf else f"{path}.{kind}".lstrip(".")
    return None


def fold_batch_norms(model: onnx.ModelProto) -> int:
    """Fold every BN that alone reads a Conv's or Gemm's result into that layer, in place, in float64.

    Returns:
        How many were folded. A BN behind a residual addition stays: the sum is also the next shortcut.
    """
    index = Index(model)
    folded: list[onnx.NodeProto] = []
    for norm in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
        layer = index.producer.get(norm.input[0])
        if layer is None or layer.op_type not in ("Conv", "Gemm"):
            continue
        if index.only_consumer(layer.output[0]) is None:
            continue
        if layer.input[1] not in index.constants or len(index.consumers[layer.input[1]]) > 1:
            continue
        gamma, beta, mean, variance = (index.value(name).astype(np.float64) for name in norm.input[1:5])
        scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        weight = index.value(layer.input[1])
        bias = index.value(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else np.zeros(len(scale))
        channel = 1 if layer.op_type == "Gemm" and not attribute(layer, "transB", 0) else 0
        shape = [1] * weight.ndim
        shape[channel] = -1
        if layer.op_type == "Gemm" and (attribute(layer, "alpha", 1.0), attribute(layer, "beta", 1.0)) != (1.0, 1.0):
            continue
        index.set_constant(layer.input[1], (weight * scale.reshape(shape)).astype(weight.dtype))
        bias_name = index.set_constant(f"{layer.name}.folded_bias", ((bias - mean) * scale + beta).astype(weight.dtype))
        del layer.input[2:]
        layer.input.append(bias_name)
        layer.output[0] = norm.output[0]
        folded.append(norm)
    dropped = {id(norm) for norm in folded}
    index.set_nodes(node for node in model.graph.node if id(node) not in dropped)
    return len(folded)


def simplify_batch_norms(model: onnx.ModelProto) -> None:
    """Give every remaining BN mean 0, variance 1 and epsilon 0, in place; scale and shift take the rest.

    In float16 a small variance would underflow; scale and shift do not.
    """
    index = Index(model)
    for norm in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
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
    front = [
        helper.make_node("Cast", [INPUT], ["normalise.cast_output"], "normalise.cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["normalise.cast_output", shift], ["normalise.sub_output"], "normalise.sub"),
        helper.make_node("Mul", ["normalise.sub_output", factor], ["normalise.mul_output"], "normalise.mul"),
        helper.make_node("Transpose", ["normalise.mul_output"], ["normalised"], "normalise.nchw", perm=[0, 3, 1, 2]),
    ]
    index.replace_reads(old, "normalised")
    image = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", spec.crop, spec.crop, 3])
    del model.graph.input[:]
    model.graph.input.append(image)
    index.set_nodes([*front, *model.graph.node])


def add_classification_head(model: onnx.ModelProto, num_classes: int) -> None:
    """Add softmax and top-k behind ``logits``, in place; k is 5, or the number of classes where that is less."""
    index = Index(model)
    k = min(TOP_K, num_classes)
    _rename_output(index, LOGITS)
    size = index.set_constant("top_k.k", np.array([k], np.int64))
    tail = [
        helper.make_node("Softmax", [LOGITS], ["softmax_output"], "softmax", axis=1),
        helper.make_node("TopK", ["softmax_output", size], [SCORES, "top_k_indices"], "top_k", axis=1),
        helper.make_node("Cast", ["top_k_indices"], [CLASSES], "classes.cast", to=TensorProto.INT32),
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
    canonicalise(model)
    check_step("canonicalise", model, spec, reference)
    folded = fold_batch_norms(model)
    check_step("fold_batch_norms", model, spec, reference)
    equalise_streams(model)
    check_step("equalise_streams", model, spec, reference)
    simplify_batch_norms(model)
    check_step("simplify_batch_norms", model, spec, reference)
    add_uint8_input(model, spec)
    check_step("add_uint8_input", model, spec, reference)
    add_classification_head(model, num_classes)
    check_step("add_classification_head", model, spec, reference)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"the finished graph is not valid ONNX ({str(error)[:300]}). This is a defect") from error
    return folded


def check_step(
    step: str, model: onnx.ModelProto, spec: Preprocessing, reference: Logits, tolerance: float = TOLERANCE
) -> None:
    """Compare the graph in ONNX Runtime with ``reference`` at batch sizes 1 and 3.

    Raises:
        GraphError: a logit differs by more than ``tolerance`` of the largest, or the graph does not run.
    """
    from engine_build.reference import graph_logits
    from engine_build.synthetic import synthetic_images

    try:
        logits = graph_logits(model, spec)
        for batch in (1, 3):
            images = synthetic_images(batch, spec.crop, seed=batch)
            expected, found = reference(images), logits(images)
            if expected.shape != found.shape:
                raise GraphError(f"step {step}: expected logits {expected.shape}, found {found.shape}")
            limit = tolerance * float(np.abs(expected).max())
            worst = float(np.abs(expected - found).max())
            if not worst <= limit:
                raise GraphError(
                    f"step {step} changed the results: largest logit difference {worst:.3g} at batch {batch}, "
                    f"allowed {limit:.3g} ({tolerance:g} of the largest logit). This is a defect; report the model"
                )
    except GraphError:
        raise
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        raise GraphError(f"step {step}: ONNX Runtime cannot run the graph ({str(error)[:300]})") from error
