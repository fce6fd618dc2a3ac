"""A float graph from PyTorch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import onnx
import torch

from engine_build.graph.check import check_step
from engine_build.graph.passes import OPSET
from engine_build.graph.reference import Logits, remembered, torch_logits
from infer.bundle.preprocessing import Preprocessing
from infer.bundle.tensors import INPUT, LOGITS


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
            model.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGITS],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    graph = onnx.ModelProto()
    graph.CopyFrom(program.model_proto)
    reference = remembered(torch_logits(model, spec))
    check_step("export", graph, spec, reference)
    return graph, reference
