"""TensorRT's ``Layers:`` listing, the text a builder prints at verbose level, read into layers of the audit.

With detailed profiling verbosity TensorRT 10, 11 and TensorRT-RTX print the layers of the finished plan as one log
message, one layer a line, without needing a GPU to load the plan again. The three differ in details: RTX prints
``Datatype: Int8`` and lists weights under ``Constants``; TensorRT 10 prints ``Format/Datatype: Half`` (older ones
``Row major linear FP32``), and describes a convolution's weights as ``Weights: {"Type": "Int8", "Count": 864}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from engine_build.targets.audit import NOT_FOUND, Kind, Layer, LayerTensor

LISTING = "Layers:"
"""First word of the log message that holds the listing."""

_DTYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "int4": "int4",
    "fp4": "fp4",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
    "bool": "bool",
}
_DTYPE = re.compile(r"\b(" + "|".join(_DTYPES) + r")\b", re.IGNORECASE)
_QUANTISED = {"int8", "fp8", "int4", "fp4"}
_RANK = {dtype: rank for rank, dtype in enumerate(("fp4", "int4", "int8", "fp8", "fp16", "bf16", "fp32"))}

_SECTION = re.compile(r", (Inputs|Constants|Outputs): \[")
_TENSOR = re.compile(r"\{ Name: (.*?)(?:, Location: \w+)?, Dimensions: \[([-\d,]*)\](.*?)\s?\}(?=, \{ Name: |\]|$)")
_WEIGHTS = re.compile(r'Weights: \{"Type": "(\w+)"')
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]?\[ONNX Layer: |\s*$)")
_WORDS = re.compile(r"[A-Z][a-z0-9]*")

# Names of fused kernels that the compiler generates spell their operations: __myl_CastMulMoveTran_myl0_1.
_GENERATED = re.compile(r"^__myl_([A-Za-z0-9]+)")
_SUFFIX = re.compile(r"_myl\d+_\d+$")
_MAC_WORDS = {"Corr", "Conv", "Fc", "Gemm", "Matm", "Dot"}
_MOVE_WORDS = {"Cast", "Move", "Tran", "Repl", "Conc", "Resh", "Slic", "Copy", "Sque", "Unsq"}
_MAC_TYPE = re.compile(r"correlation|conv|gemm|matrixmultiply|matmul|fullyconnected", re.IGNORECASE)
_MOVE_TYPES = {"reformat", "shuffle", "cast", "noop"}
_SYNC_TYPES = {"signal", "wait", "shape_call"}


def parse_layers(listing: str) -> tuple[Layer, ...]:
    """The layers of the log message ``listing``, in its order. Lines that describe no layer are skipped."""
    # Not splitlines(): TensorRT 10 separates fused nodes with \x1e, which that takes for the end of a line.
    lines = listing.partition("\nI/O Tensors:")[0].split("\n")
    return tuple(_parse_layer(line) for line in lines if line.startswith("Name: ") and ", LayerType: " in line)


def assign_nodes(layers: Sequence[Layer], nodes: Iterable[str]) -> dict[str, str]:
    """The precision of the kernel that runs each of ``nodes``, convolutions and matrix products by ONNX name.

    A kernel names every node of which it does a part: the pointwise kernel behind a convolution, which adds its bias,
    names it too. So only ``mac`` layers count, and a layer called after a node decides before one that merely lists
    it. If several remain, the least quantised decides. :data:`NOT_FOUND` where none does.
    """
    nodes = tuple(nodes)
    spelled: dict[str, list[str]] = {}
    for node in nodes:
        spelled.setdefault(_plain(node), []).append(node)
    mac_layers = [layer for layer in layers if layer.kind == "mac"]
    found: dict[str, set[str]] = {node: set() for node in nodes}
    unnamed = []
    for layer in mac_layers:
        own = [node for part in _name_parts(layer.name) for node in spelled.get(part, ())]
        for node in own:
            found[node].add(layer.precision)
        if not own:
            unnamed.append(layer)
    named = {node for node, precisions in found.items() if precisions}
    for layer in unnamed:
        for node in layer.nodes:
            if node in found and node not in named:
                found[node].add(layer.precision)
    return {node: _least_quantised(precisions) for node, precisions in found.items()}


def _parse_layer(line: str) -> Layer:
    head, *sections = _SECTION.split(line)
    name, _, layer_type = head.removeprefix("Name: ").partition(", LayerType: ")
    tensors: dict[str, tuple[LayerTensor, ...]] = {}
    for section, text in zip(sections[::2], sections[1::2], strict=True):
        tensors[section] = _parse_tensors(text)
    tail = line.rpartition(", Metadata: ")[2] if ", Metadata: " in line else ""
    kind = _kind(name, layer_type, line)
    inputs, constants, outputs = (tensors.get(section, ()) for section in ("Inputs", "Constants", "Outputs"))
    weights = _WEIGHTS.search(line)
    if kind == "mac":
        precision = _mac_precision(inputs, constants, _dtype(weights.group(1)) if weights else None)
    else:
        precision = outputs[0].dtype if outputs else "none"
    return Layer(name, layer_type, kind, precision, inputs, constants, outputs, tuple(_NODE.findall(tail)))


def _parse_tensors(text: str) -> tuple[LayerTensor, ...]:
    found = []
    for name, dims, rest in _TENSOR.findall(text):
        shape = tuple(int(size) for size in dims.split(",") if size)
        layout = re.search(r"Format: \((\w+)\)", rest)
        described = re.search(r"(?:Format/Datatype|Datatype): ([^,]*)", rest)
        found.append(
            LayerTensor(name, shape, _dtype(described.group(1) if described else ""), layout.group(1) if layout else "")
        )
    return tuple(found)


def _dtype(text: str) -> str:
    match = _DTYPE.search(text)
    return _DTYPES[match.group(1).lower()] if match else text.strip() or "unknown"


def _kind(name: str, layer_type: str, line: str) -> Kind:
    lowered = layer_type.lower()
    if lowered in _SYNC_TYPES:
        return "sync"
    if lowered in _MOVE_TYPES:
        return "move"
    if _MAC_TYPE.search(layer_type) or "ParameterType: Convolution" in line:
        return "mac"
    generated = _GENERATED.match(name)
    words = set(_WORDS.findall(generated.group(1))) if generated else set()
    if words & _MAC_WORDS:
        return "mac"
    return "move" if words and words <= _MOVE_WORDS else "other"


def _mac_precision(inputs: Sequence[LayerTensor], constants: Sequence[LayerTensor], weights: str | None) -> str:
    """The data type that a kernel multiplies in: quantised only if weights and an activation are.

    Weights are the constant with two or more real dimensions: biases, scales and alpha have at most one. Where
    no constant qualifies, the weights are computed by another kernel and arrive as an input.
    """
    activations = [tensor.dtype for tensor in inputs]
    if weights is None:
        matrices = [tensor for tensor in constants if sum(size > 1 for size in tensor.shape) >= 2]
        candidates = matrices or [tensor for tensor in constants if tensor.dtype in _QUANTISED]
        weights = max(candidates, key=lambda tensor: tensor.nbytes(1)).dtype if candidates else None
    if weights in _QUANTISED and weights in activations:
        return weights
    quantised = [dtype for dtype in activations if dtype in _QUANTISED]
    if weights is None and len(quantised) >= 2 and len(set(quantised)) == 1:
        return quantised[0]
    return next((dtype for dtype in (weights, *activations) if dtype and dtype not in _QUANTISED), "unknown")


def _name_parts(name: str) -> set[str]:
    """The node names a layer is called after: TensorRT 10 joins fused nodes with `` + ``, merged ones with `` || ``."""
    return {_plain(part) for part in re.split(r" \+ | \|\| ", _SUFFIX.sub("", name))}


def _plain(name: str) -> str:
    # The compiler of some versions writes dots of a node name as underscores in the name of the layer.
    return name.replace(".", "_")


def _least_quantised(precisions: set[str]) -> str:
    return max(precisions, key=lambda dtype: (_RANK.get(dtype, len(_RANK)), dtype), default=NOT_FOUND)
