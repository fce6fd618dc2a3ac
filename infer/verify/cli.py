"""``iresnet verify``: accuracy against labels and FP32, as a table, JSON, CSV and an HTML report."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer.choices import Runs
from infer.command_line import DebugOption, JsonOption, guarded
from infer.errors import AccuracyError, InputError

if TYPE_CHECKING:
    from infer.verify.tensor_errors import TensorError


@guarded
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle, such as engines/iresnet101-fp16.")],
    data: Annotated[
        list[str], typer.Option("--data", "-d", help="Folder or tar with labelled images; repeat for shards.")
    ],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", "-r", help="FP32 bundle; None: the sibling <model>-fp32, through ONNX Runtime."),
    ] = None,
    ground_truth: Annotated[Path | None, typer.Option(help="File with the true classes of a flat folder.")] = None,
    real: Annotated[Path | None, typer.Option(help="real.json: count the reassessed labels of ImageNet too.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write one HTML file with plots and images.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line an image.")] = None,
    fast_decode: Annotated[
        bool, typer.Option("--fast-decode", help="Decode JPEG files at reduced size for the bundle, exactly for FP32.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use so many images, class-balanced, chosen by --seed.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --limit.")] = 0,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Share of FP32's top-1 that is needed.")] = 0.99,
    target: Annotated[
        Runs | None,
        typer.Option("--target", "-t", help="Who runs it; None: the fastest target that is there."),
    ] = None,
    reference_target: Annotated[Runs | None, typer.Option(help="Target that runs the reference.")] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first image that cannot be read.")] = False,
    layers_limit: Annotated[
        int, typer.Option(min=0, help="Compare every quantised tensor with FP32 on so many images, such as 64.")
    ] = 0,
    plot: Annotated[Path | None, typer.Option(help="With --layers-limit: write the comparison as a picture.")] = None,
    allow_untrained: Annotated[
        bool, typer.Option("--allow-untrained", help="Answer although the weights are random.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a CPU target; None: its own choice.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure accuracy against labels and against FP32; the verdict is the exit code (0 good, 3 not good enough).

    The figures are taken by running this very bundle and are stored in its manifest.
    """
    from infer.verify.run import verify_bundle

    for option, path in (("--report", report), ("--csv", csv)):
        check_output(option, path)
    result = verify_bundle(
        bundle, data, reference=reference, reference_target=reference_target, target=target, ground_truth=ground_truth,
        real=real, csv_file=csv, limit=limit, seed=seed, threshold=threshold, strict=strict,
        allow_untrained=allow_untrained, threads=threads, layer_images=layers_limit, fast_decode=fast_decode,
    )  # fmt: skip
    for failure in result.failures:
        print(f"error: {failure}", file=sys.stderr)
    if report is not None:
        from infer.verify.report import write_report

        write_report(report, result)
    if as_json:
        found = {"layers": [error.to_json() for error in result.layers]} if layers_limit else {}
        details = {"evaluation": result.details.to_json(result.labels)}
        print(json.dumps(result.record | {"failures": result.failures} | details | found))
    else:
        _print_accuracy(bundle, result.record, len(result.failures))
        _print_layers(result.layers)
        for path in (report, csv):
            if path is not None:
                print(f"written: {path}")
    if plot is not None and result.layers:
        from infer.verify.tensor_errors import plot_layers

        plot_layers(result.layers, plot, f"{bundle}: quantised tensors against FP32")
    if result.record["outcome"] != "passed":
        raise typer.Exit(AccuracyError.exit_code)


def check_output(option: str, path: Path | None) -> None:
    """Find out before the images are run that a result could not be written.

    Raises:
        InputError: ``path`` is a folder, or its folder cannot be made or written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{option}: {path} is a folder; pass the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written ({error.strerror})") from error


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
    for label, value in _figures(record):
        table.add_row(label, value)
    if failures:
        table.add_row("unreadable images", str(failures))
    out = Console(highlight=False)
    out.print(table)
    out.print(f"{record['outcome'].upper()}: {record['verdict']}", markup=False)
    if (diagnosis := record["diagnosis"])["kind"] != "unknown":
        out.print(f"Diagnosis ({diagnosis['kind']}): {diagnosis['text']}", markup=False, soft_wrap=True)


def _figures(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values, for people."""

    def beside(key: str, unit: str = " %") -> str:
        fp32 = record.get(f"reference_{key}")
        return f"{record[key]:.2f}{unit}" + ("" if fp32 is None else f" (FP32 {fp32:.2f}{unit})")

    rows = [(label, beside(key)) for label, key in (("top-1", "top1"), ("top-5", "top5")) if key in record]
    if "top1_interval" in record:
        low, high = record["top1_interval"]
        rows.insert(1, ("top-1, 95 % interval", f"{low:.2f} to {high:.2f} %"))
    if "real_top1" in record:
        rows.append((f"top-1, real labels of {record['real_images']}", beside("real_top1")))
    if "ece" in record:
        rows.append(("calibration error", beside("ece", " points")))
    if "agreement" in record:
        rows.append(("agreement with FP32", f"{record['agreement']:.3f} % ({record['disagreeing']} images differ)"))
        if "lost" in record:
            rows.append(("right only in FP32 / only here", f"{record['lost']} / {record['gained']} images"))
        rows.append(("logits, largest difference", f"{record['max_logit_difference']:.4g}"))
        rows.append(("logits, mean difference", f"{record['mean_logit_difference']:.4g}"))
        sqnr = "exact" if record["sqnr_db"] is None else f"{record['sqnr_db']:.1f} dB"
        rows.append(("logits, cosine / SQNR", f"{record['cosine']:.6f} / {sqnr}"))
    if record["fast_decode"]:
        rows.append(("decoding", "JPEG at reduced size here, exact for FP32"))
    return rows
