"""What the gate on the typed graph says of right and wrong calibrations, and of a ruined graph.

    python benchmarks/gates.py [--model iresnet50_fashion] [--width W]

Every row quantises the model's float graph with other scales and passes it through
:class:`engine_build.checks.gates.Gates`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from rich import box
from rich.console import Console
from rich.table import Table

from calibration.cache import CalibrationCache
from calibration.choices import METHODS
from calibration.from_images import choose_images
from calibration.int8 import SYMMETRIC_STEPS
from calibration.request import Request
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors
from engine_build.checks.gates import Gates, gate_images
from engine_build.graph.gmac import count_gmac
from engine_build.precision.casts import to_precision
from engine_build.quantise.int8 import Int8Graph, Int8Options, quantise, with_images
from engine_build.quantise.qdq import insert_qdq
from engine_build.source import Source, SourceOptions, Steps, load_source
from infer.errors import AccuracyError
from infer.pipeline.host import load_batches

Row = tuple[str, onnx.ModelProto, Int8Graph]


def variants(source: Source, right: Int8Graph, images: NDArray[np.uint8]) -> Iterator[Row]:
    """Title, typed graph, and what the gate is told of it."""
    steps, tensors = activation_steps(source.graph), activation_tensors(source.graph)
    seen = collect(source.graph, [images], tensors)

    def of(title: str, amax: dict[str, float]) -> Row:
        scales = {name: np.float32(value / SYMMETRIC_STEPS) for name, value in amax.items()}
        graph, quantised = insert_qdq(source.graph, amax, pair_safe=True)
        made = replace(right, quantised=quantised, cache=CalibrationCache(scales, provenance=right.cache.provenance))
        return title, to_precision(graph, "int8"), made

    def on(title: str, other: NDArray[np.uint8]) -> Row:
        return of(title, collect(source.graph, [other], tensors).amax("mse", steps))

    for method in METHODS:
        yield of(method, seen.amax(method, steps))
    yield on("mse of 16 of the images", images[:: max(1, len(images) // 16)])
    yield on("mse of 1 image", images[:1])
    noise = np.random.default_rng(0).integers(0, 256, (128, *images.shape[1:])).astype(np.uint8)
    yield on("mse of noise", noise)
    yield on("mse of images 16 times too dark", images // 16)
    amax = seen.amax("mse", steps)
    for factor in (2.0, 4.0, 8.0, 0.5, 0.25):
        yield of(f"every scale x {factor:g}", {name: factor * value for name, value in amax.items()})
    names = list(amax)
    for at in (3, len(names) // 2, -2):
        yield of(f"scale of {names[at]} x 0.25", {**amax, names[at]: amax[names[at]] / 4})
    yield of(
        "every tensor has the next one's scale",
        dict(zip(names, [*list(amax.values())[1:], amax[names[0]]], strict=True)),
    )
    title, graph, made = of("mse, one bias turned around", amax)
    yield title, _ruined(graph), made


def _ruined(graph: onnx.ModelProto) -> onnx.ModelProto:
    ruined = onnx.ModelProto()
    ruined.CopyFrom(graph)
    biases = [tensor for tensor in ruined.graph.initializer if "bias" in tensor.name and len(tensor.dims) == 1]
    tensor = biases[len(biases) // 2]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), tensor.name))
    return ruined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="iresnet50_fashion")
    parser.add_argument("--width", type=float)
    args = parser.parse_args()
    source = load_source(SourceOptions(args.model, width=args.width, offline=True), Steps())
    request = with_images(source, Request((), limit=256))
    records = choose_images(request)
    images = np.concatenate([batch.images for batch in load_batches(records, source.spec, 64)])
    options = Int8Options(calibration=request, rounding="nearest")
    with TemporaryDirectory() as name:
        right = quantise(source, options, Path(name) / "cache", "benchmark", lambda line: None)
    looked_at = gate_images(source, options, count_gmac(source.graph))
    table = Table(title=f"{args.model}, int8, {looked_at.source}", box=box.SIMPLE)
    for head in ("calibration", "SQNR dB", "floor dB", "scales cost dB", "agree %", "verdict"):
        table.add_column(head, justify="left" if head in ("calibration", "verdict") else "right")
    for title, typed, made in variants(source, right, images):
        gates = Gates(source, "int8", looked_at)
        try:
            gates.graph(typed, made)
            verdict = "passed"
        except AccuracyError as error:
            verdict = str(error).split(":")[0]
        found, fit = gates.found, gates.scale_fit(made)
        assert found is not None
        sqnr = "equal" if found.sqnr_db is None else f"{found.sqnr_db:.1f}"
        cost = "" if fit is None else f"{fit.loss_db:.1f}"
        table.add_row(title, sqnr, f"{found.floor_db:.1f}", cost, f"{found.agreement:.1f}", verdict)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
