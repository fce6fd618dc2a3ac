"""Who waits for whom on device memory: results that are given up, inputs, closing, captures, short-lived streams."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import numpy as np
import pytest
from cuda_emulator.emulator import COMPUTE, D2D, D2H, OUT_OF_MEMORY
from device_user import Capsules, Device, Interface, fetch, outputs_for

from infer.backends.cuda import dlpack, driver
from infer.errors import DeviceError, DeviceMemoryError, InputError


def run(backend: Any, device: Device, stack: Any, seed: int, stream: int, rows: int = 8) -> Any:
    """Results of random images."""
    images = stack.images(rows, seed)
    return backend.infer_device(Interface(device.upload(images), images.shape), stream=stream)


def uploaded(device: Device, stack: Any, count: int) -> list[Interface]:
    """Random images of ``count`` seeds on the device. Before a race: an upload waits for everything there."""
    batches = [stack.images(8, seed) for seed in range(count)]
    return [Interface(device.upload(images), images.shape) for images in batches]


def read_late(device: Device, array: Any, reader: Any, told: int | None = None) -> Any:
    """A consumer that enqueues its read after the hand-over, then gives the array up; the target."""
    foreign = dlpack.read_capsule(array.__dlpack__(stream=reader.handle if told is None else told))
    host = device.cuda.pagelocked_empty(array.shape, array.dtype)
    device.cuda.memcpy_dtoh_async(host, foreign.pointer, reader)
    return host


@pytest.mark.parametrize("way", ["named", "minus one", "interface", "default", "per thread"])
def test_results_are_not_overwritten_while_others_read(stack_11: Any, device: Device, way: str) -> None:
    with stack_11.open(cuda_graphs=False) as backend:
        stream, hosts = device.stream(), []
        reader = None if way == "default" else device.stream()
        arrays = uploaded(device, stack_11, 12)
        stack_11.emulator.delay(D2H, 6)
        for array in arrays:
            results = backend.infer_device(array, stream=stream.handle)
            if way == "named":
                hosts.append(read_late(device, results.logits, reader))
            elif way == "default":
                capsule = results.logits.__dlpack__()
                hosts.append(device.cuda.pagelocked_empty((8, 10), np.float32))
                device.cuda.memcpy_dtoh_async(hosts[-1], dlpack.read_capsule(capsule).pointer)
                del capsule
            elif way == "interface":
                driver.wait_event(reader.handle, results.ready.handle)
                hosts.append(device.cuda.pagelocked_empty((8, 10), np.float32))
                pointer = results.logits.__cuda_array_interface__["data"][0]
                device.cuda.memcpy_dtoh_async(hosts[-1], pointer, reader)
            else:
                driver.wait_event(reader.handle, results.ready.handle)
                hosts.append(read_late(device, results.logits, reader, {"minus one": -1, "per thread": 2}[way]))
            del results
        device.cuda.Context.synchronize()
        for seed, host in enumerate(hosts):
            np.testing.assert_array_equal(host, stack_11.expected(stack_11.images(8, seed))[0])


def test_only_the_readers_are_waited_for(stack_11: Any, device: Device) -> None:
    """The block of a stream that alone knows it is used again at once, and no host waits for another stream."""
    with stack_11.open(cuda_graphs=False) as backend:
        stream, other = device.stream(), device.stream()
        pinned, memory = device.cuda.pagelocked_empty(64, np.uint8), device.upload(np.zeros(64, np.uint8))
        first = run(backend, device, stack_11, 0, stream.handle).logits.pointer
        stream.synchronize()
        stack_11.emulator.delay(D2H, 200)
        device.cuda.memcpy_dtoh_async(pinned, memory, other)
        synchronised = stack_11.emulator.calls("cuCtxSynchronize")
        array, start = Interface(device.memory[-1], (8, 8, 8, 3)), time.perf_counter()
        for _ in range(20):
            results = backend.infer_device(array, stream=stream.handle)
            assert results.logits.pointer == first
            del results
        stream.synchronize()
        assert time.perf_counter() - start < 0.15
        assert stack_11.emulator.calls("cuCtxSynchronize") == synchronised
        other.synchronize()


def test_many_readers_cost_no_synchronisation_of_the_context(stack_11: Any, device: Device) -> None:
    """And all of them are waited for: the last one reads latest, since the device copies for one at a time."""
    with stack_11.open(cuda_graphs=False) as backend:
        stream, readers, hosts = device.stream(), [device.stream() for _ in range(3)], []
        calls = stack_11.emulator.calls("cuCtxSynchronize")
        arrays = uploaded(device, stack_11, 40)
        uploads = stack_11.emulator.calls("cuCtxSynchronize") - calls
        stack_11.emulator.delay(D2H, 2)
        for array in arrays:
            results = backend.infer_device(array, stream=stream.handle)
            hosts.append([read_late(device, results.scores, reader) for reader in readers])
            del results
        device.cuda.Context.synchronize()
        assert stack_11.emulator.calls("cuCtxSynchronize") == calls + uploads + 1
        for seed, copies in enumerate(hosts):
            for host in copies:
                np.testing.assert_array_equal(host, stack_11.expected(stack_11.images(8, seed))[1])


@pytest.mark.parametrize("recycled", [False, True])
def test_a_stream_that_is_gone_costs_a_synchronisation(stack_11: Any, device: Device, recycled: bool) -> None:
    """Also where a new stream has its handle, which says nothing of what the old one still does."""
    stack_11.emulator.recycle_streams(recycled)
    with stack_11.open(cuda_graphs=False) as backend:
        stream, hosts = device.stream(), []
        arrays = uploaded(device, stack_11, 12)
        stack_11.emulator.delay(D2H, 10)
        for array in arrays:
            reader = device.cuda.Stream(1)
            hosts.append(read_late(device, backend.infer_device(array, stream=stream.handle).logits, reader))
            del reader
        device.cuda.Context.synchronize()
        for seed, host in enumerate(hosts):
            np.testing.assert_array_equal(host, stack_11.expected(stack_11.images(8, seed))[0])


def test_readers_of_one_result_by_two_streams_of_the_same_handle(stack_11: Any, device: Device) -> None:
    """The second stream has the handle of the first, which is gone, and still reads."""
    stack_11.emulator.recycle_streams()
    with stack_11.open(cuda_graphs=False) as backend:
        stream, hosts = device.stream(), []
        arrays = uploaded(device, stack_11, 12)
        stack_11.emulator.delay(D2H, 10)
        reader = device.cuda.Stream(1)
        for array in arrays:
            results = backend.infer_device(array, stream=stream.handle)
            hosts.append(read_late(device, results.logits, reader))
            handle = reader.handle
            del reader
            reader = device.cuda.Stream(1)
            assert reader.handle == handle
            dlpack.read_capsule(results.logits.__dlpack__(stream=reader.handle))
            del results
        device.cuda.Context.synchronize()
        for seed, host in enumerate(hosts):
            np.testing.assert_array_equal(host, stack_11.expected(stack_11.images(8, seed))[0])


@pytest.mark.parametrize("recycled", [False, True])
def test_short_lived_streams_do_not_make_the_pool_grow(stack_11: Any, device: Device, recycled: bool) -> None:
    stack_11.emulator.recycle_streams(recycled)
    with stack_11.open(cuda_graphs=False) as backend:
        array = Interface(device.upload(stack_11.images(8)), (8, 8, 8, 3))
        counts = []
        for _ in range(60):
            stream = device.cuda.Stream(1)
            results = backend.infer_device(array, stream=stream.handle)
            np.testing.assert_array_equal(results.logits.get(), stack_11.expected(stack_11.images(8))[0])
            del results, stream
            counts.append(stack_11.emulator.live()["device_allocations"])
        assert max(counts) - counts[0] <= 8
        assert stack_11.emulator.live()["events"] < 60


def test_a_result_in_the_hands_of_another_stream_is_told_of_it_once(stack_11: Any, device: Device) -> None:
    """Taken twice by one stream, a block is not made to wait twice; a stream under capture is left out of it."""
    with stack_11.open(cuda_graphs=False) as backend:
        stream, reader = device.stream(), device.stream()
        array = Interface(device.upload(stack_11.images(8)), (8, 8, 8, 3))
        for _ in range(10):
            results = backend.infer_device(array, stream=stream.handle)
            for _ in range(2):
                dlpack.read_capsule(results.logits.__dlpack__(stream=reader.handle))
            del results
        device.cuda.Context.synchronize()
        driver.begin_capture(reader.handle)
        found = [backend.infer_device(array, stream=stream.handle) for _ in range(3)]
        del found
        driver.destroy_graph(driver.end_capture(reader.handle))  # whole


@pytest.mark.parametrize("way", ["dlpack", "interface"])
@pytest.mark.parametrize("kept", ["logits", "ready", "nothing"])
def test_the_input_is_kept_until_it_is_read(stack_11: Any, device: Device, way: str, kept: str) -> None:
    class Owner(Capsules if way == "dlpack" else Interface):  # type: ignore[misc]
        def __del__(self) -> None:
            freed.append(time.perf_counter())

    freed: list[float] = []
    with stack_11.open(cuda_graphs=False) as backend:
        images, stream = stack_11.images(8), device.stream()
        owner = Owner(device.upload(images), images.shape)
        array, others = Interface(device.upload(images), images.shape), device.stream()
        stack_11.emulator.delay(COMPUTE, 200)
        results = backend.infer_device(owner, stream=stream.handle)
        held = getattr(results, kept, None)
        del owner, results
        gc.collect(0)  # a whole collection takes longer than the network where many modules are loaded
        assert freed == []
        # another batch looks for what is done, and this one is not
        other = backend.infer_device(array, stream=others.handle)
        gc.collect(0)
        assert freed == []
        stream.synchronize()
        other.ready.synchronize()
        backend.infer_device(array, stream=stream.handle)
        gc.collect(0)
        assert len(freed) == 1
        del held, other


def test_close_waits_for_a_call_under_way(stack_11: Any, device: Device) -> None:
    """Here for one that is in the middle of importing its input; memory is not freed under it."""
    backend, inside, go = stack_11.open(), threading.Event(), threading.Event()
    images = stack_11.images(4)
    memory = device.upload(images)

    class Slow(Capsules):
        def __dlpack__(self, *, stream: int, max_version: Any = None) -> Any:
            inside.set()
            assert go.wait(10)
            return super().__dlpack__(stream=stream)

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(backend.infer_device(Slow(memory, images.shape))))
    thread.start()
    assert inside.wait(10)
    closing = threading.Thread(target=backend.close)
    closing.start()
    time.sleep(0.03)
    assert closing.is_alive()
    with pytest.raises(InputError, match="closed"):  # nobody new comes in meanwhile
        backend.own_stream()
    with pytest.raises(InputError, match="closed"):
        backend.infer_device(Interface(memory, images.shape))
    go.set()
    thread.join(10)
    closing.join(10)
    assert not closing.is_alive() and len(found) == 1
    with pytest.raises(InputError, match="closed"):
        found[0].logits.get()
    found.clear()


def test_close_from_inside_a_call(stack_11: Any, device: Device) -> None:
    """By the code of an input, for example: the call still ends, then the runner goes."""
    backend = stack_11.open()
    images = stack_11.images(4)

    class Closing(Capsules):
        def __dlpack__(self, *, stream: int, max_version: Any = None) -> Any:
            backend.close()
            return super().__dlpack__(stream=stream)

    before = stack_11.emulator.live()["retained"]
    results = backend.infer_device(Closing(device.upload(images), images.shape), stream=device.stream().handle)
    del results
    gc.collect()
    end = time.monotonic() + 5
    while stack_11.emulator.live()["retained"] == before and time.monotonic() < end:
        time.sleep(0.001)
    assert stack_11.emulator.live()["retained"] == before - 1
    with pytest.raises(InputError, match="closed"):
        backend.own_stream()


def test_close_waits_for_work_but_not_for_holders(stack_11: Any, device: Device) -> None:
    """What was handed out is readable behind the close, and freed with its last holder."""
    backend, stream = stack_11.open(cuda_graphs=False), device.stream()
    before = stack_11.emulator.live()["device_bytes"]
    stack_11.emulator.delay(COMPUTE, 40)
    results = run(backend, device, stack_11, 3, stream.handle)
    capsule, pointer = results.logits.__dlpack__(stream=stream.handle), results.logits.pointer
    start = time.perf_counter()
    backend.close()
    assert time.perf_counter() - start >= 0.035
    del results
    gc.collect()
    host = device.download(pointer, (8, 10), np.float32)
    np.testing.assert_array_equal(host, stack_11.expected(stack_11.images(8, 3))[0])
    held = stack_11.emulator.live()
    del capsule
    end = time.monotonic() + 5
    while stack_11.emulator.live()["retained"] == held["retained"] and time.monotonic() < end:
        time.sleep(0.001)
    now = stack_11.emulator.live()
    assert now["device_bytes"] < held["device_bytes"] < before + 4096 and now["retained"] == held["retained"] - 1


def test_the_pool_is_freed_behind_its_readers(stack_11: Any, device: Device) -> None:
    backend, stream, reader = stack_11.open(cuda_graphs=False), device.stream(), device.stream()
    stack_11.emulator.delay(D2H, 40)
    host = read_late(device, run(backend, device, stack_11, 4, stream.handle).logits, reader)
    backend.close()
    reader.synchronize()
    np.testing.assert_array_equal(host, stack_11.expected(stack_11.images(8, 4))[0])


def test_destructors_make_no_cuda_call(stack_11: Any, device: Device) -> None:
    with stack_11.open() as backend:
        results = run(backend, device, stack_11, 5, device.stream().handle)
        capsule = results.logits.__dlpack__(stream=-1)
        results.ready.synchronize()
        watched = ("cuCtxPushCurrent_v2", "cuEventRecord", "cuMemFree_v2", "cuEventDestroy_v2", "cuCtxSynchronize")
        calls = [stack_11.emulator.calls(name) for name in watched]
        del results, capsule
        gc.collect()
        assert [stack_11.emulator.calls(name) for name in watched] == calls


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_stream_under_capture_is_refused_and_its_capture_left_whole(stack: Any, device: Device, mode: int) -> None:
    with stack.open() as backend:
        stream, other, images = device.stream(), device.stream(), stack.images(4)
        pointer, outputs = device.upload(images), outputs_for(device, 4)
        results = backend.infer_device(Interface(pointer, images.shape), stream=other.handle)
        assert driver.library().cuStreamBeginCapture_v2(stream.handle, mode) == 0
        for call in (
            lambda: backend.infer_device(Interface(pointer, images.shape), stream=stream.handle),
            lambda: backend.enqueue(int(pointer), 4, [int(one) for one in outputs], stream.handle),
            lambda: results.logits.__dlpack__(stream=stream.handle),
        ):
            with pytest.raises(InputError, match="being captured into a CUDA graph"):
                call()
        more = [backend.infer_device(Interface(pointer, images.shape), stream=other.handle) for _ in range(10)]
        while not more[-1].ready.query():
            pass
        graph = driver.end_capture(stream.handle)
        driver.destroy_graph(graph)
        np.testing.assert_array_equal(more[0].logits.get(), stack.expected(images)[0])


def test_the_default_stream_beside_a_capture_of_a_blocking_one(stack_11: Any, device: Device) -> None:
    with stack_11.open() as backend:
        images, blocking = stack_11.images(2), device.cuda.Stream()
        array = Interface(device.upload(images), images.shape)
        driver.begin_capture(blocking.handle)
        with pytest.raises(InputError, match="captured"):
            backend.infer_device(array)
        driver.destroy_graph(driver.end_capture(blocking.handle))
        del blocking


def test_the_per_thread_default_stream(stack_11: Any, device: Device) -> None:
    """``enqueue`` puts it in order where it is called; results that live on cannot be in its order."""
    with stack_11.open(cuda_graphs=False) as backend:
        images = stack_11.images(4)
        with pytest.raises(InputError, match="another stream in each thread"):
            backend.infer_device(Interface(device.upload(images), images.shape), stream=2)
        outputs, memory = outputs_for(device, 4), device.cuda.mem_alloc(images.nbytes)
        device.memory.append(memory)
        pinned = device.cuda.pagelocked_empty(images.shape, np.uint8)
        pinned[:] = images
        stack_11.emulator.delays(20, 20, 1)
        copy = driver.library().cuMemcpyHtoDAsync_v2
        copy.argtypes = [driver.ctypes.c_uint64, driver.ctypes.c_void_p, driver.ctypes.c_size_t, driver.ctypes.c_void_p]
        assert copy(int(memory), pinned.ctypes.data, images.nbytes, 2) == 0
        backend.enqueue(int(memory), 4, [int(one) for one in outputs], 2)
        driver.synchronize_stream(2)
        np.testing.assert_array_equal(fetch(device, outputs, 4)[0], stack_11.expected(images)[0])
        pinned.base.free()


@pytest.mark.parametrize("rows", [1, 8])
def test_captured_batch_sizes_run_as_graphs_on_the_runner_s_own_blocks(stack: Any, device: Device, rows: int) -> None:
    with stack.open(stack.write(num_classes=100, top_k=70), slots=2) as backend:
        stream, other = device.stream(), device.stream()
        stack.emulator.delays(1, 5, 1)
        batches = [stack.images(rows, seed) for seed in range(8)]
        arrays = [Interface(device.upload(images), images.shape) for images in batches]
        with stack.emulator.tracing() as operations:
            found = []
            for number, (images, array) in enumerate(zip(batches, arrays, strict=True)):
                found.append(backend.infer_device(array, stream=(stream, other)[number % 2].handle))
                found[-1:] = [found[-1], backend.submit(images)]
            for images, results, future in zip(batches, found[::2], found[1::2], strict=True):
                stack.check(images, future.result(10))
                for have, want in zip(results[:3], stack.expected(images), strict=True):
                    np.testing.assert_array_equal(have.get(), want)
        networks = [op for op in operations if op.kind == COMPUTE]
        outside = stack.target == "tensorrt"
        assert [op.graph != 0 for op in networks] == [outside] * 16
        assert sum(op.kind == D2D for op in operations) == (16 if outside else 0)
        del found, results


def test_out_of_memory_on_the_device_path(stack_11: Any, device: Device) -> None:
    with stack_11.open() as backend:
        stream = device.stream().handle
        array = Interface(device.upload(stack_11.images(8)), (8, 8, 8, 3))
        held = [backend.infer_device(array, stream=stream)]
        stack_11.emulator.fail("cuMemAlloc_v2", code=OUT_OF_MEMORY, count=-1)
        with pytest.raises(DeviceMemoryError, match="cuMemAlloc"):
            backend.infer_device(array, stream=stream)
        held.clear()  # what nobody holds serves, though another stream knows it
        second = device.stream().handle
        results = backend.infer_device(array, stream=second)
        np.testing.assert_array_equal(results.logits.get(), stack_11.expected(stack_11.images(8))[0])


def test_idle_blocks_of_other_sizes_make_room(stack_11: Any, device: Device) -> None:
    with stack_11.open(stack_11.write(num_classes=4000)) as backend:
        stream = device.stream().handle
        arrays = {rows: Interface(device.upload(stack_11.images(rows)), (rows, 8, 8, 3)) for rows in (8, 2)}
        backend.infer_device(arrays[8], stream=stream)  # a large block, idle now
        stack_11.emulator.memory(stack_11.emulator.live()["device_bytes"] + 1000)
        results = backend.infer_device(arrays[2], stream=stream)
        np.testing.assert_array_equal(results.logits.get(), stack_11.expected(stack_11.images(2))[0])


@pytest.mark.parametrize("function", ["cuEventRecord", "cuStreamWaitEvent", "emu_launch", "cuEventCreate"])
def test_nothing_of_pycuda_s_leaves_the_device_path(stack: Any, device: Device, function: str) -> None:
    with stack.open(cuda_graphs=False) as backend:
        images, stream = stack.images(4), device.stream()
        array = Interface(device.upload(images), images.shape)
        for skip in range(3):
            stack.emulator.fail(function, skip=skip)
            try:
                results = backend.infer_device(array, stream=stream.handle)
            except DeviceError as error:
                assert (not error.sticky and "304" in str(error)) or "OS call" in str(error)
            else:
                np.testing.assert_array_equal(results.logits.get(), stack.expected(images)[0])
                del results
            stack.emulator.fail_clear()
        results = backend.infer_device(array, stream=stream.handle)
        np.testing.assert_array_equal(results.logits.get(), stack.expected(images)[0])


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("cuStreamCreate", lambda backend, results: backend.own_stream()),
        ("cuMemcpyDtoH_v2", lambda backend, results: results.logits.get()),
        ("cuEventSynchronize", lambda backend, results: results.logits.get()),
        ("cuEventQuery", lambda backend, results: results.ready.query()),
        ("cuEventSynchronize", lambda backend, results: results.ready.synchronize()),
        ("cuStreamIsCapturing", lambda backend, results: results.logits.__dlpack__(stream=-2 + 3)),
    ],
)
def test_every_call_explains_its_errors(stack_11: Any, device: Device, function: str, call: Any) -> None:
    with stack_11.open() as backend:
        results = run(backend, device, stack_11, 1, device.stream().handle)
        results.ready.synchronize()
        stack_11.emulator.fail(function)
        with pytest.raises(DeviceError, match=r"failed: .*(304|OS call failed)") as caught:
            call(backend, results)
        assert not caught.value.sticky and type(caught.value).__module__ == "infer.errors"
        call(backend, results)


def depth(stack: Any) -> int:
    return int(stack.emulator.live()["stack_depth"])


@pytest.mark.parametrize("code", [304, 700])
def test_an_error_that_surfaces_when_the_context_is_left(stack_11: Any, device: Device, code: int) -> None:
    """It is the runner's own exception, sticky by its code, and the context does not stay current."""
    backend = stack_11.open()
    before = depth(stack_11)
    stack_11.emulator.fail("cuCtxPopCurrent_v2", skip=1, code=code, sticky=code == 700)
    with pytest.raises(DeviceError) as caught:
        backend.own_stream()
    assert caught.value.sticky == (code == 700)
    assert type(caught.value) is DeviceError and depth(stack_11) == before
    thread = threading.Thread(target=lambda: None)  # pycuda aborts when a thread ends with a context on its stack
    thread.start()
    thread.join()
    if code == 304:
        stack_11.check(stack_11.images(2), backend.infer(stack_11.images(2)))
        backend.close()
        return
    stack_11.emulator.fail_clear()
    with pytest.raises(DeviceError, match=r"leaving the CUDA context.*illegal memory access"):
        backend.infer(stack_11.images(1))
    backend.close()


def test_the_first_cause_is_kept(stack_11: Any, device: Device) -> None:
    """Of an error in a call and another when the context is left, the first is told."""
    with stack_11.open(cuda_graphs=False) as backend:
        array = Interface(device.upload(stack_11.images(2)), (2, 8, 8, 3))
        before = depth(stack_11)
        stack_11.emulator.fail("emu_launch")
        stack_11.emulator.fail("cuCtxPopCurrent_v2", skip=1, code=1)
        with pytest.raises(DeviceError, match=r"enqueueV3.*\(304\)"):
            backend.infer_device(array, stream=device.stream().handle)
        stack_11.emulator.fail_clear()
        assert depth(stack_11) == before


@pytest.mark.parametrize(("code", "sticky"), [(700, True), (719, True), (1, False), (304, False), (400, False)])
def test_a_sticky_error_is_told_by_its_code(stack_11: Any, device: Device, code: int, sticky: bool) -> None:
    backend = stack_11.open(cuda_graphs=False)
    stream = device.stream().handle
    stack_11.emulator.fail("cuEventRecord", code=code)
    with pytest.raises(DeviceError) as caught:
        run(backend, device, stack_11, 1, stream)
    assert caught.value.sticky == sticky
    # A call that asks for the context's health may fail of itself: that breaks nothing.
    if not sticky:
        stack_11.emulator.fail("cuEventRecord", code=code)
        stack_11.emulator.fail("cuMemGetInfo_v2", code=304)
        with pytest.raises(DeviceError) as caught:
            run(backend, device, stack_11, 1, stream)
        assert not caught.value.sticky
    stack_11.emulator.fail_clear()
    device.cuda.Context.synchronize()
    backend.close()


def test_results_of_a_broken_context(stack_11: Any, device: Device) -> None:
    backend = stack_11.open()
    results = run(backend, device, stack_11, 1, device.stream().handle)
    results.ready.synchronize()
    stack_11.emulator.break_contexts()
    with pytest.raises(DeviceError, match="illegal memory access"):
        results.logits.get()
    with pytest.raises(DeviceError, match="illegal memory access"):
        backend.own_stream()
    backend.close()
    del results
    stack_11.emulator.break_contexts(0)  # for the other user of the device
