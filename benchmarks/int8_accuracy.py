"""INT8 accuracy on the shipped model: every calibration method, what each step of ours adds, and the peers.

    python benchmarks/int8_accuracy.py [--modelopt PYTHON] [--json FILE]

All graphs run in ONNX Runtime with its optimisations off, so that each Q/DQ pair is computed as it is written, on the
same 10,000 test images, and are compared with the float32 graph: top-1, images whose top-1 agrees, SQNR of the logits.
Peers get the same 512 calibration images and the same float graph: ONNX Runtime's ``quantize_static`` (QDQ, symmetric,
per-channel) and, with ``--modelopt`` (the Python of a venv with nvidia-modelopt[onnx]), NVIDIA ModelOpt.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime import quantization as ortq
from rich import box
from rich.console import Console
from rich.table import Table

from calibration.onnx_index import Index
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors
from engine_build.graph import equalise
from engine_build.graph.export import export_torch
from engine_build.graph.passes import prepare
from engine_build.network.weights import load_weights
from engine_build.network.zoo import find_model
from engine_build.precision.casts import to_precision
from engine_build.quantise.qdq import Placement, insert_qdq, layer_scales
from engine_build.quantise.rounding import IMAGES, round_layers
from infer.backends.base import Outputs
from infer.datasets import open_dataset
from infer.pipeline.host import load_batches
from infer.sources import iter_records
from infer.terminal import progress
from infer.verify.accuracy import Tally

MODEL = "iresnet50_fashion"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mse": ("mse", {}),
    "percentile 99.99": ("percentile", {"percentile": 99.99}),
    "percentile 99.999": ("percentile", {"percentile": 99.999}),
    "min-max": ("minmax", {}),
    "entropy": ("entropy", {}),
}
PLACEMENTS = {
    "no whole-range shift": Placement(shift=False),
    "largest-weight scales": Placement(weights="max"),
    "shortcut input of additions": Placement("identity"),
    "both inputs of additions": Placement("both"),
}
SEEDS = 3
Graph = onnx.ModelProto


class Reader(ortq.CalibrationDataReader):
    """Feeds the calibration images to ONNX Runtime's quantiser."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.batches = iter([{"images": images[i : i + 32]} for i in range(0, len(images), 32)])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        return next(self.batches, None)


def prepared(streams: bool) -> Graph:
    """The float graph of the shipped model, with or without equalised streams."""
    row = find_model(MODEL)
    graph, reference = export_torch(load_weights(row).model, row.preprocessing)
    original = equalise.EXPONENT
    equalise.EXPONENT = original if streams else 0.0
    try:
        prepare(graph, row.preprocessing, row.num_classes, reference)
    finally:
        equalise.EXPONENT = original
    return graph


def ours(calibration: NDArray[np.uint8]) -> Iterator[tuple[str, Callable[[], Graph]]]:
    """Rows of this project: methods, then the default with one thing changed."""
    graph, plain = prepared(True), prepared(False)
    statistics = collect(graph, [calibration], activation_tensors(graph, "both"))
    steps = activation_steps(graph)

    def made(
        amax: dict[str, float],
        placement: Placement | None = None,
        seed: int | None = 0,
        safe: bool = True,
        source: Graph = graph,
    ) -> Callable[[], Graph]:
        def make() -> Graph:
            placed, weights = placement or Placement(), {}
            if seed is not None:
                chosen = calibration[np.sort(np.random.default_rng(seed).permutation(len(calibration))[:IMAGES])]
                scales = layer_scales(Index(source), amax, placed)
                weights = round_layers(source, chosen, scales, method=placed.weights, pair_safe=safe).weights
            return insert_qdq(source, amax, placed, pair_safe=safe, rounded=weights)[0]

        return make  # fmt: skip

    for name, (method, parameters) in METHODS.items():
        default = " (default)" if name == "mse" else ""
        yield f"ours, {name}{default}", made(statistics.amax(method, steps, **parameters))
    amax = statistics.amax("mse", steps)
    yield "ours, the rest in float16", lambda: to_precision(made(amax)(), "int8")
    for seed in range(1, SEEDS):
        yield f"ours, other images for the weights ({seed})", made(amax, seed=seed)
    yield "ours, weights to nearest", made(amax, seed=None)
    yield "ours, pairs may saturate", made(amax, safe=False)
    yield "ours, weights to nearest, pairs may saturate", made(amax, seed=None, safe=False)
    for name, placement in PLACEMENTS.items():
        yield f"ours, {name}", made(statistics.amax("mse", steps if placement.shift else None), placement)
    unequal = collect(plain, [calibration], activation_tensors(plain)).amax("mse", steps)
    yield "ours, streams not equalised", made(unequal, source=plain)


def onnxruntime_rows(calibration: NDArray[np.uint8], folder: Path) -> Iterator[tuple[str, Callable[[], Graph]]]:
    """ONNX Runtime's static quantisation of the same float graph."""
    source = folder / "float.onnx"
    onnx.save(prepared(False), source)
    for name, method, options in (
        ("min-max", ortq.CalibrationMethod.MinMax, {}),
        ("percentile 99.99", ortq.CalibrationMethod.Percentile, {"CalibPercentile": 99.99}),
        ("entropy", ortq.CalibrationMethod.Entropy, {}),
    ):

        def make(method: Any = method, options: dict[str, Any] = options, name: str = name) -> Graph:
            target = folder / f"ort-{name}.onnx"
            ortq.quantize_static(
                source,
                target,
                Reader(calibration),
                quant_format=ortq.QuantFormat.QDQ,
                per_channel=True,
                activation_type=ortq.QuantType.QInt8,
                weight_type=ortq.QuantType.QInt8,
                calibrate_method=method,
                op_types_to_quantize=["Conv", "Gemm", "Add"],
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, **options},
            )
            return onnx.load(target)

        yield f"ONNX Runtime, {name}", make


def modelopt_rows(
    python: str, calibration: NDArray[np.uint8], folder: Path
) -> Iterator[tuple[str, Callable[[], Graph]]]:
    """ModelOpt's ONNX PTQ of the same float graph, run by the Python of its own venv."""
    source, data = folder / "float.onnx", folder / "calibration.npy"
    np.save(data, calibration)
    for method in ("max", "entropy"):

        def make(method: str = method) -> Graph:
            target = folder / f"modelopt-{method}.onnx"
            code = (
                "import sys, numpy as np; from modelopt.onnx.quantization import quantize\n"
                "source, data, target, method = sys.argv[1:]\n"
                "quantize(source, quantize_mode='int8', calibration_data={'images': np.load(data)},\n"
                "         calibration_method=method, output_path=target, high_precision_dtype='fp32',\n"
                "         calibration_eps=['cpu'])\n"
            )
            subprocess.run([python, "-c", code, source, data, target, method], check=True, capture_output=True)
            return onnx.load(target)

        yield f"ModelOpt, {method}", make


def run(graph: Graph, images: NDArray[np.uint8]) -> list[Outputs]:
    """Outputs of the graph exactly as written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = ["logits", "scores", "classes"]
    return [Outputs(*session.run(names, {"images": images[i : i + 100]})) for i in range(0, len(images), 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelopt", metavar="PYTHON", help="interpreter that has nvidia-modelopt[onnx]")
    parser.add_argument("--limit", type=int, default=10_000, help="test images")
    parser.add_argument("--only", metavar="TEXT", default="", help="rows whose name contains this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)

    row = find_model(MODEL)
    assert row.shipped is not None
    spec, shipped = row.preprocessing, row.shipped
    labels = (shipped / "labels.txt").read_text().splitlines()
    dataset = open_dataset([shipped / "test.tar.gz"], labels, limit=args.limit)
    images = np.concatenate([batch.images for batch, _ in dataset.batches(spec, 500)])
    records = iter_records([shipped / "calibration.tar.gz"])
    calibration = np.concatenate([batch.images for batch in load_batches(records, spec, 128)])
    reference = run(prepared(False), images)

    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        makers = [*ours(calibration), *onnxruntime_rows(calibration, folder)]
        makers += modelopt_rows(args.modelopt, calibration, folder) if args.modelopt else []
        makers = [(title, make) for title, make in makers if args.only in title]
        with progress("graphs", len(makers)) as advance:
            for title, make in makers:
                tally = Tally()
                for at, (found, expected) in enumerate(zip(run(make(), images), reference, strict=True)):
                    tally.add(found, dataset.targets[100 * at : 100 * at + len(found.classes)], expected)
                rows[title] = tally.to_json()
                advance(1)
    table = Table(title=f"{MODEL}, {len(images)} test images, {len(calibration)} calibration images", box=box.SIMPLE)
    for head in ("graph", "top-1 %", "drop", "agree %", "SQNR dB"):
        table.add_column(head, justify="left" if head == "graph" else "right")
    for title, found in rows.items():
        drop = found["reference_top1"] - found["top1"]
        table.add_row(
            title, f"{found['top1']:.2f}", f"{drop:+.2f}", f"{found['agreement']:.2f}", f"{found['sqnr_db']:.1f}"
        )
    Console(width=100).print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
