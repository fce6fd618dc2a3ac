"""Device pointers and arrays of other libraries: no copies, no synchronisation, the right order."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from cuda_emulator.emulator import COMPUTE, D2H, ENGINE_COMPUTE, H2D
from device_user import Capsules, Device, Interface, fetch, outputs_for

from infer.backends.cuda import dlpack
from infer.errors import DeviceError, InputError


def test_enqueue_on_a_stream_of_the_caller(stack: Any, device: Device) -> None:
    with stack.open() as backend:
        images, stream = stack.images(5), device.stream()
        pointer, outputs = device.upload(images), outputs_for(device, 5)
        stack.emulator.delay(COMPUTE, 100)
        with stack.emulator.tracing() as operations:
            start = time.perf_counter()
            event = backend.enqueue(int(pointer), 5, [int(memory) for memory in outputs], stream.handle)
            assert time.perf_counter() - start < 0.09
            assert not event.query()
            event.synchronize()
            assert event.query()
        assert [op.kind for op in operations] == [COMPUTE]
        for have, want in zip(fetch(device, outputs, 5), stack.expected(images), strict=True):
            np.testing.assert_array_equal(have, want)
        by_name = dict(zip(("classes", "logits", "scores"), (outputs[2], outputs[0], outputs[1]), strict=True))
        backend.enqueue(int(pointer), 5, {name: int(memory) for name, memory in by_name.items()}, stream.handle)
        stream.synchronize()


def test_enqueue_and_batches_share_the_slots(stack: Any, device: Device) -> None:
    """Executions and their scratch memory are used by one batch at a time, whoever enqueues it, wherever."""
    stack.emulator.engine_width(ENGINE_COMPUTE, 4)
    with stack.open(stack.write(scratch_bytes=4096)) as backend:
        stack.emulator.delays(1, 3, 1)
        streams = [device.stream() for _ in range(3)]
        batches = [stack.images(n % 8 + 1, n) for n in range(24)]
        pointers = [device.upload(batch) for batch in batches]
        results = [outputs_for(device, len(batch)) for batch in batches]
        futures = []
        for n, batch in enumerate(batches):
            backend.enqueue(int(pointers[n]), len(batch), [int(m) for m in results[n]], streams[n % 3].handle)
            futures.append(backend.submit(batch))
        for stream in streams:
            stream.synchronize()
        for batch, outputs, future in zip(batches, results, futures, strict=True):
            stack.check(batch, future.result())
            for have, want in zip(fetch(device, outputs, len(batch)), stack.expected(batch), strict=True):
                np.testing.assert_array_equal(have, want)


def test_a_failed_batch_leaves_the_slot_in_order(stack: Any, device: Device) -> None:
    """What was enqueued of it before the failure still uses the execution's scratch memory."""
    with stack.open(slots=1, cuda_graphs=False) as backend:
        images, stream = stack.images(4), device.stream()
        pointer, outputs = int(device.upload(images)), outputs_for(device, 4)
        stack.emulator.delay(COMPUTE, 20)
        stack.emulator.fail("cuMemcpyDtoHAsync_v2")
        with pytest.raises(DeviceError):
            backend.infer(images)
        backend.enqueue(pointer, 4, [int(memory) for memory in outputs], stream.handle).synchronize()
        np.testing.assert_array_equal(fetch(device, outputs, 4)[0], stack.expected(images)[0])


def test_nothing_is_left_in_a_context_that_others_use(stack: Any, device: Device) -> None:
    """Here the context outlives the runner, so every object has to be destroyed by itself."""
    path, stream = stack.write(), device.stream()
    images = stack.images(4)
    array, outputs = Interface(device.upload(images), images.shape), outputs_for(device, 4)
    device.cuda.Context.synchronize()
    before = stack.emulator.live()
    for _ in range(3):
        with stack.open(path) as backend:
            backend.infer(images)
            event = backend.enqueue(int(device.memory[0]), 4, [int(memory) for memory in outputs], stream.handle)
            results = [backend.infer_device(array, stream=stream.handle) for _ in range(3)]
            assert stack.emulator.live()["device_bytes"] > before["device_bytes"]
            assert stack.emulator.live()["events"] > before["events"]
            stream.synchronize()
            del event, results
        assert stack.emulator.live() == before


def test_enqueue_from_many_threads(stack_11: Any, device: Device) -> None:
    with stack_11.open() as backend:
        jobs = []
        for n in range(8):
            images = stack_11.images(n + 1, n)
            jobs.append((images, device.upload(images), outputs_for(device, n + 1), device.stream()))

        def work(job: Any) -> None:
            images, pointer, outputs, stream = job
            for _ in range(20):
                event = backend.enqueue(int(pointer), len(images), [int(m) for m in outputs], stream.handle)
            event.synchronize()

        threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for images, _, outputs, _ in jobs:
            for have, want in zip(fetch(device, outputs, len(images)), stack_11.expected(images), strict=True):
                np.testing.assert_array_equal(have, want)
        assert stack_11.emulator.live()["events"] < 60  # used again


def test_wrong_pointers_are_refused_before_the_device_sees_them(stack: Any, device: Device) -> None:
    with stack.open() as backend:
        stream = device.stream().handle
        pointer, outputs = int(device.upload(stack.images(4))), [int(m) for m in outputs_for(device, 4)]
        pinned = device.cuda.pagelocked_empty(4096, np.uint8)
        for bad, message in (
            (pointer + 4, "multiple of 256"),
            (pinned.ctypes.data, "no device memory"),
            (0, "no device"),
        ):
            with pytest.raises(InputError, match=message):
                backend.enqueue(bad, 1, outputs, stream)
        with pytest.raises(InputError, match="scores"):
            backend.enqueue(pointer, 1, [outputs[0], 256, outputs[2]], stream)
        with pytest.raises(InputError, match="2 addresses"):
            backend.enqueue(pointer, 1, outputs[:2], stream)
        with pytest.raises(InputError, match="1 to 8"):
            backend.enqueue(pointer, 9, outputs, stream)
        pinned.base.free()


@pytest.mark.parametrize("kind", [Interface, Capsules])
def test_arrays_of_other_libraries_are_read_in_place(stack: Any, device: Device, kind: Any) -> None:
    with stack.open() as backend:
        images, stream = stack.images(6), device.stream()
        array = kind(device.upload(images), images.shape)
        with stack.emulator.tracing() as operations:
            results = backend.infer_device(array, stream=stream.handle)
            results.ready.synchronize()
        assert [op.kind for op in operations] == [COMPUTE]
        for name, want in zip(("logits", "scores", "classes"), stack.expected(images), strict=True):
            have = getattr(results, name)
            np.testing.assert_array_equal(have.get(), want)
            interface = have.__cuda_array_interface__
            assert (interface["shape"], interface["typestr"]) == (want.shape, want.dtype.str)
            assert interface["stream"] == stream.handle
            np.testing.assert_array_equal(device.download(interface["data"][0], want.shape, want.dtype), want)
        if kind is Capsules:
            assert array.asked == [stream.handle]


def test_the_default_stream_stays_in_order(stack: Any, device: Device) -> None:
    """Results asked for on the default stream are there for what comes next on it; no network runs on it."""
    with stack.open() as backend:
        images = stack.images(8)
        memory = device.cuda.mem_alloc(images.nbytes)
        device.memory.append(memory)
        stack.emulator.delays(10, 20, 1)
        pinned = device.cuda.pagelocked_empty(images.shape, np.uint8)
        pinned[:] = images
        device.cuda.memcpy_htod_async(memory, pinned)  # on the default stream, under way for 10 ms
        results = backend.infer_device(Interface(memory, images.shape))
        logits = device.download(results.logits.pointer, (8, 10), np.float32)  # the default stream waits
        np.testing.assert_array_equal(logits, stack.expected(images)[0])
        pinned.base.free()


def test_work_of_others_on_the_default_stream_holds_nobody_up(stack_11: Any, device: Device) -> None:
    with stack_11.open() as backend:
        memory, pinned = device.upload(np.zeros(64, np.uint8)), device.cuda.pagelocked_empty(64, np.uint8)
        stack_11.emulator.delay(D2H, 60)
        device.cuda.memcpy_dtoh_async(pinned, memory)
        with stack_11.emulator.tracing() as operations:
            future = backend.submit(stack_11.images(4))
            device.cuda.Context.synchronize()
            future.result()
        other = next(op for op in operations if op.bytes == 64)
        first = next(op for op in operations if op.kind == H2D)
        assert first.finish < other.finish
        pinned.base.free()


def test_the_producer_s_stream_is_waited_for(stack_11: Any, device: Device) -> None:
    with stack_11.open() as backend:
        images, producer, consumer = stack_11.images(8), device.stream(), device.stream()
        memory = device.cuda.mem_alloc(images.nbytes)
        device.memory.append(memory)
        pinned = device.cuda.pagelocked_empty(images.shape, np.uint8)
        pinned[:] = images
        stack_11.emulator.delay(0, 20)
        device.cuda.memcpy_htod_async(memory, pinned, producer)
        results = backend.infer_device(Interface(memory, images.shape, stream=producer.handle), stream=consumer.handle)
        np.testing.assert_array_equal(results.logits.get(), stack_11.expected(images)[0])
        pinned.base.free()


def test_a_consumer_on_another_stream_is_kept_in_order(stack_11: Any, device: Device) -> None:
    with stack_11.open() as backend:
        images, stream, other = stack_11.images(8), device.stream(), device.stream()
        stack_11.emulator.delay(COMPUTE, 20)
        results = backend.infer_device(Interface(device.upload(images), images.shape), stream=stream.handle)
        foreign = dlpack.read_capsule(results.logits.__dlpack__(stream=other.handle))
        assert (foreign.shape, foreign.dtype, foreign.device_type) == ((8, 10), "f4", dlpack.CUDA)
        pinned = device.cuda.pagelocked_empty((8, 10), np.float32)
        device.cuda.memcpy_dtoh_async(pinned, foreign.pointer, other)
        other.synchronize()
        np.testing.assert_array_equal(pinned, stack_11.expected(images)[0])
        pinned.base.free()


def test_result_memory_is_used_again_only_when_nobody_holds_it(stack_11: Any, device: Device) -> None:
    with stack_11.open() as backend:
        stream = device.stream()
        held, batches = [], [stack_11.images(8, seed) for seed in range(5)]
        for images in batches:
            held.append(backend.infer_device(Interface(device.upload(images), images.shape), stream=stream.handle))
        for images, results in zip(batches, held, strict=True):
            np.testing.assert_array_equal(results.logits.get(), stack_11.expected(images)[0])
        used = {results.logits.pointer for results in held}
        assert len(used) == 5
        capsule = held[0].scores.__dlpack__(stream=-1)
        del results
        held.clear()
        allocations = stack_11.emulator.live()["device_allocations"]
        array = Interface(device.memory[0], (8, 8, 8, 3))
        again = [backend.infer_device(array, stream=stream.handle) for _ in range(4)]
        kept = dlpack.read_capsule(capsule).pointer // 4096
        assert all(results.scores.pointer // 4096 != kept for results in again)
        assert {results.logits.pointer for results in again} < used
        assert stack_11.emulator.live()["device_allocations"] == allocations
        del capsule, again


def test_results_of_a_closed_runner_are_refused(stack_11: Any, device: Device) -> None:
    backend = stack_11.open()
    images = stack_11.images(2)
    results = backend.infer_device(Interface(device.upload(images), images.shape), stream=device.stream().handle)
    backend.close()
    for read in (lambda: results.logits.__cuda_array_interface__, results.logits.__dlpack__, results.logits.get):
        with pytest.raises(InputError, match="closed"):
            read()
    with pytest.raises(InputError, match="closed"):
        results.ready.synchronize()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: np.zeros((2, 8, 8, 3), np.uint8), "host memory"),
        (lambda m: object(), "__cuda_array_interface__, found object"),
        (lambda m: Interface(m, (2, 8, 8, 4)), "expected uint8"),
        (lambda m: Interface(m, (2, 8, 8, 3), typestr="<f4"), "found f4"),
        (lambda m: Interface(m, (2, 8, 8, 3), strides=(192, 1, 24, 8)), "C-contiguous"),
        (lambda m: Interface(m, (9, 8, 8, 3)), "1 to 8"),
        (lambda m: Interface(int(m) + 8, (1, 8, 8, 3)), "multiple of 256"),
        (lambda m: Capsules(m, (2, 8, 8, 3), "f4"), "found f4"),
        (lambda m: Capsules(m, (2, 8, 8, 3), device=(1, 0)), "NVIDIA"),
    ],
)
def test_other_arrays_are_refused(stack_11: Any, device: Device, make: Any, message: str) -> None:
    memory = device.upload(np.zeros(4096, np.uint8))
    with stack_11.open() as backend, pytest.raises(InputError, match=message):
        backend.infer_device(make(memory), stream=device.stream().handle)


def test_capsules_are_what_numpy_reads_and_writes() -> None:
    """The structures are checked against another implementation, on host memory."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    found = dlpack.read_capsule(array[:, 1:].__dlpack__())
    assert (found.pointer, found.shape, found.dtype) == (array[:, 1:].ctypes.data, (2, 2, 4), "f4")
    assert found.strides == (12, 4, 1)

    class Host:
        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CPU, 0

        def __dlpack__(self, **_: Any) -> Any:
            return dlpack.make_capsule(
                array.ctypes.data, array.shape, "f4", device_type=dlpack.CPU, device=0, owner=self
            )

    before = len(dlpack._exported)
    view = np.from_dlpack(Host())
    np.testing.assert_array_equal(view, array)
    assert view.ctypes.data == array.ctypes.data and len(dlpack._exported) == before + 1
    del view
    assert len(dlpack._exported) == before
    unused = Host().__dlpack__()
    assert len(dlpack._exported) == before + 1
    del unused
    assert len(dlpack._exported) == before
    with pytest.raises(InputError, match="capsule"):
        dlpack.read_capsule(object())
