"""A typed graph computed as it is written, by an engine that is none of its targets: ONNX Runtime, changing nothing.

ONNX Runtime's CPU has no bfloat16 kernels, and between two of its float16 kernels, which compute in float32, it drops
the rounding to float16. So both are emulated: every tensor of theirs becomes float32, rounded by a pair of Casts
where it is made, which ONNX Runtime leaves alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_index import Index, attribute
from engine_build.graph.reference import Logits, normalise
from engine_build.precision.casts import value_types
from infer.bundle.preprocessing import IMAGENET, Preprocessing
from infer.bundle.tensors import LOGITS
from infer.errors import GraphError

if TYPE_CHECKING:
    import onnxruntime

_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# What these make of numbers that are rounded already is rounded too.
_EXACT = (
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Max",
    "MaxPool",
    "Min",
    "Relu",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
_BATCH = 16


def as_written(model: onnx.ModelProto, spec: Preprocessing | None = None) -> Logits:
    """Logits of a typed graph, every node computed as it is written.

    Args:
        model: a graph of any precision with one input.
        spec: needed where the input takes normalised float images NCHW instead of uint8 NHWC.

    Returns:
        A function from uint8 ``[N, H, W, 3]`` to float32 ``[N, C]``.

    Raises:
        GraphError: ONNX Runtime refuses the graph.
    """
    session = open_session(emulated(model))
    source = session.get_inputs()[0]
    outputs = [value.name for value in session.get_outputs()]
    output = LOGITS if LOGITS in outputs else outputs[0]
    raw = source.type == "tensor(uint8)"

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = []
        for at in range(0, len(images), _BATCH):
            batch = images[at : at + _BATCH]
            parts.append(session.run([output], {source.name: batch if raw else normalise(batch, spec or IMAGENET)}))
        return np.concatenate([logits for (logits,) in parts])

    return run


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU that rewrites nothing.

    Raises:
        GraphError: ONNX Runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # be fair to other processes
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise GraphError(f"ONNX Runtime cannot run the typed graph: {str(error).strip()[:300]}") from error


def engine_name() -> str:
    """What computes, for manifests."""
    from importlib.metadata import version

    return f"onnxruntime {version('onnxruntime')}, as written"


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` in float32 with the roundings of its float16 and bfloat16 tensors; itself where it has none.

    Raises:
        GraphError: an input or output of the graph is float16 or bfloat16.
    """
    types = value_types(model)
    if not any(kind in _LOW for kind in types.values()):
        return model
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in _LOW:
            raise GraphError(f"expected inputs and outputs in float32, integers or bytes; {value.name!r} is not")
    work = onnx.ModelProto()
    work.CopyFrom(model)
    _restore_constants(work)
    nodes: list[onnx.NodeProto] = []
    index = Index(work)
    for node in work.graph.node:
        target = attribute(node, "to") if node.op_type == "Cast" else None
        if node.op_type == "Cast" and target not in _LOW:
            nodes.append(node)  # to float32 from what is float32 already, or to integers
            continue
        if target in _LOW:
            nodes += _rounding(node.input[0], node.output[0], int(target))
            continue
        _retype(node)
        nodes.append(node)
        if node.op_type in (*_EXACT, "Constant"):
            continue
        for position, name in enumerate(node.output):
            if (kind := types.get(name)) in _LOW:
                node.output[position] = f"{name}.exact"
                nodes += _rounding(f"{name}.exact", name, int(kind or 0))
    del work.graph.value_info[:]
    index.set_nodes(nodes)
    return work


def _rounding(source: str, result: str, kind: int) -> list[onnx.NodeProto]:
    low = f"{result}.{TensorProto.DataType.Name(kind).lower()}"
    return [
        helper.make_node("Cast", [source], [low], f"{result}.round", to=kind),
        helper.make_node("Cast", [low], [result], f"{result}.restore", to=TensorProto.FLOAT),
    ]


def _restore_constants(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type in _LOW:
            tensor.CopyFrom(_float32(tensor))


def _float32(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _retype(node: onnx.NodeProto) -> None:
    """Let a node that is told its output's type, or holds numbers, use float32."""
    for item in node.attribute:
        if item.type == onnx.AttributeProto.TENSOR and item.t.data_type in _LOW:
            item.t.CopyFrom(_float32(item.t))
        elif item.name in ("dtype", "output_dtype") and item.i in _LOW:
            item.i = TensorProto.FLOAT
