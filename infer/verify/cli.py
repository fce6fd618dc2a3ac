"""``iresnet verify``: accuracy against labels and FP32, as a table, JSON, CSV and an HTML report."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer.choices import Runs
from infer.command_line import DebugOption, JsonOption, ThreadsOption, guarded
from infer.errors import AccuracyError, InconclusiveError, InputError
from infer.names import printable
from infer.tables import Column, print_facts, print_table, say

if TYPE_CHECKING:
    from infer.bundle.accuracy_record import Accuracy, Figures
    from infer.shard import Shard
    from infer.verify.run import Verification
    from infer.verify.tensor_errors import TensorError


@guarded
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle, such as engines/iresnet101-fp16.")],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Folder, tar or Parquet file with labelled images; repeat for shards."),
    ] = None,
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
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Shard of FP32's top-1 that is needed.")] = 0.99,
    max_unreadable: Annotated[
        float, typer.Option(min=0, max=1, help="Shard of the images that may be unreadable; more fails.")
    ] = 0.01,
    target: Annotated[
        Runs | None,
        typer.Option("--target", "-t", help="Who runs it; None: the fastest target that is there."),
    ] = None,
    reference_target: Annotated[Runs | None, typer.Option(help="Target that runs the reference.")] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first image that cannot be read.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="i/n", help="Run images i, i+n, i+2n, ... only, and write what was counted to --output."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --shard: JSON file to write.")] = None,
    merge: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Put outputs of --shard together, all n of them; files or glob patterns."),
    ] = None,
    layers_limit: Annotated[
        int,
        typer.Option(
            min=0,
            help="Compare every quantised tensor with FP32 on so many images, such as 64; of the graph, not of a plan.",
        ),
    ] = 0,
    plot: Annotated[Path | None, typer.Option(help="With --layers-limit: write the comparison as a picture.")] = None,
    allow_untrained: Annotated[
        bool, typer.Option("--allow-untrained", help="Answer although the weights are random.")
    ] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure accuracy against labels and FP32; the exit code is the verdict: 0 good, 3 not, 4 too few images.

    The figures are taken by running this very bundle and are stored in its manifest.
    """
    from infer.shard import Shard
    from infer.verify.run import merge_shards, verify_bundle, verify_shard

    if plot is not None and not layers_limit:
        raise InputError("--plot draws what --layers-limit compares; pass that too, such as --layers-limit 64")
    for option, path in (("--report", report), ("--csv", csv), ("--plot", plot)):
        check_output(option, path)
    share = None if shard is None else Shard.parse(shard)
    _check_shards(data, share, output, merge, wanted=(report, csv, plot))
    measured: dict[str, Any] = {
        "reference": reference,
        "reference_target": reference_target,
        "target": target,
        "ground_truth": ground_truth,
        "real": real,
        "limit": limit,
        "seed": seed,
        "threshold": threshold,
        "max_unreadable": max_unreadable,
        "strict": strict,
        "allow_untrained": allow_untrained,
        "threads": threads,
        "fast_decode": fast_decode,
    }
    if share is not None and output is not None:
        verify_shard(bundle, data or [], share, output, **measured)
        say(f"{output}: shard {share}; iresnet verify BUNDLE --merge FILE ... puts all {share.count} together")
        return
    if merge:
        result = merge_shards(bundle, _shard_files(merge), csv)
    else:
        result = verify_bundle(bundle, data or [], csv_file=csv, layer_images=layers_limit, **measured)
    _say(bundle, result, as_json=as_json, layers=layers_limit > 0)
    # The verdict stands above, whatever becomes of the files.
    if result.csv_error is not None:
        raise result.csv_error
    if report is not None:
        from infer.verify.report import write_report

        write_report(report, result)
    if plot is not None and result.layers:
        from infer.verify.tensor_errors import plot_layers

        plot_layers(result.layers, plot, f"{bundle}: quantised tensors against FP32")
    for path in (report, csv, plot):
        if path is not None and not as_json:
            print(f"written: {path}")
    if result.accuracy.outcome != "passed":
        failed = result.accuracy.outcome == "failed"
        raise typer.Exit(AccuracyError.exit_code if failed else InconclusiveError.exit_code)


def _check_shards(
    data: list[str] | None,
    share: Shard | None,
    output: Path | None,
    merge: list[str] | None,
    wanted: tuple[Path | None, ...],
) -> None:
    if merge:
        if data or share or output:
            raise InputError("--merge takes what the shards have counted; leave out --data, --shard and --output")
        return
    if not data:
        raise InputError("--data: expected folders or files with labelled images, or --merge with the shards of a run")
    if share is None and output is not None:
        raise InputError("--output is for --shard; the report is --report, rows are --csv")
    if share is not None:
        if output is None:
            raise InputError("--shard needs an --output for what it counts, such as shard-0.json")
        check_output("--output", output)
        if any(path is not None for path in wanted):
            raise InputError("--report, --csv and --plot are made when shards are put together; leave them out here")


def _shard_files(patterns: list[str]) -> list[Path]:
    """The files that are named, patterns resolved and sorted."""
    import glob

    files: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207
        if not found:
            raise InputError(f"--merge {pattern}: no such file")
        files.extend(map(Path, found))
    return files


def _say(bundle: Path, result: Verification, *, as_json: bool, layers: bool) -> None:
    for failure in result.failures:
        say(f"error: {failure}", stream=sys.stderr)
    if as_json:
        found = {"layers": [error.to_json() for error in result.layers]} if layers else {}
        details = {"evaluation": result.details.to_json(result.labels)}
        lists = {"failures": result.failures, "left_out": result.left_out, "skipped": result.skipped.to_json()}
        print(json.dumps(result.accuracy.to_json() | lists | details | found))
    else:
        _print_accuracy(bundle, result.accuracy, len(result.failures))
        if result.left_out:
            say(f"left out: {len(result.left_out)} images beside the class folders, such as {result.left_out[0]}")
        if result.skipped.total:
            say(str(result.skipped))
        _print_layers(result.layers)
    if result.unrecorded is not None:
        say(f"not recorded: {result.unrecorded}", stream=sys.stderr)


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
    print()
    print_table(
        f"quantised tensors, graph as written against FP32, worst of {len(errors)}",
        [
            Column("tensor", left=True, wraps=True),
            Column("SQNR dB"),
            Column("clipped %", drop=2),
            Column("scale", drop=1),
        ],
        [[e.tensor, f"{e.sqnr_db:.1f}", f"{100 * e.clipped:.3f}", f"{e.scale:.4g}"] for e in errors[:most]],
    )


def _print_accuracy(bundle: Path, found: Accuracy, failures: int) -> None:
    rows = list(_figures(found.figures))
    if found.fast_decode:
        rows.append(("decoding", "JPEG at reduced size here, exact for FP32"))
    if failures:
        rows.append(("unreadable images", str(failures)))
    print_facts(printable(str(bundle)), [("target", found.target), ("images", str(found.figures.images)), *rows])
    print()
    say(f"{found.outcome.upper()}: {found.verdict}")
    if found.diagnosis.kind != "unknown":
        say(f"Diagnosis ({found.diagnosis.kind}): {found.diagnosis.text}")


def _figures(found: Figures) -> Iterator[tuple[str, str]]:
    """Names and values, for people."""

    def beside(value: float, fp32: float | None, unit: str = " %") -> str:
        return f"{value:.2f}{unit}" + ("" if fp32 is None else f" (FP32 {fp32:.2f}{unit})")

    if found.top1 is not None:
        yield "top-1", beside(found.top1, found.reference_top1)
    if found.top1_interval is not None:
        low, high = found.top1_interval
        yield "top-1, 95 % interval", f"{low:.2f} to {high:.2f} %"
    if found.top5 is not None:
        yield "top-5", beside(found.top5, found.reference_top5)
    if found.real_top1 is not None:
        yield f"top-1, real labels of {found.real_images}", beside(found.real_top1, found.reference_real_top1)
    if found.ece is not None:
        yield "calibration error", beside(found.ece, found.reference_ece, " points")
    if found.agreement is not None:
        yield "agreement with FP32", f"{found.agreement:.3f} % ({found.disagreeing} images differ)"
        if found.lost is not None:
            yield "right only in FP32 / only here", f"{found.lost} / {found.gained} images"
        yield "logits, largest difference", f"{found.max_logit_difference:.4g}"
        yield "logits, mean difference", f"{found.mean_logit_difference:.4g}"
        yield "logits, cosine / SQNR", f"{found.cosine:.6f} / {found.sqnr_text}"
    if found.not_finite:
        yield "NaN or infinite logits", f"{found.not_finite} images, counted nowhere else"
