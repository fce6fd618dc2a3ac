"""The OpenVINO target: the precision-typed graph as OpenVINO IR, and an audit of what this CPU runs of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine_build.targets.onnx_nodes import mac_results
from infer.backends.openvino import CACHE_FOLDER, MULTIPLYING, OpenVINOBackend, computes_in, make_core
from infer.backends.openvino_import import import_openvino
from infer.bundle import Plan, file_entry
from infer.bundle.build_record import Audit, AuditSummary
from infer.errors import BuildError, TargetUnavailableError

XML, BIN = "openvino.xml", "openvino.bin"
_NO_WORK = ("Input", "Output", "Const", "Constant", "Parameter", "Result")
# OpenVINO's reader splits a Conv or Gemm with a bias in two; its int8 passes put a factor behind a product.
_SPLIT_BIAS, _FACTOR = "/WithoutBiases", "/DequantizationMultiply"
_NAMES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
# What each precision asks of the plugin. A CPU without that arithmetic would emulate it slowly, so the hint is only
# given where the CPU has it; the audit says what then runs. For int8 it is about the rest of the graph: bfloat16 there
# is up to a fifth faster and costs 0.5 dB (docs/gates.md), so that a bundle would not be the same on every CPU.
_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32", "auto": "f32"}


def build_openvino(
    graph: Path, folder: Path, precision: str, int8_nodes: Sequence[str] = (), float32_nodes: Collection[str] = ()
) -> Plan:
    """Write ``openvino.xml`` and ``.bin`` into ``folder``, compile them once and read back what runs.

    Args:
        graph: the precision-typed ONNX graph.
        folder: the bundle under construction.
        precision: of the graph.
        int8_nodes: Conv, Gemm and MatMul nodes that must run in int8.
        float32_nodes: nodes whose floats must be float32.

    Raises:
        BuildError: OpenVINO refuses the graph, or runs one of ``int8_nodes`` in floating point.
    """
    import onnx

    started = time.monotonic()
    openvino = import_openvino()
    core = make_core()
    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        raise BuildError(f"OpenVINO cannot read {graph.name}: {str(error).strip().splitlines()[-1][:300]}") from error
    try:
        openvino.save_model(model, folder / XML, compress_to_fp16=False)
    except RuntimeError as error:  # iostream says nothing of the reason
        raise BuildError(
            f"OpenVINO cannot write {XML} below {folder.parent} ({str(error).strip().splitlines()[-1][:150]}); "
            "make room, or name another place"
        ) from error
    hint, notes = inference_precision(core, precision, float32_nodes)
    options = {"INFERENCE_PRECISION_HINT": hint}
    try:
        backend = OpenVINOBackend(folder / XML, options, folder / CACHE_FOLDER)
    except TargetUnavailableError as error:
        raise BuildError(str(error)) from error
    try:
        size = sum((folder / name).stat().st_size for name in (XML, BIN))
        audit = audit_runtime(backend.runtime_model(), size, mac_results(onnx.load(graph, load_external_data=False)))
        audit.summary.instruction_set = backend.instruction_set
    finally:
        backend.close()
    floating = [name for name in int8_nodes if audit.node_precisions.get(name) != "int8"]
    if floating:
        raise BuildError(
            f"openvino: {len(floating)} of {len(int8_nodes)} layers that should be int8 run in floating point: "
            f"{', '.join(floating[:5])}"
        )
    return Plan(
        target="openvino",
        files=[file_entry(folder, XML), file_entry(folder, BIN)],
        version=openvino.__version__.split("-")[0],
        audit=audit,
        options=options,
        seconds=time.monotonic() - started,
        notes=notes,
    )


def inference_precision(core: Any, precision: str, float32_nodes: Collection[str] = ()) -> tuple[str, list[str]]:
    """``(INFERENCE_PRECISION_HINT, notes)`` for a graph of ``precision`` on this CPU.

    With the hint f16 OpenVINO computes every node in float16, also those that are float32 in the graph. bfloat16 has
    the range of float32.
    """
    hint = _HINTS[precision]
    if hint == "f16" and float32_nodes:
        return "f32", [f"{len(float32_nodes)} nodes need float32, which OpenVINO then takes for all"]
    if computes_in(core, hint):
        return hint, []
    return "f32", [f"this CPU has no {precision} arithmetic: weights are {precision}, OpenVINO computes in float32"]


def audit_runtime(runtime: Any, engine_bytes: int, results: Mapping[str, str] | None = None) -> Audit:
    """Layers of a compiled model, without the layer list.

    OpenVINO notes beside each operation of the executable graph what it computes in (``runtimePrecision``) and with
    which primitive; the ONNX node is its ``originalLayersNames``. The last node of a graph goes by its output there:
    ``results`` has the node of each, see :func:`engine_build.targets.onnx_nodes.mac_results`.

    Small matrix products one behind the other become one ``Subgraph``. What it is said to compute in is what it
    writes; a product of it whose factors stand behind it (``DequantizationMultiply``) multiplies integers.
    """
    results = results or {}
    types: Counter[str] = Counter()
    precisions: Counter[str] = Counter()
    nodes: dict[str, str] = {}
    inner: dict[str, str] = {}
    primitives: Counter[str] = Counter()
    for op in runtime.get_ordered_ops():
        info = {key: str(value.astype(str)) for key, value in op.get_rt_info().items()}
        kind = info.get("layerType", op.get_type_name())
        if kind in _NO_WORK:
            continue
        precision = _NAMES.get(info.get("runtimePrecision", "?").lower(), info.get("runtimePrecision", "?"))
        types[kind] += 1
        precisions[precision] += 1
        parts = info.get("originalLayersNames", op.get_friendly_name()).split(",")
        if kind in MULTIPLYING:
            nodes[_node(parts[0], results)] = precision
            primitives[info.get("primitiveType", "?")] += 1
        elif kind == "Subgraph":
            found = dict.fromkeys(_node(part, results) for part in parts)
            integers = {_node(part, results) for part in parts if part.endswith(_FACTOR)}
            inner |= {name: "int8" if name in integers else precision for name in found if name in results.values()}
    nodes = inner | nodes  # a subgraph may hold the bias of a product that stands outside of it
    summary = AuditSummary(
        layers=types.total(),
        kernels=types.total(),
        layer_types=dict(types.most_common()),
        layer_precisions=dict(precisions.most_common()),
        reformats=types["Reorder"],
        mac_nodes=len(nodes),
        mac_precisions=dict(Counter(nodes.values()).most_common()),
        mac_primitives=dict(primitives.most_common()),
        engine_bytes=engine_bytes,
    )
    return Audit(summary=summary, node_precisions=nodes)


def _node(name: str, results: Mapping[str, str]) -> str:
    """The ONNX node of an operation of OpenVINO's."""
    name = name.removesuffix(_FACTOR).removesuffix(_SPLIT_BIAS)
    return results.get(name, name)
