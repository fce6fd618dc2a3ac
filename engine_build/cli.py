"""``python -m engine_build``: build bundles, list models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from calibration.from_images import DEFAULT_IMAGES, DEFAULT_METHOD
from engine_build import cli_options as o
from engine_build.build_report import as_record, print_result
from engine_build.network.zoo import MODELS, count_macs, count_parameters, shape_only
from engine_build.quantise.auto import DEFAULT_BUDGET_IMAGES, DEFAULT_MAX_DROP
from engine_build.source import Steps
from infer.errors import InputError
from infer.terminal import DebugOption, JsonOption, guarded

app = typer.Typer(
    name="iresnet-build",
    help="From an iResNet checkpoint, or your own ONNX classifier, to a bundle of engines for TensorRT and OpenVINO.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
console = Console(stderr=True, highlight=False)


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


@app.command(no_args_is_help=True)
@guarded
def build(
    model: o.ModelOption,
    precision: Annotated[
        str, typer.Option("--precision", "-p", help="fp32, fp16, bf16, int8, fp8, or auto: int8 within --max-drop.")
    ] = "fp16",
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="tensorrt, tensorrt_rtx, openvino, several with commas, or auto: all that can be built here.",
        ),
    ] = "auto",
    weights: o.WeightsOption = None,
    onnx: o.OnnxOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; None: engines/MODEL-PRECISION.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes of TensorRT plans: MAX, or MIN,OPT,MAX.")] = "1,32,128",
    workspace: Annotated[
        int | None, typer.Option(help="Scratch memory for TensorRT in MiB; None: its default.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="GPUs of a TensorRT-RTX plan, such as 8.6,8.9,12.0; None: every one from 8.0.")
    ] = None,
    version_compatible: Annotated[bool, typer.Option(help="TensorRT plans that later versions load too.")] = False,
    hardware_compatible: Annotated[
        bool, typer.Option(help="TensorRT plans that other GPUs from 8.0 load too.")
    ] = False,
    timing_cache: Annotated[Path, typer.Option(help="Kept between TensorRT builds.")] = Path(".cache/tensorrt.timing"),
    labels: Annotated[Path | None, typer.Option(help="Class names, one a line.")] = None,
    data: o.DataOption = None,
    images: o.ImagesOption = DEFAULT_IMAGES,
    method: o.MethodOption = DEFAULT_METHOD,
    percentile: o.PercentileOption = None,
    cache: Annotated[Path | None, typer.Option(help="Calibration cache to use for int8, and no other.")] = None,
    accept_cache: Annotated[bool, typer.Option(help="Take a cache of another graph or of unknown origin.")] = False,
    residual: Annotated[
        str, typer.Option(help="Inputs of residual additions to quantise: none, identity (the shortcut) or both.")
    ] = "none",
    rounding: Annotated[
        str,
        typer.Option(help="Of int8 weights: moments, by what each layer reads of calibration images, or nearest."),
    ] = "moments",
    max_drop: o.MaxDropOption = DEFAULT_MAX_DROP,
    budget_data: o.BudgetDataOption = None,
    budget_images: o.BudgetImagesOption = DEFAULT_BUDGET_IMAGES,
    min_sqnr: o.MinSqnrOption = None,
    num_classes: o.ClassesOption = None,
    width: o.WidthOption = None,
    resize: o.ResizeOption = None,
    crop: o.CropOption = None,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    interpolation: o.InterpolationOption = None,
    require_weights: o.RequireOption = False,
    offline: o.OfflineOption = False,
    seed: o.SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build one bundle: MODEL at one precision, for one target or several.

    Example: build -m iresnet101 -p int8 --weights iresnet101.pth --data imagenet/val
    """
    from engine_build.build_bundle import BuildOptions
    from engine_build.build_bundle import build as run
    from engine_build.quantise.auto import AutoOptions
    from engine_build.quantise.int8 import Int8Options
    from engine_build.quantise.qdq import Placement
    from engine_build.targets import BuildSettings

    if workspace is not None and workspace < 1:
        raise InputError(f"workspace: expected at least 1 MiB, found {workspace}")
    settings = BuildSettings(
        batch=o.parse_batch(batch),
        workspace=None if workspace is None else workspace << 20,
        timing_cache=timing_cache,
        compute_capabilities=None if compute_capability is None else tuple(compute_capability.split(",")),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        progress=console.is_terminal,
    )
    int8 = Int8Options(
        cache=cache,
        accept_cache=accept_cache,
        calibration=o.calibration_request(data, images, method, percentile, seed),
        placement=Placement(residual=residual),
        rounding=rounding,
    )
    options = BuildOptions(
        model=model,
        precision=precision,
        targets=tuple(target.split(",")),
        weights=weights,
        onnx=onnx,
        output=output,
        labels=labels,
        preprocessing=o.preprocessing_of(model, onnx, resize, crop, mean, std, interpolation),
        num_classes=num_classes,
        width=width,
        require_weights=require_weights,
        offline=offline,
        seed=seed,
        settings=settings,
        int8=int8,
        auto=AutoOptions(max_drop, tuple(budget_data or ()), budget_images),
        min_sqnr=min_sqnr,
    )
    steps = Steps(say=_say)
    folder, manifest = run(options, steps)
    if as_json:
        print(json.dumps(as_record(folder, manifest, steps)))
    else:
        print_result(folder, manifest, steps)


@app.command(no_args_is_help=True)
@guarded
def calibrate(
    model: o.ModelOption,
    data: o.DataOption = None,
    images: o.ImagesOption = DEFAULT_IMAGES,
    method: o.MethodOption = DEFAULT_METHOD,
    percentile: o.PercentileOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Cache file; None: engines/MODEL.calibration.")
    ] = None,
    weights: o.WeightsOption = None,
    onnx: o.OnnxOption = None,
    num_classes: o.ClassesOption = None,
    width: o.WidthOption = None,
    resize: o.ResizeOption = None,
    crop: o.CropOption = None,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    interpolation: o.InterpolationOption = None,
    require_weights: o.RequireOption = False,
    offline: o.OfflineOption = False,
    seed: o.SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run images through MODEL and write its INT8 calibration cache, which the next int8 build takes.

    One pass finds the ranges of every method; the text file is TensorRT's own cache format.
    """
    from engine_build.build_bundle import default_cache, tool_name
    from engine_build.option_checks import check_request, check_source
    from engine_build.quantise.int8 import make_cache
    from engine_build.source import SourceOptions, load_source

    options = SourceOptions(
        model=model,
        weights=weights,
        onnx=onnx,
        preprocessing=o.preprocessing_of(model, onnx, resize, crop, mean, std, interpolation),
        num_classes=num_classes,
        width=width,
        require_weights=require_weights,
        offline=offline,
        seed=seed,
    )
    request = o.calibration_request(data, images, method, percentile, seed)
    target = output or default_cache(Path("engines"), model)
    check_source(options)
    check_request(request)
    source = load_source(options, Steps(say=_say))
    cache, notes = make_cache(source, request, target, tool_name(), _say)
    for note in notes:
        _say(f"note: {note}")
    origin = cache.provenance
    assert origin is not None
    if as_json:
        print(
            json.dumps({"cache": str(target), "method": method, "images": origin.images, "tensors": len(cache.scales)})
        )
    else:
        print(f"{target}: {len(cache.scales)} tensors, {method}, {origin.images} images")


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
    from engine_build.network.weights import SUFFIXES, cache_folder

    rows = []
    for row in MODELS.values():
        if row.shipped is not None:
            weights = "shipped"
        elif any((cache_folder() / f"{row.name}{suffix}").is_file() for suffix in SUFFIXES):
            weights = "cached"
        else:
            weights = "official" if row.drive_id else "none"
        size = {"parameters": count_parameters(shape_only(row)), "gmac": count_macs(row) / 1e9}
        use = {"input": row.preprocessing.crop, "classes": row.num_classes, "top1": row.top1, "top5": row.top5}
        link = {"download": f"https://drive.google.com/uc?id={row.drive_id}" if row.drive_id else None}
        rows.append({"model": row.name, **size, **use, "weights": weights, **link})
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(
        title="Models",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        padding=0,
        caption="GMAC of one image; published ImageNet accuracy; official = to be downloaded",
    )
    for head in ("model", "parameters", "GMAC", "input", "classes", "top-1", "top-5", "weights"):
        table.add_column(head, justify="left" if head in ("model", "weights") else "right")
    for r in rows:
        table.add_row(
            str(r["model"]), f"{r['parameters']:,}", f"{r['gmac']:.3f}", str(r["input"]), str(r["classes"]),
            f"{r['top1']:.2f}" if r["top1"] else "-", f"{r['top5']:.2f}" if r["top5"] else "-", str(r["weights"]),
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="iresnet-build" if not sys.argv[0].endswith("__main__.py") else "python -m engine_build")
