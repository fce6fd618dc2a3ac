"""``iresnet classify``: name what is on images, a few or millions of them."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer.choices import Runs
from infer.command_line import DebugOption, ThreadsOption, guarded
from infer.errors import ImageError, InputError, IResNetError
from infer.names import printable
from infer.shard import Shard
from infer.tables import say

if TYPE_CHECKING:
    from infer.classify.job import JobCounts
    from infer.classify.meter import Meter
    from infer.classify.partial import PartialOutput, Recorded
    from infer.classify.sinks import FileSink, Sink
    from infer.predictions import Prediction

_MOST_NAMED = 20  # unreadable images on standard error, where a row names each of them too


@guarded
def classify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle, such as engines/iresnet101-fp16.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders, tar files, Parquet files, glob patterns, shard-{000..063}.tar."),
    ] = None,
    files_from: Annotated[
        list[str] | None,
        typer.Option("--files-from", "-f", help="Text file with one input a line; - is standard input; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write rows to this .jsonl, .csv or .parquet file."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted --output; start it where there is none.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --output, and discard an interrupted run.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="i/n", help="Take images i, i+n, i+2n, ...; of four, 0/4 to 3/4; iresnet merge joins."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Parquet column of the images; None: found by type and name.")
    ] = None,
    fast_decode: Annotated[
        bool, typer.Option("--fast-decode", help="Decode large JPEG files at reduced size; not exact, see verify.")
    ] = False,
    gpu_decode: Annotated[
        bool, typer.Option("--gpu-decode", help="Decode JPEG files on the GPU, by NVIDIA DALI; TensorRT targets.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, max=5, help="Classes an image.")] = 5,
    target: Annotated[
        Runs | None,
        typer.Option("--target", "-t", help="Who runs it; None: the fastest target that is there."),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first image that cannot be read.")] = False,
    require_verified: Annotated[
        bool, typer.Option("--require-verified", help="Refuse a bundle whose newest verification did not pass.")
    ] = False,
    allow_untrained: Annotated[
        bool, typer.Option("--allow-untrained", help="Answer although the weights are random.")
    ] = False,
    threads: ThreadsOption = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="On a Ray cluster: auto or HOST:PORT, or local for one of this machine. --output is then a folder of "
            "numbered parts; bundle, images and output are under the same paths on every machine.",
        ),
    ] = None,
    part_rows: Annotated[int, typer.Option(min=1, help="Images a part, with --ray.")] = 2048,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, instead of text, on standard output.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Name what is on images: the best classes with their probabilities.

    Images that cannot be read are named on standard error, have a row with the reason under --json and --output, and
    make the exit code 1 (2 where no image could be read).
    """
    from infer.classify.job import JobCounts, begin, identity, run_job
    from infer.classify.meter import Meter, shown
    from infer.classify.shard_record import NamesHash, write_record
    from infer.classify.sinks import StreamSink, open_sink, partial_output
    from infer.classify.sinks.rows import json_row
    from infer.pipeline.device import require_device
    from infer.runner import open_bundle
    from infer.sources import Skipped, iter_records, read_list

    part = Shard() if shard is None else Shard.parse(shard)
    inputs, lists = images or [], files_from or []
    _check_options(inputs, lists, output, resume=resume, overwrite=overwrite, as_json=as_json)
    if ray is not None:
        _on_ray(
            bundle, inputs, lists, output, ray, shard, column=column, top=top, target=target, threads=threads,
            strict=strict, fast=fast_decode, gpu_decode=gpu_decode, allow_untrained=allow_untrained,
            require_verified=require_verified, resume=resume, overwrite=overwrite, part_rows=part_rows,
        )  # fmt: skip
        return
    partial = None if output is None else partial_output(output)
    if partial is not None and partial.finished(resume=resume, overwrite=overwrite):
        say(f"{output} is finished, nothing to do; --overwrite makes it anew", stream=sys.stderr)
        return
    with open_bundle(bundle, target=target, allow_untrained=allow_untrained, threads=threads) as runner:
        runner.require_trained()
        if require_verified:
            runner.require_verified()
        dali = require_device(runner.backend, runner.preprocessing, fast=fast_decode) if gpu_decode else None
        top = min(top, runner.manifest.outputs[1].shape[1])
        skipped = Skipped()
        whole = iter_records(chain(inputs, *map(read_list, lists)), column=column, skipped=skipped)
        names = NamesHash()
        records = part.take(whole if shard is None else names.watch(whole))
        meter, tally = Meter(), JobCounts()
        named = _Named(None if output is None and not as_json else _MOST_NAMED)

        def run(sink: Sink) -> None:
            with (
                warnings.catch_warnings(),
                _counting(meter, inputs, lists, part),
                shown("classify", meter) as changed,
            ):
                warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata, without the image's name
                run_job(
                    runner,
                    records,
                    sink,
                    top=top,
                    strict=strict,
                    fast=fast_decode,
                    decoder="dali" if gpu_decode else "host",
                    meter=meter,
                    tally=tally,
                    failed=named,
                    changed=changed,
                )

        if partial is None:
            run(StreamSink(json_row if as_json else _text))
        else:
            sink = open_sink(partial, top)
            job = identity(runner, inputs, lists, part, column, top, fast=fast_decode, dali=dali)

            def recorded(rows: Path) -> None:
                if shard is not None:
                    write_record(partial.output, rows, names, tally.failed, tally.good + tally.failed, job)

            with _finished_or_kept(sink, partial, meter, recorded):
                meter.skip(begin(sink, job, records, tally, resume=resume))
                run(sink)
        named.close()
        if skipped.total:
            say(str(skipped), stream=sys.stderr)
        say(_summary(bundle, runner.target, meter, tally), stream=sys.stderr)
    if tally.failed:
        raise typer.Exit(1 if tally.good else ImageError.exit_code)


def _on_ray(
    bundle: Path,
    inputs: list[str],
    lists: list[str],
    output: Path | None,
    address: str,
    shard: str | None,
    **options: Any,
) -> None:
    if shard is not None:
        raise InputError("--shard is for a scheduler of your own; with --ray the cluster divides the images")
    if output is None:
        raise InputError("--ray needs an --output, the folder of the parts, such as rows.parquet")
    from infer.classify.ray.cli import classify_on_ray
    from infer.classify.ray.driver import RayJob

    classify_on_ray(RayJob(bundle, inputs, lists, output, address, **options))


def _check_options(
    inputs: list[str], lists: list[str], output: Path | None, *, resume: bool, overwrite: bool, as_json: bool
) -> None:
    if not inputs and not lists:
        raise InputError("nothing to classify; name images, folders, tar or Parquet files, or a list with --files-from")
    if lists.count("-") > 1:
        raise InputError("--files-from -: standard input can be read once")
    if output is None and (resume or overwrite):
        raise InputError(f"{'--resume' if resume else '--overwrite'} needs an --output")
    if resume and overwrite:
        raise InputError("--resume goes on with an interrupted run and --overwrite discards it; pass one of them")
    if output is not None and as_json:
        raise InputError("--json is for standard output; name the --output .jsonl")


class _Named:
    """Names unreadable images on standard error, at most ``most`` of them."""

    def __init__(self, most: int | None) -> None:
        self._most, self._count = most, 0

    def __call__(self, prediction: Prediction) -> None:
        self._count += 1
        if self._most is None or self._count <= self._most:
            say(f"error: {printable(str(prediction.error))}", stream=sys.stderr)

    def close(self) -> None:
        if self._most is not None and self._count > self._most:
            say(f"error: and {self._count - self._most} more; their rows say why", stream=sys.stderr)


@contextmanager
def _finished_or_kept(sink: FileSink, partial: PartialOutput, meter: Meter, recorded: Recorded) -> Iterator[None]:
    """Put the output in its place; or, after an error, keep what rows there are."""
    try:
        yield
        sink.finish(recorded)
    except BaseException:
        # Whatever went wrong before the first row left nothing to go on with, but an older run's rows stay.
        kept = f"{meter.done} rows"
        try:
            sink.close(keep=meter.done > 0 or partial.resumed)
        except (OSError, IResNetError):  # the first cause is the one to tell
            kept = "the rows that could be written"
        if meter.done:
            say(f"{kept} are kept in {partial.folder}; --resume goes on there", stream=sys.stderr)
        raise


@contextmanager
def _counting(meter: Meter, inputs: list[str], lists: list[str], part: Shard) -> Iterator[None]:
    """Find the total while the work goes on, where that is cheap."""
    from infer.sources import count_records, read_list

    stop = threading.Event()

    def count() -> None:
        try:
            total = count_records(chain(inputs, *map(read_list, lists)), stop.is_set)
        except IResNetError:
            return  # to be reported by who reads it
        meter.total = None if total is None else part.share(total)

    thread = threading.Thread(target=count, name="count", daemon=True)
    if "-" not in lists:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join(timeout=1)


def _summary(bundle: Path, target: str, meter: Meter, tally: JobCounts) -> str:
    failed = f", {tally.failed} could not be read" if tally.failed else ""
    there = f" ({meter.done - meter.fresh} rows were there)" if meter.done > meter.fresh else ""
    speed = f"{meter.fresh} in {meter.seconds:.1f} s, {meter.rate:.1f}/s"
    return f"{tally.good} images classified by {bundle} on {target}{failed}{there}; {speed}; {meter.shares()}"


def _text(prediction: Prediction) -> str | None:
    if prediction.error is not None:
        return None  # named on standard error
    return "\n".join([printable(prediction.name), *(f"  {100 * r.score:6.2f} %  {r.label}" for r in prediction.top)])
