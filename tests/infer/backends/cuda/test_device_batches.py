"""Decoding on the GPU in the whole pipeline, on the emulated driver.

DALI runs on the CPU here, and a stand-in for its GPU output copies the pixels to emulated device memory. What comes
after that is the code that runs on a GPU: device memory into the network without a copy, order, fallbacks, lifetimes.
"""

from __future__ import annotations

import gc
import importlib.util
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator.emulator import COMPUTE, D2H, H2D
from PIL import Image
from typer.testing import CliRunner

from infer.backends.base import GpuOptions
from infer.cli import app
from infer.errors import DeviceError, ImageError, InputError, TargetUnavailableError
from infer.images.jpeg import load_input
from infer.pipeline import device as device_batches
from infer.pipeline.dali import Decoder, plan_file
from infer.runner import Runner, open_bundle
from infer.sources.record import Record

if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
    pytest.skip("NVIDIA DALI is not installed: pip install nvidia-dali-cuda130", allow_module_level=True)


class Pool:
    """Device memory that is written again, on a stream of its own, as soon as nobody holds it: as DALI's is."""

    def __init__(self) -> None:
        import pycuda.driver as cuda

        self.cuda, self.stream, self.memory = cuda, cuda.Stream(1), []  # type: ignore[var-annotated]

    def close(self) -> None:
        self.stream.synchronize()
        for memory in self.memory:
            memory.free()
        self.stream = None


class OnDevice:
    """Pixels in device memory with ``__cuda_array_interface__``."""

    def __init__(self, pixels: Any, pool: Pool) -> None:
        self.memory, self.size, self.pool = pool.cuda.mem_alloc(pixels.nbytes), pixels.nbytes, pool
        # not in the default stream, which would wait for the network
        pool.cuda.memcpy_htod_async(self.memory, pixels, pool.stream)
        pool.stream.synchronize()
        pool.memory.append(self.memory)
        data = (int(self.memory), False)
        self.__cuda_array_interface__ = {"shape": pixels.shape, "typestr": "|u1", "data": data, "version": 3}

    def __del__(self) -> None:
        self.pool.cuda.memset_d8_async(self.memory, 0, self.size, self.pool.stream)


class StandInDecoder(Decoder):
    """DALI on the CPU, and then to the device."""

    made: list[StandInDecoder]
    pool: Pool

    def __init__(self, spec: Any, batch: int, *, device: int | None, threads: int) -> None:
        assert device == 0
        super().__init__(spec, batch, device=None, threads=threads)
        self.decoded: list[int] = []
        self.made.append(self)

    def finish(self) -> Any:
        pixels = super().finish()
        if pixels is None:
            return None
        self.decoded.append(len(np.asarray(pixels)))
        return OnDevice(np.asarray(pixels), self.pool)


@pytest.fixture
def decoders(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StandInDecoder]]:
    """Those that were made. The context of the device is current meanwhile, for their memory."""
    import pycuda.driver as cuda

    from infer.backends.cuda import driver

    monkeypatch.setattr(StandInDecoder, "made", [], raising=False)
    monkeypatch.setattr(device_batches, "Decoder", StandInDecoder)
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    monkeypatch.setattr(StandInDecoder, "pool", Pool(), raising=False)
    yield StandInDecoder.made
    gc.collect()
    StandInDecoder.pool.close()
    driver.pop_context()
    context.detach()


@pytest.fixture
def runner(bundle: Path, decoders: Any) -> Iterator[Runner]:
    with open_bundle(bundle, gpu=GpuOptions(slots=2, max_batch=8), allow_untrained=True) as opened:
        yield opened


def picture(number: int) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((90 + 7 * number, 81 + number % 5), Image.Resampling.BICUBIC)


def encoded(number: int, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(number, exif=exif)


def broken_table(number: int) -> bytes:
    """DALI takes it, and fails the batch."""
    data = bytearray(encoded(number))
    table = data.index(b"\xff\xc4")
    data[table + 5 : table + 15] = b"\xff" * 10
    return bytes(data)


def record(number: int, data: bytes, **options: Any) -> Record:
    return Record(f"image {number}", Path(), f"{number}.jpg", partial(bytes, data), **options)


def expected(runner: Runner, data: bytes, *, host: bool = False) -> Any:
    """The logits of one image: DALI's pixels where it takes the file, those of the host elsewhere."""
    spec = runner.preprocessing
    planned = None if host else plan_file(data, spec, "image")
    if planned is None:
        pixels = np.empty((1, spec.crop, spec.crop, 3), np.uint8)
        load_input(data, spec, pixels[0])
    else:
        decoder = Decoder(spec, 1, device=None, threads=1)
        decoder.start([planned])
        pixels = np.asarray(decoder.finish())
        decoder.close()
    return runner.infer(pixels).logits[0]


def check(runner: Runner, answers: list[Any], files: dict[int, bytes]) -> None:
    """Every image has its own row, in order."""
    assert [index for part in answers for index in part.indices.tolist()] == sorted(files)
    for part in answers:
        assert [f"image {index}" for index in part.indices] == [record.name for record in part.records]
        for index, logits in zip(
            part.indices.tolist(), [] if part.outputs is None else part.outputs.logits, strict=True
        ):
            np.testing.assert_allclose(logits, expected(runner, files[index]), atol=1e-4)


def test_order_and_no_copies_from_the_host(runner: Runner, decoders: Any, emulator: Any) -> None:
    files = {number: encoded(number) for number in range(27)}
    with emulator.tracing() as operations:
        answers = list(runner.run((record(*item) for item in files.items()), decoder="dali", workers=2))
    check(runner, answers, files)
    assert decoders[0].decoded == [8, 8, 8, 3]
    assert [operation.kind for operation in operations].count(COMPUTE) == 4
    # one copy a batch is the stand-in's own; a batch from the host would add its own
    assert [operation.kind for operation in operations].count(H2D) <= 4


def test_every_kind_keeps_its_place(runner: Runner, decoders: Any) -> None:
    files = {
        0: encoded(0, "PNG"), 1: encoded(1), 2: turned(2), 3: encoded(3, progressive=True), 4: encoded(4),
        8: encoded(8, "PNG"), 9: encoded(9, "BMP"), 16: encoded(16), 17: encoded(17),
    }  # fmt: skip
    bad = {5: encoded(5)[:900], 6: b"", 7: b"no image", **{n: encoded(n, "PNG")[:50] for n in range(10, 16)}}
    records = [record(number, {**files, **bad}[number], sequential=number % 2 == 0) for number in range(18)]
    defect = Record("image 18", Path(), "18.jpg", defect="no such file or folder")
    answers = list(runner.run([*records, defect], decoder="dali"))
    check(runner, answers, files)
    assert decoders[0].decoded == [3, 2]
    by_host = list(runner.run([*records, defect]))
    failures = [(f.index, str(f.error)) for part in answers for f in part.failures]
    assert failures == [(f.index, str(f.error)) for part in by_host for f in part.failures]
    assert [index for index, _ in failures] == [*sorted(bad), 18]


def test_a_file_that_fails_dali_costs_one_image(runner: Runner, decoders: Any) -> None:
    files = {number: encoded(number) for number in range(24) if number != 9}
    records = [record(number, files.get(number) or broken_table(number)) for number in range(24)]
    answers = list(runner.run(records, decoder="dali"))
    assert decoders[0].decoded == [8, 8]  # the batch between went through the host
    assert [(f.index, f.record.name) for part in answers for f in part.failures] == [(9, "image 9")]
    assert "image 9: cannot be decoded, truncated or damaged" in str(answers[1].failures[0].error)
    check(runner, [answers[0], answers[2]], {n: files[n] for n in files if not 8 <= n < 16})
    assert answers[1].indices.tolist() == [8, *range(10, 16)]
    for index, logits in zip(answers[1].indices.tolist(), answers[1].outputs.logits, strict=True):
        np.testing.assert_allclose(logits, expected(runner, files[index], host=True), atol=1e-4)


def test_strict_stops_after_the_batches_before(runner: Runner) -> None:
    records = [record(number, encoded(number)) for number in range(12)]
    records[10] = record(10, b"\xff\xd8\xff no jpeg")
    seen = []
    with pytest.raises(ImageError, match="image 10: "):
        for part in runner.run(records, decoder="dali", strict=True):
            seen.append(part.indices.tolist())
    assert seen == [[*range(8)]]


def test_leaving_early_frees_no_memory_that_is_read(runner: Runner, emulator: Any) -> None:
    endless = (record(number, encoded(number % 20)) for number in range(10**9))
    emulator.delay(COMPUTE, 100)
    stream = runner.run(endless, decoder="dali")
    next(stream)
    stream.close()  # batches are under way; the emulator reports memory that is freed in use
    emulator.delay(COMPUTE, 0)
    assert len(list(runner.run([record(0, encoded(0))], decoder="dali"))) == 1


def test_the_runner_may_be_closed_first(runner: Runner, emulator: Any) -> None:
    stream = runner.run((record(number, encoded(number % 20)) for number in range(10**9)), decoder="dali")
    next(stream)
    runner.close()
    stream.close()


def test_a_network_that_fails_ends_the_run(runner: Runner, emulator: Any) -> None:
    stream = runner.run((record(number, encoded(number % 20)) for number in range(10**9)), decoder="dali")
    next(stream)
    emulator.fail("emu_launch")
    with pytest.raises(DeviceError):
        list(stream)


def test_a_result_does_not_wait_for_the_batches_behind_it(runner: Runner, emulator: Any) -> None:
    emulator.delay(COMPUTE, 40)
    with emulator.tracing() as operations:
        answers = list(runner.run((record(number, encoded(number)) for number in range(64)), decoder="dali"))
    assert [part.indices.tolist() for part in answers] == [[*range(n, n + 8)] for n in range(0, 64, 8)]
    networks = sorted(operation.start for operation in operations if operation.kind == COMPUTE)
    copied_back = min(operation.start for operation in operations if operation.kind == D2H)
    assert len(networks) == 8
    assert copied_back < networks[2]


def test_nothing_to_do(runner: Runner) -> None:
    assert list(runner.run([], decoder="dali")) == []


def test_refusals(runner: Runner, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="decoder: expected host or dali, found 'gpu'"):
        next(runner.run([], decoder="gpu"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="always at full size; leave fast decoding out"):
        next(runner.run([], decoder="dali", fast=True))
    with pytest.raises(InputError, match="workers: expected at least 1, found 0"):
        next(runner.run([], decoder="dali", workers=0))
    with (
        open_bundle(bundle, target="openvino") as other,
        pytest.raises(TargetUnavailableError, match="needs a TensorRT target, this bundle runs on openvino; decode on"),
    ):
        next(other.run([], decoder="dali"))


def test_classify(bundle: Path, decoders: Any, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(number))
    (tmp_path / "3.png").write_bytes(encoded(3, "PNG"))
    arguments = ["classify", str(bundle), str(tmp_path), "--allow-untrained", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--gpu-decode"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["name"]).name for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.png"]
    assert [one.decoded for one in decoders] == [[3]]
    for refused, why in ((["--target", "openvino"], "needs a TensorRT target"), (["--fast-decode"], "at full size")):
        done = CliRunner().invoke(app, [*arguments, "--gpu-decode", *refused])
        assert done.exit_code != 0 and why in done.stderr and done.stderr.count("\n") == 1, done.stderr
