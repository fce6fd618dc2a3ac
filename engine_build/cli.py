"""``iresnet build | calibrate | demo | models | doctor``, also as ``python -m engine_build``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from calibration.choices import DEFAULT_LIMIT, DEFAULT_METHOD
from engine_build import cli_options as o
from engine_build.choices import DEFAULT_BUDGET_LIMIT, DEFAULT_MAX_DROP
from engine_build.doctor.cli import doctor
from engine_build.network.cli import models
from infer.command_line import DebugOption, JsonOption, guarded, new_app, renamed
from infer.entry import run_app
from infer.tables import say
from infer.terminal import draws

app = new_app(
    "engine_build",
    "From an iResNet checkpoint, or your own ONNX classifier, to a bundle of engines for TensorRT and OpenVINO.",
)
app.command()(models)
app.command()(doctor)


def _say(line: str) -> None:
    say(line, stream=sys.stderr)


@app.command(
    no_args_is_help=True,
    cls=renamed(
        images="--limit", budget_images="--budget-limit", batch="--max-batch, with --min-batch and --opt-batch"
    ),
)
@guarded
def build(
    model: o.ModelOption,
    precision: o.PrecisionOption = "fp16",
    target: o.TargetOption = "auto",
    output: o.OutputOption = None,
    labels: o.LabelsOption = None,
    min_sqnr: o.MinSqnrOption = None,
    seed: o.SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
    weights: o.WeightsOption = None,
    weights_key: o.WeightsKeyOption = None,
    onnx: o.OnnxOption = None,
    num_classes: o.ClassesOption = None,
    width: o.WidthOption = None,
    require_weights: o.RequireOption = False,
    offline: o.OfflineOption = False,
    data: o.DataOption = None,
    limit: o.LimitOption = DEFAULT_LIMIT,
    method: o.MethodOption = DEFAULT_METHOD,
    percentile: o.PercentileOption = None,
    cache: o.CacheOption = None,
    accept_cache: o.AcceptOption = False,
    residual: o.ResidualOption = "none",
    rounding: o.RoundingOption = "moments",
    max_drop: o.MaxDropOption = DEFAULT_MAX_DROP,
    budget_data: o.BudgetDataOption = None,
    budget_limit: o.BudgetLimitOption = DEFAULT_BUDGET_LIMIT,
    min_batch: o.MinBatchOption = 1,
    opt_batch: o.OptBatchOption = None,
    max_batch: o.MaxBatchOption = 128,
    workspace: o.WorkspaceOption = None,
    compute_capability: o.CapabilityOption = None,
    version_compatible: o.VersionOption = False,
    hardware_compatible: o.HardwareOption = False,
    timing_cache: o.TimingOption = Path(".cache/tensorrt.timing"),
    optimization_level: o.LevelOption = None,
    tf32: o.Tf32Option = True,
    max_aux_streams: o.AuxStreamsOption = None,
    avg_timing: o.AvgTimingOption = None,
    resize: o.ResizeOption = None,
    crop: o.CropOption = None,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    interpolation: o.InterpolationOption = None,
) -> None:
    """Build one bundle: MODEL at one precision, for one target or several.

    Example: iresnet build -m iresnet101 -p int8 --weights iresnet101.pth --data imagenet/val
    """
    targets = o.parse_targets(target)
    batch = o.batch_profile(min_batch, opt_batch, max_batch)
    request = o.calibration_request(data, limit, method, percentile, seed)
    preprocessing = o.preprocessing_of(model, onnx, resize, crop, mean, std, interpolation)

    from engine_build.build_bundle import BuildOptions
    from engine_build.build_bundle import build as run
    from engine_build.build_report import as_record, print_result
    from engine_build.quantise.auto import AutoOptions
    from engine_build.quantise.int8 import Int8Options
    from engine_build.quantise.qdq import Placement
    from engine_build.source import Steps
    from engine_build.targets import BuildSettings

    settings = BuildSettings(
        batch=batch,
        workspace=None if workspace is None else workspace << 20,
        timing_cache=timing_cache,
        compute_capabilities=None if compute_capability is None else tuple(compute_capability.split(",")),
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        optimization_level=optimization_level,
        tf32=tf32,
        max_aux_streams=max_aux_streams,
        avg_timing_iterations=avg_timing,
        progress=draws(sys.stderr),
    )
    int8 = Int8Options(
        cache=cache,
        accept_cache=accept_cache,
        calibration=request,
        placement=Placement(residual=residual),
        rounding=rounding,
    )
    options = BuildOptions(
        model=model,
        precision=precision,
        targets=targets,
        weights=weights,
        weights_key=weights_key,
        onnx=onnx,
        output=output,
        labels=labels,
        preprocessing=preprocessing,
        num_classes=num_classes,
        width=width,
        require_weights=require_weights,
        offline=offline,
        seed=seed,
        settings=settings,
        int8=int8,
        auto=AutoOptions(max_drop, tuple(budget_data or ()), budget_limit),
        min_sqnr=min_sqnr,
    )
    steps = Steps(say=_say)
    folder, manifest = run(options, steps)
    if as_json:
        print(json.dumps(as_record(folder, manifest, steps)))
    else:
        print_result(folder, manifest, steps)


@app.command(no_args_is_help=True, cls=renamed(images="--limit"))
@guarded
def calibrate(
    model: o.ModelOption,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Cache file; None: engines/MODEL.calibration.")
    ] = None,
    seed: o.SeedOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
    data: o.DataOption = None,
    limit: o.LimitOption = DEFAULT_LIMIT,
    method: o.MethodOption = DEFAULT_METHOD,
    percentile: o.PercentileOption = None,
    weights: o.WeightsOption = None,
    weights_key: o.WeightsKeyOption = None,
    onnx: o.OnnxOption = None,
    num_classes: o.ClassesOption = None,
    width: o.WidthOption = None,
    require_weights: o.RequireOption = False,
    offline: o.OfflineOption = False,
    resize: o.ResizeOption = None,
    crop: o.CropOption = None,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    interpolation: o.InterpolationOption = None,
) -> None:
    """Run images through MODEL and write its INT8 calibration cache, which the next int8 build takes.

    One pass finds the ranges of every method; the text file is TensorRT's own cache format.
    """
    request = o.calibration_request(data, limit, method, percentile, seed)
    preprocessing = o.preprocessing_of(model, onnx, resize, crop, mean, std, interpolation)

    from engine_build.build_bundle import default_cache, tool_name
    from engine_build.option_checks import check_request, check_source
    from engine_build.quantise.int8 import make_cache
    from engine_build.source import SourceOptions, Steps, load_source

    options = SourceOptions(
        model=model,
        weights=weights,
        weights_key=weights_key,
        onnx=onnx,
        preprocessing=preprocessing,
        num_classes=num_classes,
        width=width,
        require_weights=require_weights,
        offline=offline,
        seed=seed,
    )
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

    run(output)


def main() -> None:
    """``python -m engine_build``."""
    run_app(app, "python -m engine_build")
