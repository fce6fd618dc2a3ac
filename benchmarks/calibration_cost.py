"""CPU time and memory of calibration, against the calibrators of ``onnxruntime.quantization``.

Runs each calibrator in a process of its own on one CPU, in turns, and prints medians and ratios. One CPU, because
ONNX Runtime's threads otherwise burn CPU time waiting for each other. The graph is iresnet50 with random weights;
every calibrator gets the same images one at a time. ONNX Runtime's run twice: on the tensors that ``quantize_static``
calibrates by default, and on exactly those that this project calibrates.

    python benchmarks/calibration_cost.py [--quick] [--limit 64] [--repeats 3] [--json out.json]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OURS = ("minmax", "all methods")
THEIRS = ("MinMax", "Entropy", "Percentile")
# What is compared, and the ratio that shall not be exceeded: CPU seconds, then peak memory.
GOALS = (("minmax", "MinMax", 0.5, None), ("all methods", "Entropy", 0.25, 0.1))


def main() -> None:
    """Parse the command line; without ``--child`` run every case as a child of this process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="8 images, once")
    parser.add_argument("--model", default="iresnet50")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("CASE", "TENSORS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        case, tensors, folder = options.child
        run_case(case, tensors, Path(folder))
        return
    images, repeats = (8, 1) if options.quick else (options.limit, options.repeats)
    with tempfile.TemporaryDirectory(prefix="calibration-cost-") as folder:
        call("prepare", f"{options.model}:{images}", folder)
        results = measure(folder, repeats)
    report = {
        "model": options.model, "images": images, "repeats": repeats,
        "machine": cpu_name(), "onnxruntime": version("onnxruntime"), "numpy": version("numpy"),
        "results": results, "ratios": ratios(results),
    }  # fmt: skip
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def measure(folder: str, repeats: int) -> list[dict[str, Any]]:
    """Every case ``repeats`` times, interleaved; medians of CPU seconds and wall seconds, and of peak MB."""
    cases = [(case, "same") for case in OURS] + [(case, kind) for kind in ("default", "same") for case in THEIRS]
    runs: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(repeats):
        for case in cases:
            runs[case].append(call(*case, folder))
    return [
        {"case": case, "tensors": kind}
        | {key: round(statistics.median(run[key] for run in found), 3) for key in ("cpu_s", "wall_s", "peak_mb")}
        | {"count": found[0]["count"], "runs": [run["cpu_s"] for run in found]}
        for (case, kind), found in runs.items()
    ]


def call(case: str, tensors: str, folder: str) -> dict[str, float]:
    """Run one case as a child; its whole cost counts, from the start of Python to the thresholds."""
    import time

    command = [sys.executable, __file__, "--child", case, tensors, folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        output = child.stdout.read().decode()
        # wait4 gives this child's own use of resources.
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{case} ({tensors}) failed:\n{output}")
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "wall_s": round(time.perf_counter() - start, 3),
        "peak_mb": round(used.ru_maxrss / 1024, 1),
        "count": int(output.split()[-1]),
    }


def run_case(case: str, tensors: str, folder: Path) -> None:
    """The child: one calibrator. Prints how many tensors it calibrated."""
    if case != "prepare" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if case == "prepare":
        print(prepare(tensors, folder))
    elif case in OURS:
        print(run_ours(case, folder))
    else:
        print(run_theirs(case, tensors, folder))


def prepare(what: str, folder: Path) -> int:
    """Write the graph, the images and the names of the tensors."""
    import numpy as np
    import onnx

    from calibration.tensors import activation_tensors
    from engine_build.graph import passes
    from engine_build.graph.export import export_torch
    from engine_build.network.weights import random_weights
    from engine_build.network.zoo import find_model
    from engine_build.synthetic import synthetic_images

    model, images = what.split(":")
    row = find_model(model)
    exported, reference = export_torch(random_weights(row).model, row.preprocessing)
    passes.prepare(exported, row.preprocessing, row.num_classes, reference)
    onnx.save(exported, folder / "graph.onnx")
    np.save(folder / "images.npy", synthetic_images(int(images), row.preprocessing.crop))
    names = activation_tensors(exported)
    (folder / "tensors.json").write_text(json.dumps(names))
    return len(names)


def read_images(folder: Path) -> Iterator[Any]:
    """The images one at a time, ``[1, H, W, 3]``."""
    import numpy as np

    images = np.load(folder / "images.npy", mmap_mode="r")
    return (np.array(images[index : index + 1]) for index in range(len(images)))


def run_ours(case: str, folder: Path) -> int:
    """One pass, then the ranges by one method or by all."""
    from calibration.streaming import collect

    names = json.loads((folder / "tensors.json").read_text())
    everything = case == "all methods"
    statistics = collect(folder / "graph.onnx", read_images(folder), names, histograms=everything)
    for method in ("minmax", "percentile", "entropy", "mse") if everything else ("minmax",):
        statistics.scales(method)
    return len(statistics.tensors)


def run_theirs(case: str, tensors: str, folder: Path) -> int:
    """One of ONNX Runtime's calibrators with its own defaults, symmetric."""
    from onnxruntime.quantization import calibrate
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    images = read_images(folder)

    class Reader(calibrate.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            image = next(images, None)
            return None if image is None else {"images": image}

    class Calibrator(getattr(calibrate, f"{case}Calibrater")):  # type: ignore[misc]
        def select_tensors_to_calibrate(self, model: Any) -> tuple[set[str], dict[str, Any]]:
            chosen, values = super().select_tensors_to_calibrate(model)
            return (set(json.loads((folder / "tensors.json").read_text())) if tensors == "same" else chosen), values

    augmented = folder / f"augmented-{os.getpid()}.onnx"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            types = sorted({*QDQRegistry, *QLinearOpsRegistry})
            calibrator = Calibrator(folder / "graph.onnx", types, str(augmented), symmetric=True)
            calibrator.augment_graph()
            calibrator.create_inference_session()
            calibrator.collect_data(Reader())
            return len(calibrator.compute_data().data)
    finally:
        augmented.unlink(missing_ok=True)


def ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours over theirs, and whether the goal is met."""
    by = {(result["case"], result["tensors"]): result for result in results}
    found = []
    for ours, theirs, cpu_goal, memory_goal in GOALS:
        for kind in ("default", "same"):
            one, other = by[ours, "same"], by[theirs, kind]
            cpu, memory = one["cpu_s"] / other["cpu_s"], one["peak_mb"] / other["peak_mb"]
            met = cpu <= cpu_goal and (memory_goal is None or memory <= memory_goal)
            found.append(
                {"ours": ours, "theirs": theirs, "their_tensors": kind, "cpu": round(cpu, 3), "cpu_goal": cpu_goal,
                 "memory": round(memory, 3), "memory_goal": memory_goal, "met": met}
            )  # fmt: skip
    return found


def print_report(report: dict[str, Any]) -> None:
    """Two tables in Markdown."""
    print(f"{report['model']}, {report['images']} images, median of {report['repeats']}, {report['machine']}, "
          f"one CPU, onnxruntime {report['onnxruntime']}, numpy {report['numpy']}\n")  # fmt: skip
    print("| calibrator | tensors | CPU s | wall s | peak MB |\n|---|---|---|---|---|")
    for result in report["results"]:
        name = result["case"] if result["case"] in OURS else f"onnxruntime {result['case']}"
        print(
            f"| {name} | {result['count']} | {result['cpu_s']:.1f} | {result['wall_s']:.1f} | {result['peak_mb']:.0f} |"
        )
    print("\n| ratio | its tensors | CPU (goal) | memory (goal) |\n|---|---|---|---|")
    for ratio in report["ratios"]:
        goal = ratio["memory_goal"] or "-"
        print(f"| {ratio['ours']} / onnxruntime {ratio['theirs']} | {ratio['their_tensors']} | "
              f"{ratio['cpu']:.3f} ({ratio['cpu_goal']}) | {ratio['memory']:.3f} ({goal}) |")  # fmt: skip


def cpu_name() -> str:
    """What the kernel calls the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
