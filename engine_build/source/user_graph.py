"""A user's own float classifier in ONNX: read, checked, and made dynamic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import helper

from calibration.onnx_index import Index
from engine_build.graph.check import TOLERANCE
from engine_build.graph.constants import fold_constants
from engine_build.graph.passes import OPSET
from engine_build.graph.reference import Logits, graph_logits, normalise, remembered
from engine_build.precision.casts import value_types
from engine_build.precision.opsets import opset_of
from engine_build.source.external_data import load_onnx
from engine_build.source.refusals import (
    called,
    fixed_batches,
    refuse_constants,
    refuse_one_logit,
    refuse_operators,
    refuse_types,
)
from engine_build.synthetic import synthetic_images
from infer.bundle.preprocessing import Preprocessing
from infer.errors import GraphError


def load_user_graph(path: Path, spec: Preprocessing) -> tuple[onnx.ModelProto, Logits, int]:
    """A user's float classifier, its logits in ONNX Runtime as the reference, and its number of classes.

    A fixed batch is made dynamic, local functions are inlined and an opset below 17 is converted; anything else must
    already be right.

    Raises:
        GraphError: not ONNX, not one float32 input ``[N, 3, H, W]`` and one output ``[N, C]``, or one of
            :mod:`engine_build.source.refusals`.
    """
    if not path.is_file():
        raise GraphError(f"no ONNX file at {path}")
    model = load_onnx(path)
    try:
        return _checked(model, spec, path)
    except GraphError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise GraphError(f"{path}: {error}") from error


def _checked(model: onnx.ModelProto, spec: Preprocessing, path: Path) -> tuple[onnx.ModelProto, Logits, int]:
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    refuse_operators(model)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and checker errors share no base
        raise GraphError(f"not a valid ONNX model ({str(error).splitlines()[0][:200]})") from error
    image, shape_out = _signature(model, spec)
    refuse_one_logit(shape_out[1])
    refuse_constants(model)
    refuse_types(model)
    opset, old = opset_of(model), model
    if opset < 17:
        model = _converted(model, opset)
    model.ir_version = max(model.ir_version, 8)  # before 4, every weight has to be an input too
    del model.graph.input[:]
    model.graph.input.append(image)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    if model is not old:
        _check_conversion(old, model, spec)
    if Index(model).op_counts()["Conv"] == 0:
        raise GraphError("no convolution in it; is it an image classifier?")
    _refuse_softmax(model)
    reference, classes = _run_batched(model, spec)
    if shape_out[1] not in (None, classes):
        raise GraphError(f"declares {shape_out[1]} classes but computes {classes}")
    refuse_one_logit(classes)
    return model, reference, classes


def _signature(model: onnx.ModelProto, spec: Preprocessing) -> tuple[onnx.ValueInfoProto, list[int | None]]:
    """The input of a classifier of square images, and the shape ``[N, C]`` of its output."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = list(model.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise GraphError(f"expected one input and one output, found {len(inputs)} and {len(outputs)}")
    shape_in, shape_out = _shape(inputs[0]), _shape(outputs[0])
    kind = inputs[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT or len(shape_in) != 4 or shape_in[1] != 3:
        other = "" if kind == onnx.TensorProto.FLOAT else f"{onnx.TensorProto.DataType.Name(kind).lower()} "
        raise GraphError(f"expected a float32 input [N, 3, H, W], found {other}{shape_in}")
    if None not in shape_in[2:] and shape_in[2] != shape_in[3]:
        raise GraphError(f"expected a square input, found {shape_in[2]}x{shape_in[3]}")
    if shape_in[2] not in (None, spec.crop) or shape_in[3] not in (None, spec.crop):
        raise GraphError(
            f"its input is {shape_in[2]}x{shape_in[3]} but the crop is {spec.crop}; pass --crop {shape_in[2]}"
        )
    if len(shape_out) != 2:
        raise GraphError(f"expected an output [N, C], found {shape_out}")
    return inputs[0], shape_out


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeError and errors of its own
        raise GraphError(
            f"opset {opset} cannot be converted to {OPSET} ({str(error)[:200]}); export it with 17 or later"
        ) from error


def _check_conversion(old: onnx.ModelProto, new: onnx.ModelProto, spec: Preprocessing) -> None:
    """Compare the logits before and after; nothing is compared where ONNX Runtime cannot run a graph so old.

    Raises:
        GraphError: they differ.
    """
    batch = _shape(next(value for value in old.graph.input if value.name == new.graph.input[0].name))[0]
    images = synthetic_images(batch or 1, spec.crop)
    try:
        expected = graph_logits(old, spec)(images)
    except Exception:  # as above
        return
    found = graph_logits(new, spec)(images)
    limit = TOLERANCE * float(np.abs(expected).max())
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=limit, equal_nan=True):
        raise GraphError(
            f"converted from opset {opset_of(old)} to {opset_of(new)} it gives other logits; export it with 17 or later"
        )


def _run_batched(model: onnx.ModelProto, spec: Preprocessing) -> tuple[Logits, int]:
    """The logits in ONNX Runtime and the number of classes, once two images together give what each gives alone."""
    images = synthetic_images(2, spec.crop)
    try:
        reference = remembered(graph_logits(model, spec))
        alone = np.concatenate([reference(images[:1]), reference(images[1:])])
        together = reference(images)
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        raise GraphError(
            f"ONNX Runtime cannot run it at batch sizes 1 and 2 ({str(error)[:300]}){_fixed_batch(model)}"
        ) from error
    if not np.isfinite(alone).all():
        raise GraphError(
            f"its logits are NaN or infinite for a synthetic picture{_first_overflow(model, images, spec)}"
        )
    if together.shape != alone.shape or not np.allclose(together, alone, atol=TOLERANCE * float(np.abs(alone).max())):
        raise GraphError(
            f"two images together give other logits than alone; export it with a dynamic batch{_fixed_batch(model)}"
        )
    return reference, together.shape[1]


def _fixed_batch(model: onnx.ModelProto) -> str:
    """``; the batch is fixed in node ...``, or nothing where no node looks so."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    fold_constants(Index(probe))
    nodes = fixed_batches(probe)
    return f"; the batch is fixed in {nodes}" if nodes else ""


def _first_overflow(model: onnx.ModelProto, images: NDArray[np.uint8], spec: Preprocessing) -> str:
    """``; the first is node ...``: where the numbers stop being finite."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    types = value_types(model)
    made = [(node, name) for node in model.graph.node for name in node.output]
    made = [(node, name) for node, name in made if types.get(name) == onnx.TensorProto.FLOAT]
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for _, name in made)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(None, {session.get_inputs()[0].name: normalise(images[:1], spec)})
    for (node, _), value in zip(made, values, strict=True):
        if not np.isfinite(value).all():
            return f"; the first come from node {called(node)} ({node.op_type})"
    return ""


def _refuse_softmax(model: onnx.ModelProto) -> None:
    index = Index(model)
    last = index.producer.get(model.graph.output[0].name)
    while last is not None and last.op_type in ("Identity", "Cast", "Reshape", "Flatten", "Squeeze"):
        last = index.producer.get(last.input[0])
    if last is not None and last.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        raise GraphError(f"ends in {last.op_type}; pass the model without it, softmax is added here")


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
