"""Do the known answers catch plans that compute something wrong, and do they let right ones pass?

    python benchmarks/known_answers.py [--width 1.0] [--openings 200] [--work FOLDER] [--json FILE]

Bundles of the shipped model and of iresnet101 with random weights are built. Faults are planted in one layer of the
int8 plan at a time: the plan is made again from a graph that was changed, the manifest gets its hash, and it is opened.
Then right bundles of every precision are opened over and over, with every instruction set that oneDNN can be held to.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.onnx_index import Index
from engine_build.checks.as_written import as_written
from infer.bundle import GRAPH, file_entry, read_manifest, write_manifest
from infer.checks.known_answers import read_answers
from infer.checks.passed import PASSES
from infer.checks.self_test import VARIABLE, check_plans
from infer.checks.sqnr import centred_sqnr
from infer.errors import KnownAnswersError
from infer.runner import open_bundle

SHIPPED, DEEP = "iresnet50_fashion", "iresnet101"
INSTRUCTION_SETS = ("", "AVX512_CORE_VNNI", "AVX512_CORE", "AVX2_VNNI", "AVX2")


class Layer:
    """A quantised convolution or product of a graph, with its weights and what restores its input."""

    def __init__(self, index: Index, node: onnx.NodeProto) -> None:
        self.index, self.node = index, node
        self.input = _behind_casts(index, node.input[0])
        self.weights = _behind_casts(index, node.input[1])

    @property
    def quantised(self) -> bool:
        """Whether both come from integers."""
        return all(node is not None and node.op_type == "DequantizeLinear" for node in (self.input, self.weights))

    def change(self, name: str, change: Callable[[Any], Any]) -> None:
        """Replace a constant, in its type."""
        old = self.index.value(name)
        self.index.set_constant(name, np.ascontiguousarray(change(old)).astype(old.dtype))


def _behind_casts(index: Index, name: str) -> Any:
    node = index.producer.get(name)
    while node is not None and node.op_type == "Cast":
        node = index.producer.get(node.input[0])
    return node


def layers(graph: onnx.ModelProto) -> list[Layer]:
    """The quantised layers, in graph order."""
    index = Index(graph)
    found = [Layer(index, node) for node in graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [layer for layer in found if layer.quantised]


def transposed_weight(layer: Layer) -> None:
    """The bytes of the weights in the order of their transpose."""
    layer.change(layer.weights.input[0], lambda w: np.swapaxes(w, 0, 1).copy().reshape(w.shape))


def stale_scale(layer: Layer) -> None:
    """The layer's input is restored with twice the scale that it was quantised with."""
    scale = layer.index.value(layer.input.input[1])
    layer.input.input[1] = layer.index.set_constant(f"{layer.node.name}.stale", (2 * scale).astype(scale.dtype))


def shifted_bias(layer: Layer) -> None:
    """Every bias is moved by the root mean square of all."""
    if len(layer.node.input) == 3:
        layer.change(layer.node.input[2], lambda b: b + np.sqrt(np.mean(b.astype(np.float64) ** 2)))


def saturation(layer: Layer) -> None:
    """Weights that fill the int8 range, in a kernel that adds neighbouring products in int16.

    What saturates depends on the input, which a graph cannot say: each pair is shrunk to what 255 times it can be.
    """
    fill_range(layer)

    def saturated(weights: Any) -> Any:
        paired = weights.astype(np.float64)
        even = paired.shape[1] // 2 * 2
        sums = np.abs(paired[:, 0:even:2] + paired[:, 1:even:2])
        paired[:, :even] *= np.repeat(np.minimum(1, 128 / np.maximum(sums, 1)), 2, axis=1)
        return paired.round()

    layer.change(layer.weights.input[0], saturated)


def fill_range(layer: Layer) -> None:
    """The largest weight of each channel becomes 127 and its scale smaller: nearly the same, no longer pair-safe."""
    weights = layer.index.value(layer.weights.input[0]).astype(np.float64)
    axis = next((item.i for item in layer.weights.attribute if item.name == "axis"), 1)
    others = tuple(at for at in range(weights.ndim) if at != axis)
    factor = 127 / np.maximum(np.abs(weights).max(axis=others), 1)
    shape = [-1 if at == axis else 1 for at in range(weights.ndim)]
    layer.change(layer.weights.input[0], lambda w: (w * factor.reshape(shape)).round())
    layer.change(layer.weights.input[1], lambda scale: scale / factor)


FAULTS: dict[str, Callable[[Layer], None]] = {
    "saturation": saturation, "transposed weight": transposed_weight, "stale scale": stale_scale,
    "shifted bias": shifted_bias,
}  # fmt: skip


def plant(bundle: Path, folder: Path, fault: Callable[[Layer], None], layer: int | None) -> None:
    """A copy of a bundle whose OpenVINO plan was made from a graph with ``fault`` in one layer, or in all."""
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("openvino.cache", PASSES), dirs_exist_ok=True)
    graph = onnx.load(bundle / GRAPH)
    for number, found in enumerate(layers(graph)):
        if layer in (None, number):
            fault(found)
    replace_plan(folder, graph)


def replace_plan(folder: Path, graph: onnx.ModelProto) -> None:
    """Make the OpenVINO plan of a bundle again from ``graph``, with its hash in the manifest."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        onnx.save(graph, Path(scratch) / GRAPH)
        model = openvino.Core().read_model(Path(scratch) / GRAPH)
        openvino.save_model(model, folder / "openvino.xml", compress_to_fp16=False)
    manifest = read_manifest(folder)
    (plan,) = manifest.plans
    plan.files = [file_entry(folder, entry.file) for entry in plan.files]
    write_manifest(folder, manifest)


def caught(folder: Path) -> str | None:
    """The message with which opening fails; None where it does not."""
    try:
        open_bundle(folder, target="openvino", allow_untrained=True).close()
    except KnownAnswersError as error:
        return str(error)
    return None


def build_all(work: Path, width: float) -> dict[str, Path]:
    """The right bundles, by name."""
    from engine_build.build_bundle import BuildOptions, build

    found = {}
    for model, options in ((SHIPPED, {}), (DEEP, {"width": None if width == 1 else width})):
        for precision in ("fp32", "fp16", "bf16", "int8", "auto"):
            folder = work / f"{model}-{precision}"
            if not folder.exists() and not (model == DEEP and precision == "auto"):
                print(f"building {folder.name}", flush=True)
                build(
                    BuildOptions(
                        model, precision=precision, output=folder, targets=("openvino",), offline=True, **options
                    )
                )  # type: ignore[arg-type]
            if folder.exists():
                found[folder.name] = folder
    return found


def plants(bundles: dict[str, Path], count: int) -> Iterator[dict[str, Any]]:
    """``count`` faults in layers drawn by chance, as many of each kind and in each model.

    Saturation in one layer alone often costs less than roundings do; then another layer is drawn, and ``passed_over``
    counts those. What it costs is ONNX Runtime's word, with the faulty graph as it is written, not that of the plan.
    """
    rng = np.random.default_rng(9)
    for number in range(count):
        model = (SHIPPED, DEEP)[number % 2]
        bundle = bundles[f"{model}-int8"]
        name = list(FAULTS)[number // 2 % len(FAULTS)]
        names = [layer.node.name for layer in layers(onnx.load(bundle / GRAPH))]
        drawn = [int(at) for at in rng.permutation(len(names))]
        passed_over = 0
        while name == "saturation" and answers_left(bundle, FAULTS[name], drawn[passed_over]) >= _floor(bundle):
            passed_over += 1
        at = drawn[passed_over]
        with tempfile.TemporaryDirectory() as scratch:
            plant(bundle, Path(scratch) / bundle.name, FAULTS[name], at)
            message = caught(Path(scratch) / bundle.name)
        yield {
            "model": model, "fault": name, "layer": names[at], "passed_over": passed_over,
            "caught": message is not None, "message": message and message.split("than its graph: ")[-1].split(". ")[0],
        }  # fmt: skip


def answers_left(bundle: Path, fault: Callable[[Layer], None], at: int) -> float:
    """SQNR in dB of the known answers with ``fault`` in layer ``at``, each node computed as it is written."""
    graph = onnx.load(bundle / GRAPH)
    fault(layers(graph)[at])
    answers = read_answers(bundle, read_manifest(bundle))
    found = as_written(graph)(answers.images)
    left = centred_sqnr(found, answers.logits)
    return np.inf if left is None else left


def saturating_kernels(bundles: dict[str, Path], work: Path, width: float) -> Iterator[dict[str, Any]]:
    """The real thing: a bundle whose int8 weights were chosen for TensorRT alone, given an OpenVINO plan of its graph,
    under AVX2 and under what the CPU likes best."""
    from engine_build.build_bundle import BuildOptions, build
    from engine_build.targets import why_unbuildable

    if (missing := why_unbuildable("tensorrt_rtx")) is not None:
        print(f"saturating kernels: left out, {missing}")
        return
    for model, own_width in ((SHIPPED, None), (DEEP, None if width == 1 else width)):
        folder = work / f"{model}-int8-unsafe"
        if not folder.exists():
            targets = ("tensorrt_rtx",)
            build(BuildOptions(model, precision="int8", output=folder, targets=targets, offline=True, width=own_width))
            manifest = read_manifest(folder)
            assert not manifest.pair_safe
            manifest.plans = read_manifest(bundles[f"{model}-int8"]).plans
            manifest.pair_safe = True  # a lie, or it would be refused before it is opened
            write_manifest(folder, manifest)
            replace_plan(folder, onnx.load(folder / GRAPH))
        for isa in ("", "AVX2"):
            yield {"model": model, "isa": isa or "best", **_in_process(folder, isa)[0]}


def openings(bundles: dict[str, Path], count: int) -> Iterator[dict[str, Any]]:
    """Right bundles opened ``count`` times in all, each checked at every batch size."""
    turns = [(name, isa) for isa in INSTRUCTION_SETS for name in bundles]
    for number in range(-(-count // len(turns))):
        for name, isa in turns[: count - number * len(turns)]:
            for report in _in_process(bundles[name], isa):
                yield {"bundle": name, "isa": isa or "best", "floor": _floor(bundles[name]), **report}


def _floor(folder: Path) -> float:
    answers = read_manifest(folder).known_answers
    assert answers is not None
    return answers.floor_db


def _in_process(folder: Path, isa: str) -> list[dict[str, Any]]:
    """What ``info --check`` would say in a process that may use no more than ``isa``."""
    environment = {**os.environ, VARIABLE: "always", **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
    command = [sys.executable, __file__, "--check", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0, help="of iresnet101")
    parser.add_argument("--plants", type=int, default=20)
    parser.add_argument("--openings", type=int, default=200)
    parser.add_argument("--work", type=Path, help="folder for the bundles; kept, and used again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        reports = check_plans(arguments.check, read_manifest(arguments.check))
        print(json.dumps([report.to_json() for report in reports]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        bundles = build_all(work, arguments.width)
        planted = list(_shown(plants(bundles, arguments.plants)))
        real = list(_shown(saturating_kernels(bundles, work, arguments.width)))
        opened = list(_shown(openings(bundles, arguments.openings), 10))
    alarms = [row for row in opened if row["error"]]
    worst: dict[str, float] = {}
    for row in opened:
        for checked in row["checked"]:
            over = (np.inf if checked["sqnr_db"] is None else checked["sqnr_db"]) - row["floor"]
            worst[row["bundle"]] = min(worst.get(row["bundle"], np.inf), over)
    print(f"planted {len(planted)}, caught {sum(row['caught'] for row in planted)}")
    print(f"opened {len(opened)} right bundles, false alarms {len(alarms)}")
    for name, over in worst.items():
        print(f"  {name}: at least {over:.1f} dB above its floor of {_floor_of(opened, name):.1f} dB")
    if arguments.json:
        arguments.json.write_text(json.dumps({"planted": planted, "saturating": real, "opened": opened}, indent=1))


def _floor_of(opened: list[dict[str, Any]], name: str) -> float:
    return float(next(row["floor"] for row in opened if row["bundle"] == name))


def _shown(rows: Iterator[dict[str, Any]], every: int = 1) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows):
        if number % every == 0:
            print({key: value for key, value in row.items() if key != "checked"}, flush=True)
        yield row


if __name__ == "__main__":
    main()
