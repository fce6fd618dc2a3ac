"""Which layers should leave int8 first: the trade-off curves of several orders, on the shipped model's test images.

    python benchmarks/auto_order.py [--limit 10000] [--json FILE]

Orders compared, each from calibration images: by the error that a layer makes when it alone is rounded (what
PRECISION=auto uses), from 16, 32 and 256 images; by what un-rounding a layer gains while all others are int8; from the
input on; and by chance. Each trial is the graph that would be shipped, run by OpenVINO (ONNX Runtime where that is
missing). Also printed: how well two disjoint sets of images agree on an order, and whether errors add up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from calibration.request import Request
from calibration.sensitivity import logit_errors, roundings
from engine_build.precision.casts import to_precision
from engine_build.quantise.auto import order, tied_layers
from engine_build.quantise.budget import Budget, LossMeter
from engine_build.quantise.int8 import Int8Graph, Int8Options, quantise
from engine_build.quantise.qdq import insert_qdq
from engine_build.source import Source, SourceOptions, Steps, load_source
from infer.datasets import open_dataset
from infer.pipeline.host import load_batches
from infer.sources import iter_records

MODEL = "iresnet50_fashion"
KEPT = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
RANKING = (16, 32, 64, 128, 256)

Errors = Mapping[str, float]


def gains(source: Source, int8: Int8Graph, images: NDArray[np.uint8]) -> dict[str, float]:
    """How much less the logits' squared error is with one layer out of int8 and all others in it."""
    expected = logits(source.graph, images)
    layers = [*int8.quantised.nodes, *int8.quantised.additions]

    def error(exclude: Sequence[str]) -> float:
        graph = (
            insert_qdq(source.graph, int8.cache.amax(), exclude=exclude, rounded=int8.rounded.weights)[0]
            if exclude
            else int8.graph
        )
        return float(((logits(graph, images) - expected) ** 2).mean())

    everything = error(())
    return {name: everything - error((name,)) for name in layers}


def logits(graph: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Float64 ``[N, C]``, each node computed as it is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"images": images[at : at + 32]})[0] for at in range(0, len(images), 32)]
    return np.concatenate(parts).astype(np.float64)


def rank_correlation(one: Errors, other: Errors) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort([errors[name] for name in one])) for errors in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=10_000, help="test images a trial")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=140)

    source = load_source(SourceOptions(MODEL, offline=True), Steps())
    shipped = source.row.shipped if source.row else None
    assert shipped is not None
    with tempfile.TemporaryDirectory() as folder:
        options = Int8Options(calibration=Request((str(shipped / "calibration.tar.gz"),)))
        int8 = quantise(source, options, Path(folder) / "cache", "benchmark", console.print)
    parts = load_batches(iter_records([shipped / "calibration.tar.gz"]), source.spec, 64)
    images = np.concatenate([batch.images for batch in parts])
    orders, result = ranked(source, int8, images, console)

    labels = (shipped / "labels.txt").read_text(encoding="utf-8").splitlines()
    dataset = open_dataset([shipped / "test.tar.gz"], labels, limit=arguments.limit)
    loaded = list(dataset.batches(source.spec, 100, strict=True))
    tested = np.concatenate([batch.images for batch, _ in loaded])
    budget = Budget(tested, np.concatenate([targets for _, targets in loaded]), "test.tar.gz")
    result |= {"images": len(tested), **curves(source, int8, budget, orders)}
    print_curves(result, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


def ranked(
    source: Source, int8: Int8Graph, images: NDArray[np.uint8], console: Console
) -> tuple[dict[str, list[tuple[str, ...]]], dict[str, Any]]:
    """The orders by name, and how far they can be relied on."""
    layers = [*int8.quantised.nodes, *int8.quantised.additions]
    given = roundings(int8.graph, int8.quantised.tensors, layers)
    halves = (images[:256], images[256:512])
    alone = {
        (count, number): logit_errors(source.graph, given, half[:count])
        for count in RANKING
        for number, half in enumerate(halves)
    }
    gain = [gains(source, int8, half) for half in halves]
    stability = {("alone", count): rank_correlation(alone[count, 0], alone[count, 1]) for count in RANKING}
    stability["gain", 256] = rank_correlation(*gain)
    table = Table(title="Orders from two disjoint sets of images", box=box.SIMPLE)
    for head in ("order", "images", "rank correlation"):
        table.add_column(head)
    for (name, count), value in stability.items():
        table.add_row(name, str(count), f"{value:.2f}")
    console.print(table)

    both = logits(int8.graph, halves[0]) - logits(source.graph, halves[0])
    ratio = sum(alone[256, 0].values()) / float((both**2).mean())
    console.print(f"sum of the errors of single layers / error of all together: {ratio:.3f}")
    shares = alone[256, 0]
    worst = sorted(layers, key=lambda name: -shares[name])[:12]
    listing = ", ".join(f"{name} {100 * shares[name] / sum(shares.values()):.1f} %" for name in worst)
    console.print(f"largest shares: {listing}", soft_wrap=True)

    units = tied_layers(source.graph, int8)
    shuffled = [units[at] for at in np.random.default_rng(0).permutation(len(units))]
    orders = {f"alone, {count} images": order(units, alone[count, 0]) for count in (16, 32, 256)}
    orders |= {"gain, 256 images": order(units, gain[0]), "from the input": units, "by chance": shuffled}
    named = {f"{name} {count}": value for (name, count), value in stability.items()}
    return orders, {"stability": named, "sum_over_whole": ratio, "shares": shares}


def curves(
    source: Source, int8: Int8Graph, budget: Budget, orders: Mapping[str, Sequence[tuple[str, ...]]]
) -> dict[str, Any]:
    """The loss after so many steps of each order, and with all in fp16."""
    known: dict[frozenset[str], dict[str, Any]] = {}
    with LossMeter(source.graph, budget) as meter:
        found = {
            name: [
                trial(source, int8, meter, tuple(layer for unit in ordered[:count] for layer in unit), known)
                for count in KEPT
            ]
            for name, ordered in orders.items()
        }
        floating = meter.measure(to_precision(source.graph, "fp16"), "fp16", 0).to_json()
    return {"engine": meter.engine, "curves": found, "fp16": floating}


def print_curves(result: Mapping[str, Any], console: Console) -> None:
    """Two tables: SQNR, and images that disagree with FP32."""
    for title, figure in (("SQNR of the logits, dB", "sqnr_db"), ("images that disagree with FP32", "agreement")):
        table = Table(title=f"{title}; {result['images']} test images, {result['engine']}", box=box.SIMPLE)
        table.add_column("steps of the order", no_wrap=True)
        for head in (*map(str, KEPT), "all fp16"):
            table.add_column(head, justify="right", no_wrap=True)
        for name, points in result["curves"].items():
            cells = [_cell(point[figure], figure, result["images"]) for point in [*points, result["fp16"]]]
            table.add_row(name, *cells)
        console.print(table)


def trial(
    source: Source,
    int8: Int8Graph,
    meter: LossMeter,
    kept: tuple[str, ...],
    known: dict[frozenset[str], dict[str, Any]],
) -> dict[str, Any]:
    """The loss with ``kept`` out of int8; each set of layers is measured once."""
    key = frozenset(kept)
    if key not in known:
        graph = (
            insert_qdq(source.graph, int8.cache.amax(), exclude=kept, rounded=int8.rounded.weights)[0]
            if kept
            else int8.graph
        )
        known[key] = meter.measure(to_precision(graph, "int8"), "int8", len(kept)).to_json()
    return known[key]


def _cell(value: float, kind: str, images: int) -> str:
    return f"{value:.1f}" if kind == "sqnr_db" else f"{round((100 - value) * images / 100)}"


if __name__ == "__main__":
    main()
