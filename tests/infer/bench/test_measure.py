"""The benchmark against backends whose times are known exactly (a clock of their own), and on a real bundle."""

from __future__ import annotations

import csv
import json
from bisect import insort
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from infer.bench import measure as benchmark
from infer.bench.cli import numbers
from infer.bench.measure import (
    Options,
    Point,
    Run,
    StageSummary,
    measure,
    sweep,
    synthetic_batches,
    too_large,
    warnings_of,
)
from infer.bench.report import Report
from infer.bench.roofline import Work, find_gpus
from infer.bundle import read_manifest, write_manifest
from infer.cli import app
from infer.errors import InputError, TargetUnavailableError

IMAGE = (8, 8, 3)


class World:
    """Time that passes only when the host works, and when it waits: then to the end of the oldest batch."""

    def __init__(self):
        self.now = 100.0
        self.pending = deque()

    def __call__(self):
        return self.now

    def wait(self):
        end, future, error = self.pending.popleft()
        self.now = max(self.now, end)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def semaphore(self, free):
        def acquire():
            if not room.free:
                self.wait()
            room.free -= 1

        def release():
            room.free += 1

        room = SimpleNamespace(acquire=acquire, release=release, free=free)
        return room


class Ready(list):
    """Batches by the time that they end."""

    def popleft(self):
        return self.pop(0)


class Pipeline:
    """A device that takes ``period`` seconds a batch, one after the other, after ``enqueue`` of the host's time."""

    target, device, max_batch, in_flight = "tensorrt", "GPU 0 (NVIDIA L4, 3 streams)", 32, 3
    on_device = None

    def __init__(self, world, period=0.01, enqueue=0.0, first=0.0):
        self.world, self.period, self.enqueue, self.first = world, period, enqueue, first
        self.seen, self.free_at, self.fail_at = [], 0.0, None

    def submit(self, batch):
        self.seen.append(batch)
        self.world.now += self.enqueue
        self.free_at = max(self.free_at, self.world.now) + self.period + self.first
        self.first = 0.0
        error = TargetUnavailableError("the device is gone") if len(self.seen) == self.fail_at else None
        future = Future()
        self.world.pending.append((self.free_at, future, error))
        return future


class Staged(Pipeline):
    """Also times its stages."""

    stages, profiled = SimpleNamespace(h2d=1.0, compute=5.0, d2h=0.5, enqueue=0.2), 0

    @property
    def on_device(self):
        return self

    def profile(self, batch):
        self.profiled += 1
        return self.stages


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=made, process_time=lambda: made.now / 2))
    monkeypatch.setattr(benchmark, "threading", SimpleNamespace(Semaphore=made.semaphore))
    return made


def measure_one(backend, depth, **options):
    """One point with batches of 4."""
    [point] = measure(backend, IMAGE, Options(in_flight=[depth], batches=[4], **options))
    return point


def test_throughput_and_latency_of_one_batch_at_a_time(world):
    point = measure_one(Pipeline(world, enqueue=0.002), 1, duration=1.0, warm_up=0.1)
    [run] = point.runs
    assert run.throughput == pytest.approx(4 / 0.012)
    assert run.latencies == pytest.approx(0.012)
    assert run.seconds == pytest.approx(1.0, abs=0.02)
    assert run.completed == len(run.latencies) == round(run.seconds / 0.012)
    assert point.submit == pytest.approx(2)


def test_batches_in_flight_overlap(world):
    backend = Pipeline(world)
    point = measure_one(backend, 3, duration=1.0, warm_up=0.1)
    [run] = point.runs
    assert run.throughput == pytest.approx(4 / 0.01)
    assert run.latencies == pytest.approx(0.03)
    assert 0 <= len(run.latencies) - run.completed < 3  # started in the measured time, or completed in it
    different = {batch.tobytes() for batch in backend.seen}
    assert len(different) == 5  # three in flight and two spare


def test_warm_up_is_not_measured(world):
    point = measure_one(Pipeline(world, first=5.0), 2, duration=0.5, warm_up=0.0)
    assert point.throughput == pytest.approx(4 / 0.01)
    assert point.latencies.max() < 100


def test_a_host_that_is_slower_than_the_device_is_the_limit(world):
    point = measure_one(Pipeline(world, enqueue=0.03), 3, duration=1.0)
    assert point.throughput == pytest.approx(4 / 0.03, rel=0.05)


def test_the_longer_of_duration_and_iterations_counts(world):
    for depth in (1, 2, 5):
        assert (
            measure_one(Pipeline(world), depth, duration=0.0, iterations=7).runs[0].completed
            == {1: 7, 2: 8, 5: 15}[depth]
        )
    assert measure_one(Pipeline(world), 1, duration=2.0, iterations=7).runs[0].seconds == pytest.approx(2, abs=0.02)


class Streams(Pipeline):
    """A device of several streams, whose batches take what ``seconds()`` gives."""

    def __init__(self, world, count, seconds):
        super().__init__(world)
        self.free, self.seconds, self.in_flight = [0.0] * count, seconds, count

    def submit(self, batch):
        stream = self.free.index(min(self.free))
        self.free[stream] = max(self.free[stream], self.world.now) + self.seconds()
        future = Future()
        insort(self.world.pending, (self.free[stream], future, None), key=lambda item: item[0])
        return future


@pytest.mark.parametrize("streams", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("iterations", [1, 10, 33])
def test_bursts_of_equal_streams_do_not_count_twice(world, streams, iterations):
    world.pending = Ready()
    for depth in sorted({streams, 2 * streams, 16}):
        backend = Streams(world, streams, lambda: 0.01)
        rate = measure_one(backend, depth, duration=0.0, warm_up=0.03, iterations=iterations).throughput
        assert 0.97 <= rate / (4 * min(depth, streams) / 0.01) <= 1.005, (streams, depth)


@pytest.mark.parametrize("streams", [1, 2, 8, 16])
@pytest.mark.parametrize("kind", ["jittered", "bursty"])
def test_rates_that_vary_are_met_on_average(world, streams, kind):
    world.pending = Ready()
    rng = np.random.default_rng(0)
    jitter = lambda: 0.01 * rng.uniform(0.8, 1.2)  # noqa: E731
    stall = lambda: 0.008 if rng.random() < 0.8 else 0.018  # noqa: E731  # the same mean
    for depth in sorted({streams, 16}):
        backend = Streams(world, streams, jitter if kind == "jittered" else stall)
        rates = [measure_one(backend, depth, duration=0.0, warm_up=0.05, iterations=100).throughput for _ in range(30)]
        assert 0.97 <= np.mean(rates) / (4 * streams / 0.01) <= 1.01, (streams, depth, kind)


def test_sizes_that_do_not_fit_are_left_out():
    backend = SimpleNamespace(max_batch=8, target="openvino", in_flight=2)
    options = Options(batches=[32, 1, 8, 64])
    assert sweep(backend, options)[0] == [1, 8] and too_large(backend, options) == [32, 64]
    with pytest.raises(InputError, match="openvino takes batches of at most 8 here, found 16, 32"):
        sweep(backend, Options(batches=[16, 32]))


def test_processor_time_is_counted_for_each_image(world):
    point = measure_one(Pipeline(world), 1, duration=1.0)
    assert point.cpu_per_image == pytest.approx(1e3 * 0.01 / 2 / 4)


def test_repeats_take_turns(world):
    backend = Pipeline(world)
    points = measure(backend, IMAGE, Options(batches=[2, 1], in_flight=[1], duration=0, iterations=1, repeat=3))
    assert [(point.batch, len(point.runs)) for point in points] == [(1, 3), (2, 3)]
    sizes = [len(batch) for batch in backend.seen]
    changes = [size for index, size in enumerate(sizes) if index == 0 or sizes[index - 1] != size]
    assert changes == [1, 2] * 3


def test_stages_come_from_the_backend_that_has_them(world):
    backend = Staged(world)
    [point] = measure(backend, IMAGE, Options(batches=[4], in_flight=[1], duration=0))
    assert point.stages == StageSummary(1.0, 5.0, 0.5, 0.2, 0.0)
    assert backend.profiled == 51  # one to warm up


def test_a_failing_batch_ends_the_run_with_its_error(world):
    backend = Pipeline(world)
    backend.fail_at = 5
    with pytest.raises(TargetUnavailableError, match="the device is gone"):
        measure_one(backend, 2, duration=10)
    assert len(backend.seen) == 6 and not world.pending


def test_default_sweep_keeps_to_what_the_backend_takes(world):
    backend = Pipeline(world)
    assert sweep(backend, Options()) == ([1, 8, 32], [1, 3])
    backend.max_batch = 8
    assert sweep(backend, Options()) == ([1, 8], [1, 3])
    assert sweep(backend, Options(batches=[8, 2, 8], in_flight=[4, 2])) == ([2, 8], [2, 4])
    with pytest.raises(InputError, match="at most 8 here, found 9"):
        sweep(backend, Options(batches=[9]))


@pytest.mark.parametrize(
    "wrong",
    [{"duration": -1}, {"iterations": 0}, {"warm_up": -0.1}, {"repeat": 0}, {"batches": []}, {"in_flight": [0, 1]}],
)
def test_options_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Options(**wrong)


def test_inputs_differ_and_depend_on_the_seed():
    first, second = synthetic_batches(3, IMAGE, 2, 0)
    assert first.shape == (3, *IMAGE) and first.dtype == np.uint8 and first.flags.c_contiguous
    assert not np.array_equal(first, second) and not np.array_equal(first[0], first[1])
    assert np.array_equal(first, synthetic_batches(3, IMAGE, 2, 0)[0])
    assert not np.array_equal(first, synthetic_batches(3, IMAGE, 2, 1)[0])
    assert first.max() > 128


def run_of(latencies, batch=4, seconds=1.0, completed=None):
    latencies = np.asarray(latencies, float)
    return Run(batch, seconds, completed or len(latencies), latencies, latencies / 10, 0.5)


def point_of(*runs, stages=None):
    return Point(4, 1, list(runs), stages)


STEADY = np.full(200, 0.01)


@pytest.mark.parametrize(
    ("point", "word"),
    [
        (point_of(run_of(STEADY), stages=StageSummary(1, 2, 1, 3, 0)), "enqueue-bound"),
        (point_of(run_of(STEADY), stages=StageSummary(3, 2, 1, 1, 0)), "copy to the device takes 3.00 ms"),
        (point_of(run_of(STEADY), stages=StageSummary(1, 2, 4, 1, 0)), "copy from the device takes 4.00 ms"),
        (point_of(run_of(STEADY), stages=StageSummary(1, 2, 1, 1, 3.0)), "lock the GPU's clocks"),
        (point_of(run_of(np.tile([0.01, 0.02], 100))), "latency varies by 33 %"),
        (point_of(run_of(STEADY), run_of(STEADY, seconds=1.2)), "between the repeats"),
        (point_of(run_of(np.linspace(0.01, 0.011, 200))), "latency rises by 7 %"),
        (point_of(run_of(STEADY[:99])), "p99 of 99"),
    ],
)
def test_warnings(point, word):
    [warning] = warnings_of(point)
    assert word in warning


def test_no_warning_without_a_reason():
    assert warnings_of(point_of(run_of(STEADY), run_of(STEADY), stages=StageSummary(1, 2, 1, 1, 0.5))) == []


@pytest.fixture
def report():
    slow = np.concatenate([np.full(98, 0.01), [0.05, 0.09]])
    points = [Point(batch, 1, [run_of(slow, batch=batch)], StageSummary(1, 5, 0.5, 0.25, 0.1)) for batch in (1, 8)]
    subject = {
        "bundle": "b", "model": "m", "precision": "fp16", "trained": False, "target": "tensorrt", "device": "NVIDIA L4",
    }  # fmt: skip
    work = Work(("fp16",), 4.0, 1e7, 5e7, 32, 150528, "tensorrt", None)
    [gpu] = find_gpus(["l4"])
    return Report(subject, {"transfers": "included"}, {"measured": "now"}, Options(), points, gpu, work)


def test_rows_hold_the_percentiles_and_the_share_of_the_ceiling(report):
    one, eight = report.rows()
    assert one.throughput == 100 and eight.throughput == 800
    assert one.latency_p50_ms == pytest.approx(10) and one.latency_max_ms == pytest.approx(90)
    assert one.latency_p99_ms == pytest.approx(50.4)
    assert one.latency_mean_ms == pytest.approx(11.2)
    # L4: 300 GB/s, and a batch of one moves 1e7 + 5e7 bytes.
    assert one.ceiling == pytest.approx(300e9 / 6e7) and one.ceiling_bound == "memory"
    assert one.share_of_ceiling == pytest.approx(100 / 5000)
    assert eight.ceiling == pytest.approx(121e12 / 8e9) and eight.ceiling_bound == "compute"


def test_csv_and_plot(report, tmp_path):
    report.write_csv(tmp_path / "sub" / "points.csv")
    rows = list(csv.DictReader((tmp_path / "sub" / "points.csv").open()))
    assert [(row["batch"], float(row["throughput"]), row["trained"]) for row in rows] == [
        ("1", 100.0, "False"),
        ("8", 800.0, "False"),
    ]
    for name, magic in (("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")):
        report.write_plot(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    text = (tmp_path / "plot.svg").read_text()
    assert "UNTRAINED" in text and "ceiling of L4" in text and "1 in flight" in text
    assert "repeat" not in text and "unstable" not in text
    with pytest.raises(InputError, match=r"ending in .png"):
        report.write_plot(tmp_path / "plot.xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "plot.svg", "sub"]


def test_the_plot_shows_repeats_and_what_is_unstable(report, monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    drawn = {}

    def plot(self, x, y, *rest, label, **more):
        drawn.setdefault(label, []).append((list(x), [float(value) for value in y]))
        return original(self, x, y, *rest, label=label, **more)

    original = Axes.plot
    monkeypatch.setattr(Axes, "plot", plot)
    steady, slower = run_of(STEADY, batch=8), run_of(2 * STEADY, batch=8, seconds=2.0)
    points = [Point(4, 1, [run_of(STEADY, batch=4)] * 2), Point(8, 1, [steady, slower])]
    replace(report, points=points, gpu=None).write_plot(tmp_path / "plot.svg")
    rates = [point.throughput for point in points]
    assert drawn["1 in flight"][0] == ([4, 8], rates)
    assert drawn["1 in flight, each repeat"][0] == (
        [4, 4, 8, 8],
        [rates[0], rates[0], steady.throughput, slower.throughput],
    )
    tails = [1e3 * np.percentile(run.latencies, 99) for point in points for run in point.runs]
    assert drawn["1 in flight, each repeat"][1] == ([4, 4, 8, 8], pytest.approx(tails))
    assert drawn["unstable"] == [([8], [rates[1]]), ([8], [pytest.approx(np.percentile(points[1].latencies, 99))])]
    assert "no ceiling: the device is not in the roofline's table" in drawn


def test_numbers():
    assert numbers("--batch", "1, 8,32") == [1, 8, 32]
    assert numbers("--batch", None) is None
    with pytest.raises(InputError, match=r"--batch: expected whole numbers .* found '1,x'"):
        numbers("--batch", "1,x")


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_the_command_on_a_real_bundle(tiny, tmp_path):
    table = tmp_path / "points.csv"
    short = ("--duration", 0.1, "--warm-up", 0.01, "--batch", "1,4", "--repeat", 2)
    result = bench(tiny, *short, "--json", "--csv", table)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["target"] == "openvino" and document["trained"] is True
    assert "no decoding" in document["flags"]["timed"] and document["flags"]["transfers"].startswith("none")
    assert {point["batch"] for point in document["points"]} == {1, 4}
    for point in document["points"]:
        assert len(point["throughput_runs"]) == 2 and point["batches"] >= 20
        latencies = [point[f"latency_{name}_ms"] for name in ("min", "p50", "p90", "p95", "p99", "max")]
        assert latencies == sorted(latencies) and latencies[0] > 0
        assert point["h2d_ms"] is None and point["ceiling"] is None
    assert len(table.read_text().splitlines()) == 1 + len(document["points"])


def test_an_untrained_bundle_is_measured_and_named_so(untrained):
    result = bench(untrained, "--duration", 0, "--batch", 1, "--in-flight", 1, "--warm-up", 0)
    assert result.exit_code == 0, result.output
    assert "UNTRAINED" in result.stdout and "transfers  none" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "100000"], "takes batches of at most"),
        (["--roofline", "Voodoo2"], "unknown GPU 'Voodoo2'"),
    ],
)
def test_the_command_refuses(tiny, arguments, message):
    result = bench(tiny, "--duration", 0, *arguments)
    assert result.exit_code != 0
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_an_unknown_target_is_a_usage_error(tiny):
    result = bench(tiny, "--target", "vulkan")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Invalid value for '--target'" in result.stderr


def test_a_bundle_without_a_tensorrt_plan_has_the_ceiling_of_its_arithmetic(tiny, own):
    options = ("--duration", 0, "--batch", 1, "--in-flight", 1, "--warm-up", 0, "--roofline", "L4", "--json")
    result = bench(tiny, *options)
    assert result.exit_code == 0, result.stderr
    (ceiling,) = json.loads(result.stdout)["roofline"]
    assert ceiling["compute"] > 0 and ceiling["memory"] is None
    folder = own(tiny)  # as earlier versions built it
    manifest = read_manifest(folder)
    manifest.gmac = None
    write_manifest(folder, manifest)
    result = bench(folder, *options)
    assert result.exit_code != 0 and "needs a TensorRT plan" in result.stderr
