"""ONNX files whose weights lie in files beside them: which, whether they may be read, and one hash of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx

from infer.errors import GraphError
from infer.files import sha256_file


def load_onnx(path: Path) -> onnx.ModelProto:
    """The model in ``path`` with its external data.

    Raises:
        GraphError: not ONNX, or a data file is missing or outside the folder of ``path``.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        for location in external_locations(model):
            _require_inside(path, location)
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except GraphError:
        raise
    except Exception as error:  # protobuf and onnx raise what shares no base
        raise GraphError(f"{path}: not a valid ONNX model ({_first_line(error)})") from error
    return model


def onnx_sha256(path: Path) -> str:
    """SHA-256 of an ONNX model, 64 hex digits: of the file, where that is all.

    With external data it is that of a text, in which each line is ``<sha256>  <name>`` as ``sha256sum`` prints it: the
    graph's file first, called ``graph``, then every data file by the location that the graph gives, sorted.
    """
    locations = external_locations(onnx.load(path, load_external_data=False))
    own = sha256_file(path)
    if not locations:
        return own
    lines = [f"{own}  graph\n"] + [f"{sha256_file(path.parent / name)}  {name}\n" for name in locations]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def external_locations(model: onnx.ModelProto) -> list[str]:
    """The data files that ``model`` refers to, relative to its own, sorted."""
    nodes = [node for function in model.functions for node in function.node]
    tensors = [*_tensors_of(model.graph), *(tensor for node in nodes for tensor in _tensors_in(node))]
    return sorted(
        {
            entry.value
            for tensor in tensors
            if tensor.data_location == onnx.TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _tensors_in(node)


def _tensors_in(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for item in node.attribute:
        yield from (*((item.t,) if item.HasField("t") else ()), *item.tensors)
        for graph in (*((item.g,) if item.HasField("g") else ()), *item.graphs):
            yield from _tensors_of(graph)


def _require_inside(path: Path, location: str) -> None:
    folder = path.parent.resolve()
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise GraphError(
            f"{path}: expected its weights in its own folder, found {location!r}; copy that file beside the model "
            "and let the graph refer to it there"
        )
    if not file.is_file():
        raise GraphError(f"{path}: its weights are in {location!r}, which is not there; copy it beside the model")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
