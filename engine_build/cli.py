"""``python -m engine_build``: build bundles, list models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from engine_build.zoo import MODELS, count_macs, count_parameters, create_model
from infer.bundle import BatchProfile, Manifest, Plan
from infer.command_line import DebugOption, JsonOption, guarded, human_bytes
from infer.errors import BundleError, InputError
from infer.preprocess import Preprocessing

if TYPE_CHECKING:
    from engine_build.build import Steps

app = typer.Typer(
    name="iresnet-build",
    help="From an iResNet checkpoint, or your own ONNX classifier, to a bundle of engines for TensorRT and OpenVINO.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
console = Console(stderr=True, highlight=False)


@app.callback()
def _group() -> None:
    pass


@app.command(no_args_is_help=True)
@guarded
def build(
    model: Annotated[str, typer.Option("--model", "-m", help="Model of the table (see: models), or a name for --onnx.")],
    precision: Annotated[str, typer.Option("--precision", "-p", help="fp32, fp16 or bf16.")] = "fp16",
    target: Annotated[
        str,
        typer.Option("--target", "-t", help="tensorrt, tensorrt_rtx, openvino, several with commas, or auto: all that can be built here."),
    ] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Checkpoint: .safetensors, .pth or .pt. None: search, then download.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Your own float ONNX classifier, input [N, 3, H, W].")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; None: engines/MODEL-PRECISION.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes of TensorRT plans: MAX, or MIN,OPT,MAX.")] = "1,32,128",
    workspace: Annotated[int | None, typer.Option(help="Scratch memory for TensorRT in MiB; None: its default.")] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="GPUs of a TensorRT-RTX plan, such as 8.6,8.9,12.0; None: every one from 8.0.")
    ] = None,
    version_compatible: Annotated[bool, typer.Option(help="TensorRT plans that later versions load too.")] = False,
    hardware_compatible: Annotated[bool, typer.Option(help="TensorRT plans that other GPUs from 8.0 load too.")] = False,
    timing_cache: Annotated[Path, typer.Option(help="Kept between TensorRT builds.")] = Path(".cache/tensorrt.timing"),
    labels: Annotated[Path | None, typer.Option(help="Class names, one a line.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Outputs; None: as the checkpoint.")] = None,
    width: Annotated[float | None, typer.Option(help="Channel multiplier of the network.")] = None,
    resize: Annotated[int | None, typer.Option(help="Short side after resizing, pixels.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the centre crop, the input of the network, pixels.")] = None,
    mean: Annotated[str | None, typer.Option(help="Normalisation, R,G,B for values in 0..1.")] = None,
    std: Annotated[str | None, typer.Option(help="Normalisation, R,G,B for values in 0..1.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear or bicubic.")] = None,
    require_weights: Annotated[bool, typer.Option(help="Fail rather than build from random weights.")] = False,
    offline: Annotated[bool, typer.Option(help="Do not try to download weights.")] = False,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build one bundle: MODEL at one precision, for one target or several.

    Example: build -m iresnet101 -p fp16 --weights iresnet101.pth
    """
    from engine_build.build import BuildOptions, Steps
    from engine_build.build import build as run
    from engine_build.targets import BuildSettings

    spec = {"resize": resize, "crop": crop, "mean": _floats("mean", mean), "std": _floats("std", std), "interpolation": interpolation}
    settings = BuildSettings(
        batch=parse_batch(batch), workspace=None if workspace is None else workspace << 20, timing_cache=timing_cache,
        compute_capabilities=tuple(compute_capability.split(",")) if compute_capability else None,
        version_compatible=version_compatible, hardware_compatible=hardware_compatible, progress=console.is_terminal,
    )  # fmt: skip
    options = BuildOptions(
        model=model, precision=precision, targets=tuple(target.split(",")), weights=weights, onnx=onnx, output=output,
        labels=labels, preprocessing=_preprocessing(model, onnx, spec), num_classes=num_classes, width=width,
        require_weights=require_weights, offline=offline, seed=seed, settings=settings,
    )  # fmt: skip
    steps = Steps(say=lambda line: console.print(line, markup=False))
    folder, manifest = run(options, steps)
    if as_json:
        print(json.dumps(_result(folder, manifest, steps)))
    else:
        _print_result(folder, manifest, steps)


@app.command()
@guarded
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bundles.")] = Path("engines"),
    debug: DebugOption = False,
) -> None:
    """Take the shipped model through the whole chain: build, classify, verify, one table."""
    from engine_build.demo import demo as run

    run(output, Console(highlight=False))


@app.command()
@guarded
def models(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the models: size, work, official accuracy, and whether trained weights are at hand."""
    from engine_build.weights import SUFFIXES, cache_folder

    rows = []
    for row in MODELS.values():
        if row.shipped is not None:
            weights = "shipped"
        elif any((cache_folder() / f"{row.name}{suffix}").is_file() for suffix in SUFFIXES):
            weights = "cached"
        else:
            weights = "official" if row.drive_id else "none"
        rows.append(
            {
                "model": row.name, "parameters": count_parameters(create_model(row.name)), "gmac": count_macs(row) / 1e9,
                "input": row.preprocessing.crop, "classes": row.num_classes, "top1": row.top1, "top5": row.top5,
                "weights": weights,
            }
        )  # fmt: skip
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title="Models", title_justify="left", box=box.SIMPLE, caption="GMAC of one image; published ImageNet accuracy; official = to be downloaded")
    for head in ("model", "parameters", "GMAC", "input", "classes", "top-1", "top-5", "weights"):
        table.add_column(head, justify="left" if head in ("model", "weights") else "right")
    for r in rows:
        table.add_row(
            str(r["model"]), f"{r['parameters']:,}", f"{r['gmac']:.3f}", str(r["input"]), str(r["classes"]),
            f"{r['top1']:.2f}" if r["top1"] else "-", f"{r['top5']:.2f}" if r["top5"] else "-", str(r["weights"]),
        )  # fmt: skip
    Console().print(table)


def parse_batch(text: str) -> BatchProfile:
    """``128`` or ``1,32,128`` as a batch profile.

    Raises:
        InputError: anything else, or not 1 <= min <= opt <= max.
    """
    try:
        sizes = [int(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes = [1, min(32, sizes[0]), sizes[0]]
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise InputError(f"batch: expected MAX or MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, found {text!r}")
    return BatchProfile(min=sizes[0], opt=sizes[1], max=sizes[2])


def _floats(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name}: expected three numbers such as 0.485,0.456,0.406, found {text!r}") from None


def _preprocessing(model: str, onnx: Path | None, changes: dict[str, Any]) -> Preprocessing | None:
    changes = {key: value for key, value in changes.items() if value is not None}
    if not changes:
        return None
    base = Preprocessing() if onnx is not None or model not in MODELS else MODELS[model].preprocessing
    try:
        return Preprocessing.from_json({**base.to_json(), **changes})
    except BundleError as error:  # the same checks as for a manifest, but here the options are wrong
        raise InputError(str(error).removeprefix("preprocessing.")) from None


def _result(folder: Path, manifest: Manifest, steps: Steps) -> dict[str, Any]:
    return {
        "bundle": str(folder), "model": manifest.model.name, "precision": manifest.precision,
        "trained": manifest.model.trained, "weights": manifest.model.weights, "seconds": steps.seconds,
        "float32_nodes": manifest.float32_nodes, "notes": manifest.notes,
        "plans": [
            {"target": p.target, "files": [f.file for f in p.files], "version": p.version, "seconds": p.seconds,
             "compute_capabilities": p.compute_capabilities, "gpu": p.gpu, "notes": p.notes, "audit": p.audit["summary"]}
            for p in manifest.plans
        ],
    }  # fmt: skip


_ROWS: tuple[tuple[str, Callable[[Plan, dict[str, Any]], str]], ...] = (
    ("kernels", lambda plan, audit: f"{audit['kernels']} ({_mix(audit['layer_precisions'])})"),
    ("convolutions, products", lambda plan, audit: _mix(audit["mac_precisions"])),
    ("reformats", lambda plan, audit: str(audit["reformats"])),
    ("file", lambda plan, audit: human_bytes(sum(entry.size for entry in plan.files))),
    ("scratch, largest batch", lambda plan, audit: _optional_bytes(audit.get("activation_bytes"))),
    ("DRAM an image, estimate", lambda plan, audit: _optional_bytes(audit.get("dram_bytes_per_image"))),
    ("built in", lambda plan, audit: f"{plan.seconds:.1f} s"),
)


def _optional_bytes(size: int | None) -> str:
    return "-" if size is None else human_bytes(size)


def _print_result(folder: Path, manifest: Manifest, steps: Steps) -> None:
    out = Console(highlight=False)
    table = Table(title=f"{folder}", title_justify="left")
    table.add_column("")
    for plan in manifest.plans:
        table.add_column(f"{plan.target} {plan.version}")
    for label, cell in _ROWS:
        table.add_row(label, *(cell(plan, plan.audit["summary"]) for plan in manifest.plans))
    out.print(table)
    out.print("times: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.seconds.items()), markup=False)
    for plan in manifest.plans:
        if plan.compute_capabilities and plan.gpu is None:
            out.print(f"{plan.target} runs on compute capability {', '.join(plan.compute_capabilities)}", markup=False)
        for note in plan.notes:
            out.print(f"note ({plan.target}): {note}", markup=False)
    for note in manifest.notes:
        out.print(f"note: {note}", markup=False)
    if not manifest.model.trained:
        out.print(
            f"WARNING: {manifest.model.name} has RANDOM weights: good for inspection and benchmarks, its predictions "
            "mean nothing. Pass a checkpoint with WEIGHTS=path (--weights).", style="bold yellow", markup=False,
        )  # fmt: skip


def _mix(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="iresnet-build" if not sys.argv[0].endswith("__main__.py") else "python -m engine_build")
