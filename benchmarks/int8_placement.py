"""Where Q/DQ pairs should stand: what the TensorRT-RTX builder and OpenVINO make of each placement.

    python benchmarks/int8_placement.py [--model iresnet50] [--json FILE]

For every placement: kernels, int8 layers, reformats, scratch memory and estimated DRAM traffic of the TensorRT-RTX
plan; precision, layers and images/s of OpenVINO (batch 8, all cores, interleaved rounds, medians). The network has
random weights with realistic statistics: what is placed where does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from rich import box
from rich.console import Console
from rich.table import Table

from calibration.onnx_index import Index
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors, quantisable_nodes
from engine_build.graph.export import export_torch
from engine_build.graph.passes import prepare
from engine_build.network.weights import random_weights
from engine_build.network.zoo import find_model
from engine_build.precision.casts import to_precision
from engine_build.quantise.qdq import Placement, insert_qdq
from engine_build.synthetic import synthetic_images
from engine_build.targets.openvino import audit_runtime
from engine_build.targets.tensorrt import BatchProfile, PlanRequest, build_plan
from infer.backends.openvino import OpenVINOBackend

Graph = onnx.ModelProto


def more_pairs(graph: Graph, tensors: list[str], amax: dict[str, float]) -> Graph:
    """Put a Q/DQ pair on each tensor for all of its readers, besides what is there."""
    work = Graph()
    work.CopyFrom(graph)
    index = Index(work)
    nodes = list(work.graph.node)
    for tensor in tensors:
        scale = index.set_constant(f"{tensor}.more.scale", np.array(np.float16(amax[tensor] / 127), np.float32))
        q, dq = f"{tensor}.more.int8", f"{tensor}.more.dequantised"
        readers = [n for n in index.consumers.get(tensor, []) if n.op_type != "QuantizeLinear"]
        for node in readers:
            for position, name in enumerate(node.input):
                if name == tensor:
                    node.input[position] = dq
        at = 1 + next(i for i, node in enumerate(nodes) if tensor in node.output)
        nodes[at:at] = [
            helper.make_node("QuantizeLinear", [tensor, scale, "quantise.zero"], [q], f"{tensor}.more.q"),
            helper.make_node("DequantizeLinear", [q, scale, "quantise.zero"], [dq], f"{tensor}.more.dq"),
        ]
    index.set_nodes(nodes)
    return work


def inputs_of(graph: Graph, kind: str) -> list[str]:
    """The tensors that nodes of one type read."""
    return list(dict.fromkeys(node.input[0] for node in graph.graph.node if node.op_type == kind))


def variants(graph: Graph, amax: dict[str, float]) -> dict[str, Callable[[], Graph]]:
    """Name to a function that makes the quantised float32 graph."""

    def placed(placement: Placement) -> Graph:
        return insert_qdq(graph, amax, placement)[0]

    def plain() -> Graph:
        return placed(Placement(shift=False))

    return {
        "no addition (default)": lambda: placed(Placement()),
        "no addition, plain int8 range": plain,
        "shortcut input of additions": lambda: placed(Placement("identity")),
        "both inputs of additions": lambda: placed(Placement("both")),
        "before bn0": lambda: more_pairs(plain(), inputs_of(plain(), "BatchNormalization"), amax),
        "max-pools in floating point": lambda: placed(Placement(pool=False)),
        "before average pool": lambda: more_pairs(plain(), inputs_of(plain(), "GlobalAveragePool"), amax),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iresnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    row = find_model(args.model)
    weights = random_weights(row)
    graph, reference = export_torch(weights.model, row.preprocessing)
    prepare(graph, row.preprocessing, row.num_classes, reference)
    images = synthetic_images(16, row.preprocessing.crop, seed=3)
    extra = [t for kind in ("BatchNormalization", "GlobalAveragePool") for t in inputs_of(graph, kind)]
    tensors = list(dict.fromkeys([*activation_tensors(graph, "both"), *extra]))
    amax = collect(graph, [images], tensors).amax("mse", activation_steps(graph))
    layers = [node.name for node in quantisable_nodes(Index(graph))]

    rows: dict[str, dict[str, float]] = {}
    backends: dict[tuple[str, str], OpenVINOBackend] = {}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Graph] = {name: to_precision(make(), "int8") for name, make in variants(graph, amax).items()}
        files["fp16"], files["fp32"] = to_precision(graph, "fp16"), graph
        for number, (name, typed) in enumerate(files.items()):
            path = Path(folder) / f"{number}.onnx"
            onnx.save(typed, path)
            request = PlanRequest(path, path.with_suffix(".plan"), BatchProfile(1, 32, 128))
            audit = build_plan("tensorrt_rtx", request, False).audit
            summary = audit.summary()
            rows[name] = {
                "rtx_kernels": summary.kernels,
                "rtx_int8_layers": sum(audit.node_precisions.get(layer) == "int8" for layer in layers),
                "rtx_reformats": summary.reformats,
                "rtx_activation_mib": (summary.activation_bytes or 0) / 2**20,
                "rtx_dram_mib": summary.dram_bytes_per_image / 2**20,
            }
            for hint in ("f32", "bf16"):
                backends[name, hint] = OpenVINOBackend(path, {"INFERENCE_PRECISION_HINT": hint})
            runtime = audit_runtime(backends[name, "f32"].runtime_model(), 0).summary
            rows[name]["openvino_layers"] = runtime.layers
            rows[name]["openvino_int8"] = runtime.mac_precisions.get("int8", 0)
        rates: dict[tuple[str, str], list[float]] = {key: [] for key in backends}
        for _ in range(args.rounds):
            for key, backend in backends.items():
                rates[key].append(rate(backend, images[:8], args.seconds))
        for (name, hint), values in rates.items():
            rows[name][f"openvino_{hint}_images_s"] = statistics.median(values)
    show(args.model, rows, len(layers))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def rate(backend: OpenVINOBackend, batch: np.ndarray, seconds: float) -> float:
    """Images a second with every stream busy."""
    backend.infer(batch)
    started = time.perf_counter()
    pending = [backend.submit(batch) for _ in range(backend.in_flight)]
    done = 0
    while time.perf_counter() - started < seconds:
        pending.pop(0).result()
        done += len(batch)
        pending.append(backend.submit(batch))
    elapsed = time.perf_counter() - started
    for future in pending:
        future.result()
    return done / elapsed


def show(model: str, rows: dict[str, dict[str, float]], layers: int) -> None:
    table = Table(title=f"{model}: {layers} convolutions and products", box=box.SIMPLE)
    heads = list(next(iter(rows.values())))
    table.add_column("placement")
    for head in heads:
        table.add_column(head.replace("_", " "), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[head]:.0f}" for head in heads))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
