"""The demonstration: the shipped model through the whole chain, in one table."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from engine_build.build_bundle import BuildOptions, build
from engine_build.network.zoo import find_model
from engine_build.targets import BuildSettings
from infer.errors import AccuracyError, InputError
from infer.predictions import Prediction
from infer.runner import open_bundle
from infer.terminal import human_bytes
from infer.verify.run import Verification, verify_bundle

MODEL = "iresnet50_fashion"
PRECISIONS = ("fp32", "fp16", "int8")
SAMPLES = 6


def demo(output: Path, console: Console) -> None:
    """Build the shipped model at every precision, classify pictures, verify on its test images, print a table.

    Args:
        output: folder for the bundles.
        console: for progress and results.

    Raises:
        InputError: the test images are not here.
        AccuracyError: a bundle misses its threshold.
    """
    row = find_model(MODEL)
    assert row.shipped is not None
    data = row.shipped / "test.tar.gz"
    if not data.is_file():
        raise InputError(
            f"the demo's test images are not installed with the package; copy {data.name} from the source "
            f"distribution (pip download --no-binary :all: --no-deps iresnet-trt) or the repository to {data}"
        )
    options = BuildOptions(MODEL, settings=BuildSettings(progress=console.is_terminal), offline=True)
    results: list[tuple[str, list[list[str]], Verification]] = []
    for precision in PRECISIONS:
        console.print(f"building {MODEL} at {precision}")
        folder, manifest = build(replace(options, precision=precision, output=output / f"{MODEL}-{precision}"))
        plans = [
            [
                p.target,
                _mix(p.audit.summary.mac_precisions if p.audit else {}),
                human_bytes(sum(f.size for f in p.files)),
            ]
            for p in manifest.plans
        ]
        results.append((precision, plans, verify_bundle(folder, [str(data)])))

    with open_bundle(output / f"{MODEL}-{PRECISIONS[-1]}") as runner:
        names, pictures = _samples(data, SAMPLES)
        _print_predictions(console, f"{runner.folder} on {runner.target}", names, runner.classify(pictures))
    _print_results(console, results)
    failed = [precision for precision, _, verification in results if verification.accuracy.outcome != "passed"]
    if failed:
        raise AccuracyError(f"these precisions miss the accuracy threshold: {', '.join(failed)}")


def _samples(data: Path, count: int) -> tuple[list[str], list[bytes]]:
    """Names and encoded bytes of ``count`` pictures of a tar file, each of another class."""
    with tarfile.open(data) as tar:
        first = {member.name.split("/")[0]: member for member in reversed(tar.getmembers()) if member.isfile()}
        chosen = list(first.values())[:count]
        files = [tar.extractfile(member) for member in chosen]
        return [member.name for member in chosen], [file.read() for file in files if file is not None]


def _print_predictions(console: Console, title: str, names: list[str], predictions: list[Prediction]) -> None:
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for head in ("image", "prediction", "probability", "next"):
        table.add_column(head)
    for name, prediction in zip(names, predictions, strict=True):
        best, second = prediction.top[:2]
        table.add_row(name, best.label, f"{best.score:.1%}", f"{second.label} {second.score:.1%}")
    console.print(table)


def _print_results(console: Console, results: list[tuple[str, list[list[str]], Verification]]) -> None:
    table = Table(title=f"{MODEL}, verified on its test images", box=box.SIMPLE, title_justify="left", pad_edge=False)
    for head in ("precision", "target", "kernels", "size", "top-1", "agreement", "check"):
        table.add_column(head, no_wrap=True)
    for precision, plans, verification in results:
        found = verification.accuracy
        for number, (target, kernels, size) in enumerate(plans):
            measured = target == found.target
            table.add_row(
                precision if number == 0 else "",
                target,
                kernels,
                size,
                f"{found.figures.top1:.2f} %" if measured else "on a GPU",
                f"{found.figures.agreement:.2f} %" if measured else "",
                _outcome(found.outcome) if measured else "",
            )
    console.print(table)
    first = results[0][2].accuracy
    console.print(
        f"Agreement: images of {first.figures.images} with the top-1 of {first.reference}.\n"
        "The TensorRT-RTX plans are built and audited here; they run on an NVIDIA GPU.",
        markup=False,
    )


def _outcome(outcome: str) -> str:
    return outcome if outcome == "passed" else outcome.upper()


def _mix(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
