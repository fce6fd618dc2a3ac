"""``python -m infer``: classify images, verify accuracy, look at bundles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer.bench_cli import bench
from infer.classify_cli import classify
from infer.command_line import DebugOption, JsonOption, guarded, human_bytes
from infer.errors import AccuracyError
from infer.export_cli import export_deepstream, export_triton

if TYPE_CHECKING:
    from infer.bundle import Manifest
    from infer.layers import TensorError

app = typer.Typer(
    name="iresnet-infer", help="Run, verify and inspect engine bundles.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

app.command(no_args_is_help=True)(classify)
app.command(no_args_is_help=True)(bench)
app.command("export-triton", no_args_is_help=True)(export_triton)
app.command("export-deepstream", no_args_is_help=True)(export_deepstream)

BundleArgument = Annotated[Path, typer.Argument(help="Folder of a bundle, such as engines/iresnet101-fp16.")]
TargetOption = Annotated[
    str | None,
    typer.Option("--target", "-t", help="tensorrt, tensorrt_rtx, openvino or onnxruntime; None: the fastest."),
]
UntrainedOption = Annotated[bool, typer.Option("--allow-untrained", help="Answer although the weights are random.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads of a CPU target; None: its own choice.")]


@app.command(no_args_is_help=True)
@guarded
def verify(
    bundle: BundleArgument,
    data: Annotated[
        list[str], typer.Option("--data", "-d", help="Folder or tar with labelled images; repeat for shards.")
    ],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", "-r", help="FP32 bundle; None: the sibling <model>-fp32, through ONNX Runtime."),
    ] = None,
    ground_truth: Annotated[Path | None, typer.Option(help="File with the true classes of a flat folder.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use so many images, class-balanced, chosen by --seed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --limit.")] = 0,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Share of FP32's top-1 that is needed.")] = 0.99,
    target: TargetOption = None,
    reference_target: Annotated[str | None, typer.Option(help="Target that runs the reference.")] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first image that cannot be read.")] = False,
    layers: Annotated[
        int, typer.Option(min=0, help="Compare every quantised tensor with FP32 on so many images, such as 64.")
    ] = 0,
    plot: Annotated[Path | None, typer.Option(help="With --layers: write the comparison as a picture.")] = None,
    allow_untrained: UntrainedOption = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure accuracy against labels and against FP32; the verdict is the exit code (0 good, 3 not good enough).

    The figures are taken by running this very bundle and are stored in its manifest.
    """
    from infer.verify import verify_bundle

    result = verify_bundle(
        bundle, data, reference=reference, reference_target=reference_target, target=target, ground_truth=ground_truth,
        limit=limit, seed=seed, threshold=threshold, strict=strict, allow_untrained=allow_untrained, threads=threads,
        layer_images=layers,
    )  # fmt: skip
    for failure in result.failures:
        print(f"error: {failure}", file=sys.stderr)
    if as_json:
        found = {"layers": [error.to_json() for error in result.layers]} if layers else {}
        print(json.dumps(result.record | {"failures": result.failures} | found))
    else:
        _print_accuracy(bundle, result.record, len(result.failures))
        _print_layers(result.layers)
    if plot is not None and result.layers:
        from infer.layers import plot_layers

        plot_layers(result.layers, plot, f"{bundle}: quantised tensors against FP32")
    if not result.record["passed"]:
        raise typer.Exit(AccuracyError.exit_code)


def _print_layers(errors: list[TensorError], most: int = 20) -> None:
    if not errors:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"quantised tensors against FP32, worst of {len(errors)} first", box=box.SIMPLE)
    for head in ("tensor", "SQNR dB", "clipped %", "scale"):
        table.add_column(head, justify="left" if head == "tensor" else "right")
    for error in errors[:most]:
        table.add_row(error.tensor, f"{error.sqnr_db:.1f}", f"{100 * error.clipped:.3f}", f"{error.scale:.4g}")
    Console(highlight=False).print(table)


def _print_accuracy(bundle: Path, record: dict[str, Any], failures: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{bundle} on {record['target']}, {record['images']} images", title_justify="left", show_header=False
    )
    compared = "reference_top1" in record
    for label, key in (("top-1", "top1"), ("top-5", "top5")):
        if key in record:
            fp32 = f" (FP32 {record['reference_' + key]:.2f} %)" if compared else ""
            table.add_row(label, f"{record[key]:.2f} %{fp32}")
    if "agreement" in record:
        table.add_row("agreement with FP32", f"{record['agreement']:.3f} % ({record['disagreeing']} images differ)")
        table.add_row("logits, largest difference", f"{record['max_logit_difference']:.4g}")
        table.add_row("logits, mean difference", f"{record['mean_logit_difference']:.4g}")
        sqnr = record["sqnr_db"]
        table.add_row(
            "logits, cosine / SQNR", f"{record['cosine']:.6f} / {'exact' if sqnr is None else f'{sqnr:.1f} dB'}"
        )
    if failures:
        table.add_row("unreadable images", str(failures))
    out = Console(highlight=False)
    out.print(table)
    out.print(("PASSED: " if record["passed"] else "FAILED: ") + record["verdict"], markup=False)


@app.command(no_args_is_help=True)
@guarded
def info(bundle: BundleArgument, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show what a bundle is, which of its plans run here, and its measured accuracy. Checks every file's hash."""
    from infer.backends import TARGETS, availability
    from infer.bundle import check_files, read_labels, read_manifest

    manifest = read_manifest(bundle)
    check_files(bundle, [manifest.graph, *(entry for plan in manifest.plans for entry in plan.files)])
    read_labels(bundle, manifest)
    runnable = {p.target: availability(p.target) if p.target in TARGETS else "unknown target" for p in manifest.plans}
    if as_json:
        import msgspec

        print(json.dumps({**msgspec.to_builtins(manifest), "unavailable": runnable}))
    else:
        _print_info(bundle, manifest, runnable)


def _print_info(bundle: Path, manifest: Manifest, runnable: dict[str, str | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    model = manifest.model
    out = Console(highlight=False)
    table = Table(title=str(bundle), title_justify="left", show_header=False)
    table.add_row("model", f"{model.name}, {model.num_classes} classes, {manifest.precision}")
    table.add_row("weights", model.weights + ("" if model.trained else "  UNTRAINED"))
    for tensor in (*manifest.inputs, *manifest.outputs):
        table.add_row(tensor.name, f"{tensor.dtype} {tensor.shape}")
    batch = manifest.batch
    table.add_row("batch of TensorRT plans", f"{batch.min} to {batch.max}, tuned for {batch.opt}")
    for plan in manifest.plans:
        where = plan.gpu or (
            f"compute capability {', '.join(plan.compute_capabilities)}" if plan.compute_capabilities else ""
        )
        size = human_bytes(sum(entry.size for entry in plan.files))
        state = "runs here" if runnable[plan.target] is None else f"does not run here: {runnable[plan.target]}"
        table.add_row(plan.target, f"{size}, version {plan.version}, {where + ', ' if where else ''}{state}")
    for measured in manifest.accuracy:
        top1 = f"top-1 {measured['top1']:.2f} %, " if "top1" in measured else ""
        agreement = f"agreement {measured['agreement']:.2f} %, " if "agreement" in measured else ""
        table.add_row(
            f"accuracy on {measured['target']}", f"{top1}{agreement}{measured['images']} images of {measured['data']}"
        )
    out.print(table)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="iresnet-infer" if not sys.argv[0].endswith("__main__.py") else "python -m infer")
