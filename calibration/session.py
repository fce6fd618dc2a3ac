"""Runs a graph on single images and hands out inner tensors.

One image a run, always, on one thread: ONNX Runtime chooses kernels by shape, so the last bit of an activation can
depend on the batch it was computed in. Throughput comes from several images at once, one a thread, which also costs
less CPU than several threads on one image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from infer.errors import GraphError, InputError

_GRAPH, _WEIGHTS = "graph.onnx", "weights.bin"
_ALIGNMENT = 4096  # of each weight in the file, so that it can be mapped into memory
_INLINE = 4096  # bytes; smaller constants stay in the graph, where shape inference reads them


class ActivationSession:
    """An ONNX Runtime session that also returns the named inner tensors. A context manager.

    Safe to call from several threads at once. The weights lie in a temporary file that is mapped into memory, not in
    this process's heap; the file is removed at the end.

    Attributes:
        tensors: the names, in the order in which the graph computes them, each once.
        input_name: the graph's only input.
        image_shape: the input's dimensions behind the batch, None where free.
        dtype: the input's numpy type.
    """

    def __init__(self, graph: Path | Any, tensors: Sequence[str]) -> None:
        """Prepare the session.

        Args:
            graph: path of an ONNX file, or an ``onnx.ModelProto``, which is left as it is.
            tensors: names of activations; repeats are dropped.

        Raises:
            InputError: no names.
            GraphError: not an ONNX graph with one input and a batch of 1 or any, or it lacks one of the names.
        """
        if not tensors:
            raise InputError("no tensor names to calibrate; pass at least one activation of the graph")
        model = _load(graph)
        self.input_name, self.dtype, self.image_shape = _only_input(model)
        self.tensors = _in_graph_order(model, tensors)
        self._outputs = [name for name in self.tensors if name != self.input_name]
        self._folder = tempfile.TemporaryDirectory(prefix="calibration-")
        try:
            _write_with_outputs(model, self._outputs, Path(self._folder.name))
            del model  # before ONNX Runtime reads the weights again
            self._session = _open(Path(self._folder.name) / _GRAPH)
        except BaseException:
            self._folder.cleanup()
            raise

    def check(self, batch: NDArray[Any]) -> None:
        """Check that ``batch`` is ``[N, *image_shape]`` of the input's type.

        Raises:
            InputError: it is not.
        """
        wanted = ", ".join("any" if size is None else str(size) for size in self.image_shape)
        expected = f"batches of {self.dtype} [N, {wanted}] for the input {self.input_name!r}"
        if not isinstance(batch, np.ndarray):
            raise InputError(f"expected {expected}, found {type(batch).__name__}")
        fits = len(batch.shape) == 1 + len(self.image_shape) and all(
            size in (None, found) for size, found in zip(self.image_shape, batch.shape[1:], strict=True)
        )
        if batch.dtype != self.dtype or not fits:
            raise InputError(f"expected {expected}, found {batch.dtype} {list(batch.shape)}")

    def run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Every named tensor for one image ``[1, *image_shape]``.

        Raises:
            GraphError: ONNX Runtime fails.
        """
        found: dict[str, NDArray[Any]] = {}
        if self._outputs:
            try:
                arrays = self._session.run(self._outputs, {self.input_name: image})
            except Exception as error:  # ONNX Runtime raises classes of its own that share no base
                raise GraphError(f"ONNX Runtime cannot run the graph ({_one_line(error)})") from error
            found = dict(zip(self._outputs, arrays, strict=True))
        if self.input_name in self.tensors:
            found[self.input_name] = image
        return found

    def close(self) -> None:
        """Release the session and remove its file; harmless when called twice."""
        self._session = None
        self._folder.cleanup()

    def __enter__(self) -> ActivationSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _load(graph: Path | Any) -> Any:
    import onnx

    if isinstance(graph, onnx.ModelProto):
        return graph
    path = Path(graph)
    if not path.is_file():
        raise GraphError(f"no ONNX file at {path}; build or export the graph first")
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's DecodeError and OSError share no useful base
        raise GraphError(f"{path}: not a readable ONNX model ({_one_line(error)})") from error


def _only_input(model: Any) -> tuple[str, np.dtype[Any], tuple[int | None, ...]]:
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise GraphError(f"calibration needs a graph with one input, found {[value.name for value in inputs]}")
    kind = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    name = inputs[0].name
    if not dims or dims[0] not in (None, 1):
        raise GraphError(f"input {name!r} has shape {dims}: calibration needs a free batch or one of 1; export it so")
    return name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), tuple(dims[1:])


def _in_graph_order(model: Any, tensors: Sequence[str]) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    made = [value.name for value in model.graph.input if value.name not in constants]
    made += [name for node in model.graph.node for name in node.output if name and node.op_type != "Constant"]
    wanted = dict.fromkeys(tensors)
    missing = [name for name in wanted if name not in set(made)]
    if missing:
        raise GraphError(
            f"{len(missing)} of {len(wanted)} tensors are no activations of the graph: {', '.join(missing[:5])}"
            f"{' ...' if len(missing) > 5 else ''}; take the names from this very graph"
        )
    return [name for name in made if name in wanted]


def _write_with_outputs(model: Any, outputs: Sequence[str], folder: Path) -> None:
    """Write ``model`` with these graph outputs, its weights in a file of their own; ``model`` stays as it is.

    Copying the model or serialising it as a whole would double or triple the memory of the weights.
    """
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name or "graph"
    for field in ("node", "input", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    # ONNX Runtime drops the nodes that none of the outputs needs.
    light.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    with (folder / _WEIGHTS).open("wb") as file:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) > _INLINE:
                light.graph.initializer.append(_moved_out(tensor, file))
            else:
                light.graph.initializer.append(tensor)
    (folder / _GRAPH).write_bytes(light.SerializeToString())


def _moved_out(tensor: Any, file: BinaryIO) -> Any:
    import onnx

    file.write(bytes(-file.tell() % _ALIGNMENT))
    place = {"location": _WEIGHTS, "offset": str(file.tell()), "length": str(len(tensor.raw_data))}
    file.write(tensor.raw_data)
    stub = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = onnx.TensorProto.EXTERNAL
    for key, value in place.items():
        stub.external_data.add(key=key, value=value)
    return stub


def _open(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Memory patterns make every thread reserve the outputs of a whole run a second time.
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise GraphError(f"ONNX Runtime does not accept the graph ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
