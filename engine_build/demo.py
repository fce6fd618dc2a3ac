"""The demonstration: the shipped model through the whole chain, in one table."""

from __future__ import annotations

import sys
import tarfile
from dataclasses import replace
from pathlib import Path

from engine_build.build_bundle import BuildOptions, build
from engine_build.network.zoo import find_model
from engine_build.targets import BuildSettings
from infer.errors import AccuracyError, InputError
from infer.predictions import Prediction
from infer.runner import open_bundle
from infer.tables import Column, print_table, say
from infer.terminal import draws, human_bytes
from infer.verify.run import Verification, verify_bundle

MODEL = "iresnet50_fashion"
PRECISIONS = ("fp32", "fp16", "int8")
SAMPLES = 6


def demo(output: Path) -> None:
    """Build the shipped model at every precision, classify pictures, verify on its test images, print a table.

    Args:
        output: folder for the bundles.

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
    options = BuildOptions(MODEL, settings=BuildSettings(progress=draws(sys.stderr)), offline=True)
    results: list[tuple[str, list[list[str]], Verification]] = []
    for precision in PRECISIONS:
        say(f"building {MODEL} at {precision}")
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
        _print_predictions(f"{runner.folder} on {runner.target}", names, runner.classify(pictures))
    _print_results(results)
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


def _print_predictions(title: str, names: list[str], predictions: list[Prediction]) -> None:
    rows = []
    for name, prediction in zip(names, predictions, strict=True):
        best, second = prediction.top[:2]
        rows.append([name, best.label, f"{best.score:.1%}", f"{second.label} {second.score:.1%}"])
    columns = [
        Column("image", left=True),
        Column("prediction", left=True),
        Column("probability"),
        Column("next", left=True, drop=1),
    ]
    print()
    print_table(title, columns, rows)


def _print_results(results: list[tuple[str, list[list[str]], Verification]]) -> None:
    rows = []
    for precision, plans, verification in results:
        found = verification.accuracy
        for number, (target, kernels, size) in enumerate(plans):
            measured = target == found.target
            top1 = f"{found.figures.top1:.2f} %" if measured else "on a GPU"
            agreement = f"{found.figures.agreement:.2f} %" if measured else ""
            outcome = _outcome(found.outcome) if measured else ""
            rows.append([precision if number == 0 else "", target, kernels, size, top1, agreement, outcome])
    columns = [
        Column("precision", left=True),
        Column("target", left=True),
        Column("kernels", left=True, wraps=True, drop=2),
        Column("size", drop=1),
        Column("top-1"),
        Column("agreement", drop=3),
        Column("check", left=True),
    ]
    print()
    print_table(f"{MODEL}, verified on its test images", columns, rows)
    first = results[0][2].accuracy
    print()
    say(f"Agreement: images of {first.figures.images} with the top-1 of {first.reference}.")
    say("The TensorRT-RTX plans are built and audited here; they run on an NVIDIA GPU.")


def _outcome(outcome: str) -> str:
    return outcome if outcome == "passed" else outcome.upper()


def _mix(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
