"""Streams, events, DLPack and graphs on device memory, in a process of its own, with the stand-in for TensorRT.

    python tests/infer/backends/cuda/gpu_streams.py             # a real GPU, real pycuda; torch and CuPy where they are
    python tests/infer/backends/cuda/gpu_streams.py --emulator  # the emulated driver

The stand-in's network runs on the stream that it is given, takes its time, and gives bits that numpy computes too.
Prints each check that passed, why others could not run, and ends with an error at the first that fails.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
KEY, ROWS, MILLISECONDS, CYCLES = "tensorrt-11", 8, 2.0, 3_000_000
_BALLAST = 256 << 20
LAYOUT = {"image": (16, 16, 3), "num_classes": 90, "top_k": 40, "max_batch": ROWS, "scratch_bytes": 4096}


class Skipped(Exception):
    """Why a check cannot run here."""


class World:
    """The device and a plan on it; a context is current meanwhile."""

    def __init__(self, emulator: Any, folder: Path) -> None:
        import pycuda.driver as cuda
        from trt_stand_in.module import make_module
        from trt_stand_in.plan import write_plan

        from infer.backends.cuda.context import PrimaryContext

        self.cuda, self.emulated = cuda, emulator is not None
        self.held: list[Any] = []
        self.context = PrimaryContext(0)
        self.context.__enter__()
        if emulator is None:
            from trt_stand_in.on_gpu import install

            self.device: Any = install(KEY, CYCLES)
        else:
            emulator.delay(2, MILLISECONDS)
            self.device = emulator
            sys.modules["tensorrt"] = make_module(KEY, emulator)
        self.ballast = 0 if self.emulated else cuda.mem_alloc(_BALLAST)
        self.path = folder / "network.plan"
        self.plan = write_plan(self.path, KEY, **LAYOUT)

    def open(self, **options: Any) -> Any:
        from infer.backends.base import GpuOptions
        from infer.backends.tensorrt import TensorRTBackend

        return TensorRTBackend(self.path, "tensorrt", options=GpuOptions(**options))

    def images(self, seed: int, rows: int = ROWS) -> Any:
        return np.random.default_rng(seed).integers(0, 256, (rows, *self.plan.image), np.uint8)

    def expected(self, images: Any) -> tuple[Any, Any, Any]:
        from trt_stand_in.rows import hash_rows

        return hash_rows(images, self.plan.num_classes, self.plan.top_k)

    def upload(self, array: Any) -> Any:
        memory = self.cuda.mem_alloc(array.nbytes)
        self.cuda.memcpy_htod(memory, array)
        self.cuda.Context.synchronize()
        return memory

    def pinned(self, shape: Any, dtype: Any) -> Any:
        return self.cuda.pagelocked_empty(shape, dtype)

    def busy(self, stream: Any, milliseconds: float) -> None:
        """Keep a pycuda stream busy."""
        if not self.emulated:
            for _ in range(round(10 * milliseconds)):  # each takes about a tenth of a millisecond or more
                self.cuda.memset_d8_async(self.ballast, 0, _BALLAST, stream)
            return
        from cuda_emulator.emulator import KERNEL

        nothing = KERNEL(lambda *_: None)
        self.held.append(nothing)
        assert (
            self.device.lib.emu_launch(stream.handle, b"busy", round(milliseconds * 1e6), None, 0, nothing, None) == 0
        )


class Exporter:
    """Images with DLPack, which says when they are given up, and poisons them then."""

    def __init__(self, world: World, images: Any, pool: Any) -> None:
        self.world, self.memory, self.shape, self.pool = world, world.upload(images), images.shape, pool
        self.size = images.nbytes
        world.held.append(self.memory)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int, max_version: Any = None) -> Any:
        from infer.backends.cuda import dlpack

        return dlpack.make_capsule(
            int(self.memory), self.shape, "u1", device_type=2, device=0, owner=self, versioned=max_version is not None
        )

    def __del__(self) -> None:
        # Another stream writes there at once, as a caching allocator's next user may.
        self.world.cuda.memset_d8_async(self.memory, 0, self.size, self.pool)


def read_later(world: World, array: Any, stream: Any, told: int) -> Any:
    """A consumer: takes the tensor for ``stream``, then enqueues a slow read and gives the tensor up."""
    from infer.backends.cuda import dlpack

    capsule = array.__dlpack__(stream=told)
    foreign = dlpack.read_capsule(capsule)
    world.busy(stream, 4)
    host = world.pinned(array.shape, array.dtype)
    world.cuda.memcpy_dtoh_async(host, foreign.pointer, stream)
    return host


def overwritten(world: World, *, minus_one: bool = False, streams: int = 1) -> None:
    """Results that were given up are not overwritten while another stream still reads them."""
    reader, hosts = world.cuda.Stream(1), []
    with world.open() as backend:
        own = [backend.own_stream()] + [world.cuda.Stream(1) for _ in range(streams - 1)]
        handles = [one if isinstance(one, int) else one.handle for one in own]
        memory = [world.upload(world.images(seed)) for seed in range(40)]
        for seed in range(40):
            images = Array(int(memory[seed]), (ROWS, *world.plan.image))
            results = backend.infer_device(images, stream=handles[seed % len(handles)])
            if minus_one:
                from infer.backends.cuda import driver

                driver.wait_event(reader.handle, results.ready.handle)
            hosts.append(read_later(world, results.logits, reader, -1 if minus_one else reader.handle))
            del results
        reader.synchronize()
        world.cuda.Context.synchronize()
    for seed, host in enumerate(hosts):
        np.testing.assert_array_equal(host, world.expected(world.images(seed))[0], err_msg=f"batch {seed}")


class Array:
    """Ready images with ``__cuda_array_interface__``."""

    def __init__(self, pointer: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "|u1", "data": (pointer, True), "version": 3, "strides": None
        }  # fmt: skip


def results_are_not_overwritten(world: World) -> None:
    overwritten(world)


def nor_without_a_named_stream(world: World) -> None:
    overwritten(world, minus_one=True)


def nor_by_writers_on_many_streams(world: World) -> None:
    overwritten(world, streams=5)


def inputs_are_kept(world: World) -> None:
    """Though every result but one is dropped at once, and the producer's memory is used again as soon as it can be."""
    pool = world.cuda.Stream(1)
    with world.open() as backend:
        stream, kept = backend.own_stream(), []
        for seed in range(20):
            exporter = Exporter(world, world.images(seed), pool)
            results = backend.infer_device(exporter, stream=stream)
            del exporter
            kept.append(results.classes)
            del results
        for seed, classes in enumerate(kept):
            np.testing.assert_array_equal(classes.get(), world.expected(world.images(seed))[2])


def graphs_give_the_same(world: World) -> None:
    """Batches of 1 and of the largest size run as a graph, others without; mixed with host batches."""
    with world.open() as backend, world.open(cuda_graphs=False) as plain:
        stream = world.cuda.Stream(1)
        for seed in range(24):
            rows = (1, ROWS, 3)[seed % 3]
            images = world.images(seed, rows)
            memory = world.upload(images)
            future = backend.submit(images)
            found = [
                one.infer_device(Array(int(memory), images.shape), stream=stream.handle) for one in (backend, plain)
            ]
            for outputs in found:
                for have, want in zip(outputs[:3], world.expected(images), strict=True):
                    np.testing.assert_array_equal(have.get(), want)
            np.testing.assert_array_equal(future.result().logits, world.expected(images)[0])


def together(work: Callable[[int], None], count: int) -> None:
    """Run ``work`` on threads, numbered; the first error of any, or a thread that hangs, is raised here."""
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def threads_share_the_slots(world: World) -> None:
    """Host batches, raw pointers and arrays from 6 threads on streams of their own."""
    with world.open(slots=3) as backend:

        def work(number: int) -> None:
            with world.context:
                stream = world.cuda.Stream(1)
                for turn in range(25):
                    images = world.images(100 * number + turn, 1 + turn % ROWS)
                    want = world.expected(images)
                    np.testing.assert_array_equal(backend.infer(images).scores, want[1])
                    memory = world.upload(images)
                    out = backend.infer_device(Array(int(memory), images.shape), stream=stream.handle)
                    np.testing.assert_array_equal(out.classes.get(), want[2])
                    np.testing.assert_array_equal(out.logits.get(), want[0])
                    raw = [world.cuda.mem_alloc(array.nbytes) for array in want]
                    backend.enqueue(int(memory), len(images), [int(one) for one in raw], stream.handle).synchronize()
                    for one, array in zip(raw, want, strict=True):
                        host = np.empty_like(array)
                        world.cuda.memcpy_dtoh(host, one)
                        np.testing.assert_array_equal(host, array)
                        one.free()
                    memory.free()
                stream.synchronize()
                del stream, out

        together(work, 6)


def a_fork_touches_nothing(world: World) -> None:
    """A child of ``fork`` drops the inherited engine and ends; the parent goes on."""
    from infer.forks import Owner

    images = world.images(4)
    with world.open() as backend:
        owner = Owner(backend)
        backend.infer(images)
        if (child := os.fork()) == 0:
            code = 1
            try:
                code = 2 if owner.is_here else 0
                del backend
                gc.collect()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        np.testing.assert_array_equal(backend.infer(images).logits, world.expected(images)[0])


def closing_waits_for_calls(world: World) -> None:
    """``close`` beside calls of other threads, ten times; what is held stays readable, and the context is sound."""
    from infer.backends.cuda import dlpack
    from infer.errors import InputError

    images = world.images(7)
    memory = world.upload(images)
    for _ in range(10):
        backend, held, wrong = world.open(), [], []

        def work(backend: Any = backend, held: Any = held, wrong: Any = wrong) -> None:
            stream = backend.own_stream()
            try:
                while True:
                    out = backend.infer_device(Array(int(memory), images.shape), stream=stream)
                    held.append((out.ready, dlpack.read_capsule(out.logits.__dlpack__(stream=stream))))
                    del held[:-3]
            except InputError as error:
                if "closed" not in str(error):
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        backend.close()
        for thread in threads:
            thread.join(60)
        assert not wrong, wrong
        world.cuda.Context.synchronize()
        host = np.empty((ROWS, world.plan.num_classes), np.float32)
        for _, foreign in held:  # closing waits for work and not for holders
            world.cuda.memcpy_dtoh(host, foreign.pointer)
            np.testing.assert_array_equal(host, world.expected(images)[0])


def a_capture_of_the_caller_is_refused_and_left_whole(world: World) -> None:
    """In CUDA's global mode, torch's, where the mere allocation of memory by another thread spoils a capture."""
    from infer.backends.cuda import driver
    from infer.errors import InputError

    images = world.images(3)
    memory, stream, other = world.upload(images), world.cuda.Stream(1), world.cuda.Stream(1)
    array = Array(int(memory), images.shape)
    outputs = [world.upload(one) for one in world.expected(images)]
    with world.open() as backend:
        backend.infer_device(array, stream=other.handle).ready.synchronize()
        assert driver.library().cuStreamBeginCapture_v2(stream.handle, 0) == 0
        for call in (
            lambda: backend.infer_device(array, stream=stream.handle),
            lambda: backend.enqueue(int(memory), ROWS, [int(one) for one in outputs], stream.handle),
        ):
            try:
                call()
            except InputError as error:
                assert "captured" in str(error)
            else:
                raise AssertionError("not refused")
        found = [backend.infer_device(array, stream=other.handle) for _ in range(12)]  # allocates meanwhile
        while not found[-1].ready.query():
            time.sleep(0.001)
        driver.destroy_graph(driver.end_capture(stream.handle))
        for one in found:
            np.testing.assert_array_equal(one.logits.get(), world.expected(images)[0])


def the_per_thread_stream_is_refused(world: World) -> None:
    from infer.errors import InputError

    with world.open() as backend:
        memory = world.upload(world.images(1))
        try:
            backend.infer_device(Array(int(memory), (ROWS, *world.plan.image)), stream=2)
        except InputError as error:
            assert "each thread" in str(error)
        else:
            raise AssertionError("not refused")


def the_default_stream_keeps_its_order(world: World) -> None:
    with world.open() as backend:
        images = world.images(5)
        memory, pinned = world.cuda.mem_alloc(images.nbytes), world.pinned(images.shape, np.uint8)
        pinned[:] = images
        for _ in range(10):
            world.cuda.memset_d8_async(memory, 0, images.nbytes)
            world.cuda.memcpy_htod_async(memory, pinned)
            results = backend.infer_device(Array(int(memory), images.shape))
            host = np.empty((ROWS, world.plan.num_classes), np.float32)
            world.cuda.memcpy_dtoh(host, results.logits.pointer)
            np.testing.assert_array_equal(host, world.expected(images)[0])


def torch_on_side_streams(world: World) -> None:
    """Tensors made on one stream, results read on another after all references of ours are gone."""
    torch = need("torch", world)
    with world.open() as backend, torch.inference_mode():
        maker, reader = torch.cuda.Stream(), torch.cuda.Stream()
        sums = []
        for seed in range(60):
            with torch.cuda.stream(maker):
                torch.cuda._sleep(2_000_000)
                images = torch.from_numpy(world.images(seed)).pin_memory().to("cuda", non_blocking=True)
                results = backend.infer_device(images, stream=maker.cuda_stream)
            del images  # torch may give this memory to the next tensor of the maker's stream
            with torch.cuda.stream(reader):
                logits, classes = torch.from_dlpack(results.logits), torch.from_dlpack(results.classes)
                torch.cuda._sleep(4_000_000)
                sums.append((logits.clone(), classes.clone()))
            del results, logits, classes
        torch.cuda.synchronize()
        for seed, (logits, classes) in enumerate(sums):
            want = world.expected(world.images(seed))
            np.testing.assert_array_equal(logits.cpu().numpy(), want[0], err_msg=f"batch {seed}")
            np.testing.assert_array_equal(classes.cpu().numpy(), want[2])


def torch_threads_on_their_own_streams(world: World) -> None:
    """The inputs of four threads are dropped at once, and torch gives their memory to others."""
    torch = need("torch", world)
    with world.open() as backend:

        def work(number: int) -> None:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for turn in range(100):
                    batch = world.images(100 * number + turn, 1 + turn % ROWS)
                    images = torch.from_numpy(batch).to("cuda", non_blocking=True)
                    results = backend.infer_device(images, stream=stream.cuda_stream)
                    del images
                    spoiled = torch.full(batch.shape, 255, dtype=torch.uint8, device="cuda")
                    found = [torch.from_dlpack(array) for array in results[:3]]
                    del results
                    for tensor, want in zip(found, world.expected(batch), strict=True):
                        np.testing.assert_array_equal(tensor.cpu().numpy(), want)
                    del spoiled

        together(work, 4)


def torch_graphs_beside_the_runner(world: World) -> None:
    """torch captures in its global mode while other threads use the runner; results stay right on both sides."""
    torch = need("torch", world)
    with world.open() as backend:
        images = world.images(11)
        array = torch.from_numpy(images).cuda()
        torch.cuda.synchronize()
        failures: list[BaseException] = []
        over = threading.Event()

        def work() -> None:
            stream = backend.own_stream()
            try:
                while not over.is_set():
                    found = backend.infer_device(array, stream=stream)
                    while not found.ready.query():
                        pass
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            x = torch.ones(1000, device="cuda")
            for _ in range(10):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    y = x * 2 + 1
                graph.replay()
                torch.cuda.synchronize()
                assert bool((y == 3).all())
        finally:
            over.set()
            thread.join(60)
        assert not failures, failures


def cupy_takes_results(world: World) -> None:
    cupy = need("cupy", world)
    with world.open() as backend:
        stream, hosts = cupy.cuda.Stream(non_blocking=True), []
        for seed in range(30):
            with stream:
                images = cupy.asarray(world.images(seed))
                results = backend.infer_device(images, stream=stream.ptr)
                hosts.append(cupy.from_dlpack(results.logits).copy())
            del results, images
        stream.synchronize()
        for seed, host in enumerate(hosts):
            np.testing.assert_array_equal(host.get(), world.expected(world.images(seed))[0])


def streams_that_are_gone(world: World) -> None:
    """The consumer's stream is destroyed before the next writer could ask it."""
    with world.open() as backend:
        stream, hosts = backend.own_stream(), []
        memory = [world.upload(world.images(seed)) for seed in range(30)]
        for seed in range(30):
            reader = world.cuda.Stream(1)
            results = backend.infer_device(Array(int(memory[seed]), (ROWS, *world.plan.image)), stream=stream)
            hosts.append(read_later(world, results.logits, reader, reader.handle))
            del results, reader
        world.cuda.Context.synchronize()
        for seed, host in enumerate(hosts):
            np.testing.assert_array_equal(host, world.expected(world.images(seed))[0], err_msg=f"batch {seed}")


def time_of_a_batch_of_one(world: World) -> None:
    """Printed, not judged: host time until a batch of 1 is enqueued, and until it is done, with and without a graph."""
    images = world.images(0, 1)
    memory = world.upload(images)
    if not world.emulated:
        world.device.cycles = 0
    for graphs in (True, False):
        with world.open(cuda_graphs=graphs) as backend:
            stream, array = backend.own_stream(), Array(int(memory), images.shape)
            for _ in range(50):
                backend.infer_device(array, stream=stream).ready.synchronize()
            enqueued, done = [], []
            for _ in range(200):
                start = time.perf_counter()
                results = backend.infer_device(array, stream=stream)
                enqueued.append(time.perf_counter() - start)
                results.ready.synchronize()
                done.append(time.perf_counter() - start)
            print(
                f"batch of 1, {'graph' if graphs else 'plain'}: enqueued in {1e6 * float(np.median(enqueued)):.1f} us, "
                f"done in {1e6 * float(np.median(done)):.1f} us"
            )
    if not world.emulated:
        world.device.cycles = CYCLES


def why_no_gpu() -> str | None:
    """Why a real GPU cannot be used here; None where it can."""
    from infer.backends.cuda.gpus import find_gpus

    if reason := find_gpus()[1]:
        return reason
    if importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed"
    return None if shutil.which("nvcc") else "nvcc is needed for the stand-in's kernel, and is not on the path"


def need(module: str, world: World) -> Any:
    """A library with a GPU of its own; raises Skipped."""
    if world.emulated:
        raise Skipped(f"{module} needs a real GPU")
    try:
        found = __import__(module)
    except ImportError as error:
        raise Skipped(f"{module} is not installed ({error})") from None
    if module == "torch" and not found.cuda.is_available():
        raise Skipped("this torch sees no GPU")
    return found


CHECKS: tuple[Callable[[World], None], ...] = (
    *(results_are_not_overwritten, nor_without_a_named_stream, nor_by_writers_on_many_streams, inputs_are_kept),
    *(graphs_give_the_same, threads_share_the_slots, a_fork_touches_nothing, closing_waits_for_calls),
    *(a_capture_of_the_caller_is_refused_and_left_whole, the_per_thread_stream_is_refused),
    *(the_default_stream_keeps_its_order, torch_on_side_streams, torch_threads_on_their_own_streams),
    *(torch_graphs_beside_the_runner, cupy_takes_results),
    *(time_of_a_batch_of_one, streams_that_are_gone),
)


@contextlib.contextmanager
def opened(emulated: bool) -> Iterator[World]:
    """The world, and its end."""
    emulator = None
    if emulated:
        from cuda_emulator.emulator import load

        emulator = load()
        emulator.enable()
    with tempfile.TemporaryDirectory() as folder:
        world = World(emulator, Path(folder))
        try:
            yield world
        finally:
            world.cuda.Context.synchronize()
            world.held.clear()
            world.ballast = 0
            gc.collect()
            world.context.__exit__(None, None, None)
            world.context.release()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", action="store_true")
    parser.add_argument("words", nargs="*", help="run the checks whose name holds one of them")
    arguments = parser.parse_args()
    if not arguments.emulator and (reason := why_no_gpu()) is not None:
        raise SystemExit(reason)
    with opened(arguments.emulator) as world:
        for check in CHECKS:
            if arguments.words and not any(word in check.__name__ for word in arguments.words):
                continue
            start = time.perf_counter()
            try:
                check(world)
            except Skipped as reason:
                print(f"skipped: {check.__name__}: {reason}", flush=True)
                continue
            gc.collect()
            world.cuda.Context.synchronize()
            hazards = world.device.hazards() if world.emulated else world.device.reports
            assert hazards == [], hazards
            print(f"ok: {check.__name__} ({time.perf_counter() - start:.2f} s)", flush=True)


if __name__ == "__main__":
    main()
