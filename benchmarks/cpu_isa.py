"""One int8 bundle under every instruction set that this machine can show: is OpenVINO right with each?

The shipped model's int8 graph runs over the test set in ONNX Runtime as it is written, and in OpenVINO once for each
instruction set, in a process of its own with ``ONEDNN_MAX_CPU_ISA``. What this machine lacks is "not measured".

    python benchmarks/cpu_isa.py [--limit 10000] [--bundle engines/iresnet50_fashion-int8] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from engine_build.build_bundle import BuildOptions, build
from engine_build.checks.as_written import as_written
from engine_build.graph.reference import graph_logits
from engine_build.network.zoo import find_model
from engine_build.source import SourceOptions, Steps, load_source
from infer.backends.openvino import OpenVINOBackend
from infer.bundle import GRAPH, find_plan, read_manifest
from infer.checks.sqnr import agreement
from infer.datasets import open_dataset

MODEL = "iresnet50_fashion"
#: What is allowed, as oneDNN calls it, and the instruction set that OpenVINO then reports of its int8 kernels.
LIMITS = {
    "AVX2": "avx2", "AVX2_VNNI": "avx2_vnni", "AVX512_CORE": "avx512", "AVX512_CORE_VNNI": "avx512_vnni",
    "AVX512_CORE_AMX": "amx",
}  # fmt: skip
BAR = 0.3  # dB between OpenVINO and the graph as it is written


def run_openvino(bundle: Path, images: Path, result: Path) -> None:
    """Write OpenVINO's logits to ``result``, and print the instruction set of its kernels."""
    plan = find_plan(bundle, read_manifest(bundle), "openvino")
    backend = OpenVINOBackend(bundle / plan.files[0].file, plan.options)
    data = np.load(images, mmap_mode="r")
    step = backend.max_batch
    futures = (backend.submit(np.ascontiguousarray(data[at : at + step])) for at in range(0, len(data), step))
    np.save(result, np.concatenate([future.result().logits for future in futures]))
    print(json.dumps({"instruction_set": backend.instruction_set}))
    backend.close()


def under(limit: str, bundle: Path, folder: Path) -> tuple[str, NDArray[np.float32]]:
    """The instruction set and the logits of OpenVINO with at most ``limit``, empty for all that there is."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("DNN_MAX_CPU_ISA")}
    environment |= {"ONEDNN_MAX_CPU_ISA": limit} if limit else {}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, __file__, "--child", str(bundle), str(folder / "images.npy"), str(folder / "out.npy")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["instruction_set"], np.load(folder / "out.npy")


def sqnr(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Of the logits as they are, in dB, as ``verify`` has it."""
    noise = float(((found.astype(np.float64) - expected) ** 2).sum())
    return 10 * float(np.log10((expected.astype(np.float64) ** 2).sum() / noise))


def in_parts(logits: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits of all images, some at a time."""
    return np.concatenate([logits(images[at : at + 100]) for at in range(0, len(images), 100)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=10_000, help="test images")
    parser.add_argument("--bundle", type=Path, help="int8 bundle of the shipped model; None builds one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_openvino(*args.child)
        return
    row = find_model(MODEL)
    assert row.shipped is not None
    labels = (row.shipped / "labels.txt").read_text().splitlines()
    dataset = open_dataset([row.shipped / "test.tar.gz"], labels, limit=args.limit)
    images = np.concatenate([batch.images for batch, _ in dataset.batches(row.preprocessing, 500)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", images)
        bundle = args.bundle
        if bundle is None:
            options = BuildOptions(
                MODEL, precision="int8", targets=("openvino",), output=folder / "bundle", offline=True
            )
            bundle, _ = build(options)
        source = load_source(SourceOptions(MODEL, offline=True), Steps())
        expected = in_parts(graph_logits(source.graph, source.spec), images)
        written = in_parts(as_written(onnx.load(bundle / GRAPH)), images)
        rows = [_row("ONNX Runtime, as written", "", written, expected, written, dataset.targets)]
        for limit, wanted in ({"": ""} | LIMITS).items():
            try:
                instructions, logits = under(limit, bundle, folder)
            except subprocess.CalledProcessError:
                instructions, logits = "", written[:0]
            title = f"OpenVINO, {limit or 'no limit'}"
            if wanted not in ("", instructions) or not len(logits):
                rows.append({"run": title, "instruction_set": wanted})
                continue
            rows.append(_row(title, instructions, logits, expected, written, dataset.targets))
    _print(rows, len(images), read_manifest(bundle).pair_safe if args.bundle else True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def _row(
    title: str,
    instructions: str,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    written: NDArray[np.float32],
    targets: NDArray[np.int64],
) -> dict[str, Any]:
    found, own = sqnr(logits, expected), sqnr(written, expected)
    return {
        "run": title, "instruction_set": instructions, "top1": 100 * float((logits.argmax(1) == targets).mean()),
        "agreement": agreement(logits, expected), "sqnr_db": found, "difference_db": found - own,
    }  # fmt: skip


def _print(rows: list[dict[str, Any]], images: int, pair_safe: bool) -> None:
    title = f"{MODEL} int8, {images} test images, weights {'cannot' if pair_safe else 'CAN'} overflow in pairs"
    table = Table(title=title, box=box.SIMPLE)
    for head in ("run", "int8 kernels", "top-1 %", "agree %", "SQNR dB", "against as written, dB", f"within {BAR}"):
        table.add_column(head, justify="left" if head in ("run", "int8 kernels") else "right")
    for row in rows:
        if "sqnr_db" not in row:
            table.add_row(row["run"], row["instruction_set"], "not measured", "", "", "", "")
            continue
        table.add_row(
            row["run"], row["instruction_set"], f"{row['top1']:.2f}", f"{row['agreement']:.2f}",
            f"{row['sqnr_db']:.1f}", f"{row['difference_db']:+.2f}", "yes" if row["difference_db"] >= -BAR else "NO",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
