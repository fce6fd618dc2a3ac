"""Sources of a float graph: PyTorch's exporter, or a user's own ONNX classifier."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch

from calibration.onnx_index import Index
from engine_build.graph import OPSET, TOLERANCE, Logits, check_step
from engine_build.names import INPUT, LOGITS
from engine_build.reference import graph_logits, remembered, torch_logits
from engine_build.synthetic import synthetic_images
from infer.errors import GraphError
from infer.preprocess import Preprocessing


def export_torch(model: torch.nn.Module, spec: Preprocessing) -> tuple[onnx.ModelProto, Logits]:
    """``model`` as ONNX with a dynamic batch, and its logits in PyTorch as the reference for later passes.

    Raises:
        GraphError: ONNX Runtime does not reproduce PyTorch at batch sizes 1 and 3.
    """
    example = torch.zeros(2, 3, spec.crop, spec.crop)
    silence = contextlib.redirect_stdout(io.StringIO())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), silence, torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(), (example,), dynamo=True, verbose=False, opset_version=OPSET,
            input_names=[INPUT], output_names=[LOGITS], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    assert program is not None
    graph = onnx.ModelProto()
    graph.CopyFrom(program.model_proto)
    reference = remembered(torch_logits(model, spec))
    check_step("export", graph, spec, reference)
    return graph, reference


def load_user_graph(path: Path, spec: Preprocessing) -> tuple[onnx.ModelProto, Logits, int]:
    """A user's float classifier, its logits in ONNX Runtime as the reference, and its number of classes.

    A fixed batch is made dynamic and an opset below 17 is converted; anything else must already be right.

    Raises:
        GraphError: not ONNX, or not one float32 input ``[N, 3, H, W]`` and one output ``[N, C]``.
    """
    if not path.is_file():
        raise GraphError(f"no ONNX file at {path}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and checker errors share no base
        raise GraphError(f"{path}: not a valid ONNX model ({str(error).splitlines()[0][:200]})") from error
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = list(model.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise GraphError(f"{path}: expected one input and one output, found {len(inputs)} and {len(outputs)}")
    shape_in, shape_out = _shape(inputs[0]), _shape(outputs[0])
    if inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT or len(shape_in) != 4 or shape_in[1] != 3:
        raise GraphError(f"{path}: expected a float32 input [N, 3, H, W], found {shape_in}")
    if None not in shape_in[2:] and shape_in[2] != shape_in[3]:
        raise GraphError(f"{path}: expected a square input, found {shape_in[2]}x{shape_in[3]}")
    if shape_in[2] not in (None, spec.crop) or shape_in[3] not in (None, spec.crop):
        raise GraphError(
            f"{path}: its input is {shape_in[2]}x{shape_in[3]} but the crop is {spec.crop}; pass --crop {shape_in[2]}"
        )
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < 17:
        model = _converted(model, opset, path)
    model.ir_version = max(model.ir_version, 8)  # before 4, every weight has to be an input too
    del model.graph.input[:]
    model.graph.input.append(inputs[0])
    if len(shape_out) != 2:
        raise GraphError(f"{path}: expected an output [N, C], found {shape_out}")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    if Index(model).op_counts()["Conv"] == 0:
        raise GraphError(f"{path}: no convolution in it; is it an image classifier?")
    _refuse_softmax(model, path)
    reference, classes = _run_batched(model, spec, path)
    if shape_out[1] not in (None, classes):
        raise GraphError(f"{path}: declares {shape_out[1]} classes but computes {classes}")
    return model, reference, classes


def _converted(model: onnx.ModelProto, opset: int, path: Path) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeError and errors of its own
        raise GraphError(
            f"{path}: opset {opset} cannot be converted to {OPSET} ({str(error)[:200]}); export it with 17 or later"
        ) from error


def _run_batched(model: onnx.ModelProto, spec: Preprocessing, path: Path) -> tuple[Logits, int]:
    """The logits in ONNX Runtime and the number of classes, once two images together give what each gives alone."""
    images = synthetic_images(2, spec.crop)
    try:
        reference = remembered(graph_logits(model, spec))
        together = reference(images)
        alone = np.concatenate([reference(images[:1]), reference(images[1:])])
    except Exception as error:  # ONNX Runtime raises classes of its own that share no base
        raise GraphError(f"{path}: ONNX Runtime cannot run it at batch sizes 1 and 2 ({str(error)[:300]})") from error
    if together.shape != alone.shape or not np.allclose(together, alone, atol=TOLERANCE * float(np.abs(alone).max())):
        raise GraphError(f"{path}: two images together give other logits than alone; export it with a dynamic batch")
    return reference, together.shape[1]


def _refuse_softmax(model: onnx.ModelProto, path: Path) -> None:
    index = Index(model)
    last = index.producer.get(model.graph.output[0].name)
    while last is not None and last.op_type in ("Identity", "Cast", "Reshape", "Flatten", "Squeeze"):
        last = index.producer.get(last.input[0])
    if last is not None and last.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        raise GraphError(f"{path}: ends in {last.op_type}; pass the model without it, softmax is added here")


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
