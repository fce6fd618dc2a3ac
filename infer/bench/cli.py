"""``iresnet bench``: throughput and latency of a bundle, and how far the hardware would allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from infer.choices import Runs
from infer.command_line import DebugOption, JsonOption, ThreadsOption, guarded
from infer.errors import BundleError, InputError


@guarded
def bench(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle; it may be untrained.")],
    target: Annotated[Runs | None, typer.Option("--target", "-t", help="Who runs it; None: the fastest.")] = None,
    batch: Annotated[str | None, typer.Option(help="Batch sizes, as far as they fit; None: 1,8,32.")] = None,
    in_flight: Annotated[
        str | None, typer.Option(help="Batches under way at once, such as 1,2,4; None: 1 and the backend's own.")
    ] = None,
    duration: Annotated[float, typer.Option(min=0, help="Measured seconds of each point, at least.")] = 3.0,
    iterations: Annotated[int, typer.Option(min=1, help="Measured batches of each point, at least.")] = 10,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before each measurement.")] = 0.5,
    repeat: Annotated[int, typer.Option(min=1, help="Measure the sweep so often; the median counts.")] = 1,
    roofline: Annotated[
        str | None, typer.Option(help="Ceilings of these GPUs too, such as L4,A100; all: every one the plan runs on.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line a point.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw throughput and p99 against batch (.png, .svg, .pdf).")] = None,
    threads: ThreadsOption = None,
    device: Annotated[int, typer.Option(min=0, help="GPU: its ordinal.")] = 0,
    slots: Annotated[int, typer.Option(min=1, help="GPU: streams, two batches in flight on each.")] = 3,
    graphs: Annotated[bool, typer.Option(help="GPU: launch batches as CUDA graphs.")] = True,
    spin: Annotated[bool, typer.Option("--spin", help="GPU: waiting threads spin: lower latency, busy cores.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure throughput and latency, model only: ready batches in host memory to results in host memory."""
    from infer.backends.base import GpuOptions
    from infer.bench.measure import DEFAULT_BATCHES, Options, measure, sweep, too_large
    from infer.bench.report import Report, environment_of, flags_of, subject_of
    from infer.bench.roofline import above, ceiling, find_gpus, gpu_of, known_gpus, work_of
    from infer.bench.table import print_report
    from infer.runner import open_bundle
    from infer.terminal import progress

    options = Options(
        numbers("--batch", batch), numbers("--in-flight", in_flight), duration, iterations, warm_up, repeat
    )
    chosen = [] if roofline in (None, "all") else find_gpus(_words(roofline or ""))
    captured = tuple(options.batches or DEFAULT_BATCHES)
    on_gpu = GpuOptions(device=device, slots=slots, cuda_graphs=graphs, graph_batches=captured, spin=spin)
    with open_bundle(bundle, target=target, threads=threads, gpu=on_gpu) as runner:
        environment = environment_of(runner)
        gpu = gpu_of(runner.backend.device)
        notes = list(runner.backend.notes)
        try:
            work = work_of(runner.manifest, runner.target)
        except BundleError:
            if roofline is not None:
                raise
            work = None
        if work is not None and (gpu is not None or roofline is not None):
            notes.extend(work.notes)
        side = runner.preprocessing.crop
        batches, depths = sweep(runner.backend, options)
        if left := too_large(runner.backend, options):
            most = f"{runner.target} takes at most {runner.backend.max_batch} here"
            notes.append(f"left out: batches of {', '.join(map(str, left))}; {most}")
        with progress("bench", len(batches) * len(depths) * repeat) as advance:
            points = measure(runner.backend, (side, side, 3), options, advance)
        if work is not None and gpu is not None:
            notes.extend(above(work, gpu, [(point.batch, point.throughput) for point in points]))
        if work is not None and roofline == "all":
            chosen = [known for known in known_gpus() if ceiling(work, known).runs]
        report = Report(
            subject_of(runner),
            flags_of(runner),
            environment,
            options,
            points,
            gpu,
            work,
            [ceiling(work, known) for known in chosen] if work else [],
            notes,
        )
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        print_report(report)
    # The figures stand above, whatever becomes of the files.
    if csv is not None:
        report.write_csv(csv)
    if plot is not None:
        report.write_plot(plot)


def numbers(option: str, text: str | None) -> list[int] | None:
    """``1,8,32`` as whole numbers, None for None.

    Raises:
        InputError: anything else.
    """
    if text is None:
        return None
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise InputError(f"{option}: expected whole numbers such as 1,8,32, found {text!r}") from None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
