"""Model-level benchmark: from a ready uint8 batch in host memory to its results in host memory.

Nothing is decoded or pre-processed while the clock runs; the inputs are made before. The batches go through
:meth:`~infer.backends.base.Backend.submit`, as the runner's own do, so copies to and from a GPU are included.

For every batch size and every number of batches in flight the pipeline is first warmed up and then, without a pause,
measured: whenever a batch is done the next one starts (a closed loop). Throughput is the images completed from one
completion to another, a multiple of the batches in flight and of the backend's streams later, divided by that time:
filling and draining the pipeline do not count, nor where in a burst of streams that finish together the window opens
and closes.
Latency is the time from the call of ``submit`` to the completed future; with more batches in flight than the device
has streams it includes their waiting, as it would in service.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infer.errors import InputError

if TYPE_CHECKING:
    from infer.backends.base import Backend, DeviceBackend, Outputs

DEFAULT_BATCHES = (1, 8, 32)
# Distinct inputs, so that no cache holds more of the input than it would in service.
_SPARE_INPUTS = 2
_PROFILES, _PROFILE_SECONDS = 50, 0.5


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        batches: batch sizes; None for those of :data:`DEFAULT_BATCHES` that the backend takes.
        in_flight: numbers of batches under way at once; None for 1 (latency) and the backend's own (throughput).
        duration: measured seconds of each point, at least.
        iterations: batches that complete in the measured time of each point, at least.
        warm_up: seconds before that, at least; at least one batch for each in flight is run in any case.
        repeat: measure the whole sweep so often; the points take turns, so that a drift of the machine hits all.
        seed: of the inputs.
    """

    batches: Sequence[int] | None = None
    in_flight: Sequence[int] | None = None
    duration: float = 3.0
    iterations: int = 10
    warm_up: float = 0.5
    repeat: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("duration", 0), ("iterations", 1), ("warm_up", 0), ("repeat", 1)):
            if getattr(self, name) < low:
                raise InputError(f"{name}: expected at least {low}, found {getattr(self, name)}")
        for name in ("batches", "in_flight"):
            sizes = getattr(self, name)
            if sizes is not None and (not sizes or min(sizes) < 1):
                raise InputError(f"{name}: expected whole numbers from 1, found {list(sizes)}")


class Run(NamedTuple):
    """One measured run of one point.

    Attributes:
        batch: images a batch.
        seconds: measured time.
        completed: batches that completed in it.
        latencies: seconds from submit to result, of the batches started in the measured time.
        submits: seconds that the calls of submit took.
        cpu_seconds: processor time of this process in the measured time, all threads.
    """

    batch: int
    seconds: float
    completed: int
    latencies: NDArray[np.float64]
    submits: NDArray[np.float64]
    cpu_seconds: float

    @property
    def throughput(self) -> float:
        """Images per second."""
        return self.completed * self.batch / self.seconds


@dataclass(frozen=True)
class StageSummary:
    """Medians in ms over several batches that ran alone, and the coefficient of variation of ``compute`` in percent."""

    h2d: float
    compute: float
    d2h: float
    enqueue: float
    compute_cv: float


@dataclass(frozen=True)
class Point:
    """A batch size and a number of batches in flight, with all its runs.

    Attributes:
        runs: one for each repeat.
        stages: None where the backend does not time them.
    """

    batch: int
    in_flight: int
    runs: list[Run] = field(default_factory=list)
    stages: StageSummary | None = None

    @property
    def throughput(self) -> float:
        """Images per second, the median of the runs."""
        return float(np.median([run.throughput for run in self.runs]))

    @property
    def spread(self) -> float:
        """Fastest less slowest run, in percent of the median."""
        rates = [run.throughput for run in self.runs]
        return 100 * (max(rates) - min(rates)) / self.throughput

    @property
    def latencies(self) -> NDArray[np.float64]:
        """Of all runs, in ms."""
        return 1e3 * np.concatenate([run.latencies for run in self.runs])

    @property
    def submit(self) -> float:
        """Median time in ms that a call of submit took: copying into pinned memory and enqueueing, or waiting."""
        return float(1e3 * np.median(np.concatenate([run.submits for run in self.runs])))

    @property
    def cpu_per_image(self) -> float:
        """Processor time of the host in ms for one image, all threads."""
        images = sum(run.completed * run.batch for run in self.runs)
        return 1e3 * sum(run.cpu_seconds for run in self.runs) / images


def measure(
    backend: Backend, image: tuple[int, int, int], options: Options, advance: Callable[[int], None] = lambda runs: None
) -> list[Point]:
    """Measure every combination of batch size and batches in flight.

    Args:
        backend: an opened engine.
        image: height, width, 3 of its input.
        options: what to measure.
        advance: called with 1 after each run.

    Raises:
        InputError: a batch size that the backend does not take.
        IResNetError: a batch failed.
    """
    batches, depths = sweep(backend, options)
    inputs = synthetic_batches(max(batches), image, max(depths) + _SPARE_INPUTS, options.seed)
    points = [Point(batch, depth) for batch in batches for depth in depths]
    for _ in range(options.repeat):
        for point in points:
            ready = [array[: point.batch] for array in inputs]
            point.runs.append(_run(backend, ready, point.in_flight, options))
            advance(1)
    if backend.on_device is None:
        return points
    stages = {batch: _stages(backend.on_device, [array[:batch] for array in inputs]) for batch in batches}
    return [Point(point.batch, point.in_flight, point.runs, stages[point.batch]) for point in points]


def sweep(backend: Backend, options: Options) -> tuple[list[int], list[int]]:
    """The batch sizes and the numbers of batches in flight to measure, rising.

    Raises:
        InputError: every batch size that was asked for is too large.
    """
    largest = backend.max_batch
    if options.batches is None:
        batches = [size for size in DEFAULT_BATCHES if size <= largest]
    else:
        batches = [size for size in sorted(set(options.batches)) if size <= largest]
        if not batches:
            found = ", ".join(map(str, options.batches))
            raise InputError(f"batch: {backend.target} takes batches of at most {largest} here, found {found}")
    return batches, sorted(set(options.in_flight or (1, backend.in_flight)))


def too_large(backend: Backend, options: Options) -> list[int]:
    """The batch sizes that were asked for and that the backend does not take."""
    return [size for size in sorted(set(options.batches or ())) if size > backend.max_batch]


def synthetic_batches(batch: int, image: tuple[int, int, int], count: int, seed: int) -> list[NDArray[np.uint8]]:
    """``count`` different uint8 arrays ``[batch, H, W, 3]``: noise of its own brightness and contrast an image.

    Not constant, for constant operands draw less power and let a GPU clock higher than pictures do.
    """
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 128, (count, batch, 1, 1, 3), np.uint8)
    return list(low + rng.integers(0, 128, (count, batch, *image), np.uint8))


def _run(backend: Backend, inputs: list[NDArray[np.uint8]], depth: int, options: Options) -> Run:
    clock = time.perf_counter
    room = threading.Semaphore(depth)
    started: list[float] = []
    handed: list[float] = []
    finished: list[float] = []
    completions: list[float] = []
    failures: list[BaseException] = []

    def finish(index: int, future: Future[Outputs]) -> None:
        finished[index] = clock()
        completions.append(finished[index])
        if (error := future.exception()) is not None:
            failures.append(error)
        room.release()

    step = math.lcm(
        depth, min(depth, backend.in_flight)
    )  # whatever finishes together, so many later it stands the same
    begin, cpu = clock(), 0.0
    opened: tuple[int, int, float] | None = None  # completions and starts before the window, and when it opened
    while True:
        room.acquire()
        now = clock()
        if failures:
            break
        if opened is None:
            if now - begin >= options.warm_up and len(completions) >= depth:
                opened, cpu = (len(completions), len(started), completions[-1]), time.process_time()
        else:
            inside = _whole(len(completions) - opened[0], step)
            if inside >= max(1, options.iterations) and now - opened[2] >= options.duration:
                break
        index = len(started)
        started.append(now)
        finished.append(0.0)
        future = backend.submit(inputs[index % len(inputs)])
        handed.append(clock())
        future.add_done_callback(partial(finish, index))
    cpu, count = time.process_time() - cpu, len(completions)
    for _ in range(depth - 1):
        room.acquire()
    if failures:
        raise failures[0]
    assert opened is not None
    before, first, start_time = opened
    completed = _whole(count - before, step)
    seconds = sorted(completions)[before + completed - 1] - start_time
    start, hand, end = (np.array(times) for times in (started, handed, finished))
    cpu *= seconds / (now - start_time)
    return Run(len(inputs[0]), seconds, completed, (end - start)[first:], (hand - start)[first:], cpu)


def _whole(completed: int, step: int) -> int:
    """The largest multiple of ``step`` that is at most ``completed``."""
    return completed // step * step


def _stages(backend: DeviceBackend, inputs: list[NDArray[np.uint8]]) -> StageSummary:
    backend.profile(inputs[0])
    begin = time.perf_counter()
    times: list[tuple[float, float, float, float]] = []
    while len(times) < _PROFILES and (len(times) < 5 or time.perf_counter() - begin < _PROFILE_SECONDS):
        stages = backend.profile(inputs[len(times) % len(inputs)])
        times.append((stages.h2d, stages.compute, stages.d2h, stages.enqueue))
    table = np.array(times)
    h2d, compute, d2h, enqueue = (float(value) for value in np.median(table, axis=0))
    return StageSummary(h2d, compute, d2h, enqueue, variation(table[:, 1]))


def variation(values: NDArray[np.float64]) -> float:
    """Coefficient of variation (standard deviation / mean) in percent; 0 for a single value."""
    return float(100 * values.std(ddof=1) / values.mean()) if len(values) > 1 else 0.0


class Doubt(NamedTuple):
    """What makes the figures of a point less than they seem.

    Attributes:
        form: those of one form say the same of several points.
        size: the larger, the worse; to be compared within a form.
        text: with the figures of the point.
    """

    form: str
    size: float
    text: str

    def __str__(self) -> str:
        return self.text


def doubts_of(point: Point) -> list[Doubt]:
    """What makes the figures of ``point`` less than they seem, or bounds them; in the spirit of trtexec's warnings."""
    found = []
    if (stages := point.stages) is not None:
        if stages.enqueue > stages.compute:
            text = (
                f"enqueue-bound: the host needs {stages.enqueue:.2f} ms to enqueue what the device computes in "
                f"{stages.compute:.2f} ms; use CUDA graphs or larger batches"
            )
            found.append(Doubt("enqueue", stages.enqueue / max(stages.compute, 1e-9), text))
        if max(stages.h2d, stages.d2h) > stages.compute:
            way, copy = ("to", stages.h2d) if stages.h2d >= stages.d2h else ("from", stages.d2h)
            text = (
                f"copy-bound: the copy {way} the device takes {copy:.2f} ms, the network {stages.compute:.2f} ms; "
                "keep images in device memory"
            )
            found.append(Doubt(f"copy {way}", copy / max(stages.compute, 1e-9), text))
        if (cv := stages.compute_cv) > 1:
            text = f"unstable: the network's time varies by {cv:.1f} %; lock the GPU's clocks"
            found.append(Doubt("network varies", cv, text))
    latencies = point.latencies
    if point.stages is None and (cv := variation(latencies)) > 10:
        found.append(Doubt("latency varies", cv, f"unstable: latency varies by {cv:.0f} %; is the machine busy?"))
    if (spread := point.spread) > 5:
        text = f"unstable: throughput differs by {spread:.0f} % between the repeats"
        found.append(Doubt("repeats differ", spread, text))
    drifts = [_drift(run.latencies) for run in point.runs]
    if abs(drift := float(np.median(drifts))) > 5:
        word = "rises" if drift > 0 else "falls"
        text = f"drift: latency {word} by {abs(drift):.0f} % within a run; warm up longer, or watch temperature"
        found.append(Doubt("drift", abs(drift), text))
    if len(latencies) < 100:
        text = f"few batches: p99 of {len(latencies)} is close to the maximum; raise the duration"
        found.append(Doubt("few batches", -len(latencies), text))
    return found


def warnings_of(point: Point) -> list[str]:
    """The texts of :func:`doubts_of`."""
    return [doubt.text for doubt in doubts_of(point)]


def _drift(latencies: NDArray[np.float64]) -> float:
    """Last third against the first, medians, in percent; 0 for few batches."""
    third = len(latencies) // 3
    if third < 10:
        return 0.0
    return float(100 * (np.median(latencies[-third:]) / np.median(latencies[:third]) - 1))
