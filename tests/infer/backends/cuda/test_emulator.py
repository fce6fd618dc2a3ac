"""The emulated driver behaves as CUDA's documentation says, seen through pycuda: what the other tests stand on.

Covers what pycuda's own driver tests cover and an emulator without kernels can: memory, pools, copies, streams,
events, contexts.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda_emulator.emulator import COMPUTE, D2H, ENGINE_COMPUTE, H2D, ILLEGAL_ADDRESS, KERNEL, LAUNCH_FAILED, Access

from infer.errors import DeviceError

NON_BLOCKING = 1


@pytest.fixture
def cuda(emulator: Any) -> Iterator[Any]:
    """pycuda with a context of its own current."""
    import pycuda.driver as cuda

    cuda.init()
    context = cuda.Device(0).make_context()
    yield cuda
    context.pop()
    context.detach()


def pinned(cuda: Any, values: Any) -> Any:
    array = cuda.pagelocked_empty(np.shape(values), np.asarray(values).dtype)
    array[...] = values
    return array


@KERNEL
def _do_nothing(user: int, phase: int) -> None:
    pass


def launch(emulator: Any, stream: Any, *access: tuple[int, int, bool]) -> int:
    """A kernel that only claims to read or write memory."""
    array = (Access * max(1, len(access)))(*(Access(int(a), size, int(write), 0) for a, size, write in access))
    return int(emulator.lib.emu_launch(stream.handle, b"test", 0, array, len(access), _do_nothing, None))


def test_device(cuda: Any) -> None:
    assert cuda.Device.count() == 1 and cuda.get_driver_version() == 13000
    device = cuda.Device(0)
    assert "Emulated" in device.name() and device.compute_capability() == (8, 9)
    assert device.total_memory() == cuda.mem_get_info()[1] == 8 << 30
    assert device.get_attribute(cuda.device_attribute.ASYNC_ENGINE_COUNT) == 2
    assert cuda.Device(device.pci_bus_id()) == device
    with pytest.raises(cuda.LogicError, match="invalid device ordinal"):
        cuda.Device(1)


def test_memory_is_accounted_poisoned_and_freed_once(cuda: Any) -> None:
    free, _ = cuda.mem_get_info()
    memory = cuda.mem_alloc(1000)
    assert cuda.mem_get_info()[0] == free - 1000
    assert cuda.mem_get_address_range(int(memory) + 999) == (int(memory), 1000)
    host = np.zeros(1000, np.uint8)
    cuda.memcpy_dtoh(host, memory)
    assert (host == 0xCB).all()
    memory.free()
    assert cuda.mem_get_info()[0] == free
    with pytest.raises(cuda.LogicError, match="invalid"):
        memory.free()


def test_out_of_memory(cuda: Any, emulator: Any) -> None:
    emulator.memory(10_000)
    first = cuda.mem_alloc(6000)
    with pytest.raises(cuda.MemoryError, match="out of memory"):
        cuda.mem_alloc(6000)
    first.free()
    cuda.mem_alloc(6000).free()


@pytest.mark.parametrize("size", [1, 3, 4096, 100_003])
def test_copies(cuda: Any, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    a, b, back = cuda.mem_alloc(size), cuda.mem_alloc(size), np.empty_like(data)
    cuda.memcpy_htod(a, data)
    cuda.memcpy_dtod(b, a, size)
    cuda.memcpy_dtoh(back, b)
    assert (back == data).all()
    stream, half, result = cuda.Stream(NON_BLOCKING), size // 2, cuda.pagelocked_empty(size, np.uint8)
    reverse = pinned(cuda, data[::-1])
    cuda.memcpy_htod_async(a, reverse, stream)
    cuda.memcpy_dtod_async(b, a, size, stream)
    cuda.memcpy_dtoh_async(result, b, stream)
    stream.synchronize()
    assert (result == data[::-1]).all()
    cuda.memcpy_dtoh(back[half:], int(b) + half)  # into the middle of an allocation
    assert (back[half:] == data[::-1][half:]).all()


def test_copies_of_rectangles_and_fills(cuda: Any) -> None:
    source = np.arange(6 * 10, dtype=np.uint8).reshape(6, 10)
    memory, pitch = cuda.mem_alloc_pitch(10, 6, 4)
    assert pitch >= 10 and pitch % 4 == 0
    copy = cuda.Memcpy2D()
    copy.set_src_host(source)
    copy.set_dst_device(int(memory))
    copy.src_pitch, copy.dst_pitch, copy.width_in_bytes, copy.height = 10, pitch, 10, 6
    copy(aligned=False)
    back = np.zeros((2, 4), np.uint8)
    copy = cuda.Memcpy2D()
    copy.set_src_device(int(memory))
    copy.set_dst_host(back)
    copy.src_x_in_bytes, copy.src_y, copy.src_pitch = 3, 1, pitch
    copy.dst_pitch, copy.width_in_bytes, copy.height = 4, 4, 2
    copy(aligned=True)
    assert (back == source[1:3, 3:7]).all()
    words = np.empty(16, np.uint32)
    plain = cuda.mem_alloc(words.nbytes)
    cuda.memset_d32(plain, 0x01020304, 16)
    cuda.memset_d16(plain, 0x0506, 2)
    cuda.memset_d8_async(int(plain) + 60, 7, 4)
    cuda.memset_d2d8(plain, 16, 9, 2, 3)
    cuda.Context.synchronize()
    cuda.memcpy_dtoh(words, plain)
    assert words[0] == 0x05060909 and words[1] == 0x01020304 and words[8] == 0x01020909 and words[15] == 0x07070707


def test_managed_and_mapped_memory(cuda: Any) -> None:
    managed = cuda.managed_empty(8, np.int32, mem_flags=1)
    managed[:] = range(8)
    back = np.empty(8, np.int32)
    cuda.memcpy_dtoh(back, managed.base.get_device_pointer())
    assert (back == managed).all()
    mapped = cuda.pagelocked_empty(8, np.int32, mem_flags=cuda.host_alloc_flags.DEVICEMAP)
    assert mapped.base.get_flags() == cuda.host_alloc_flags.DEVICEMAP
    mapped[:] = 5
    cuda.memcpy_dtoh(back, mapped.base.get_device_pointer())
    assert (back == 5).all()


def test_pools(cuda: Any) -> None:
    from pycuda.tools import DeviceMemoryPool, PageLockedMemoryPool

    pool = DeviceMemoryPool()
    blocks = [pool.allocate(1 << e) for e in range(4, 12)]
    assert pool.active_blocks == 8
    del blocks
    assert pool.active_blocks == 0 and pool.held_blocks == 8
    pool.stop_holding()
    host_pool = PageLockedMemoryPool()
    array = host_pool.allocate((4, 4), np.float32)
    array[:] = 3
    del array
    host_pool.stop_holding()


def test_objects_with_a_pointer(cuda: Any) -> None:
    class Holder(cuda.PointerHolderBase):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.memory = cuda.mem_alloc(16)

        def get_pointer(self) -> int:
            return int(self.memory)

    holder, data, back = Holder(), np.arange(16, dtype=np.uint8), np.empty(16, np.uint8)
    cuda.memcpy_htod(holder, data)
    cuda.memcpy_dtoh(back, holder)
    assert (back == data).all()


def test_wrong_memory_is_refused(cuda: Any, emulator: Any) -> None:
    memory, data = cuda.mem_alloc(100), np.zeros(100, np.uint8)
    for address, size in ((int(memory) + 1, 100), (int(memory) - 1, 10), (0, 10), (data.ctypes.data, 10)):
        with pytest.raises(cuda.LogicError, match="invalid argument"):
            cuda.memcpy_htod(address, data[:size])
    address = int(memory)
    memory.free()
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        cuda.memcpy_dtoh(data, address)
    assert cuda.mem_alloc(100) != address  # an address is not given out twice


def test_a_write_beyond_the_end_is_seen(cuda: Any, emulator: Any) -> None:
    memory = cuda.mem_alloc(100)
    view = emulator.host_view(int(memory), 100)
    (ctypes.c_uint8 * 101).from_address(ctypes.addressof(view))[100] = 1
    memory.free()
    assert emulator.hazards() == ["device memory written outside its bounds"]
    emulator.clear_hazards()


def test_stale_handles_are_refused(cuda: Any, emulator: Any) -> None:
    stream, event = cuda.Stream(), ctypes.c_void_p()
    lib = emulator.lib
    assert lib.cuEventCreate(ctypes.byref(event), 0) == 0 and lib.cuEventDestroy_v2(event) == 0
    for call in (lib.cuEventSynchronize, lib.cuEventDestroy_v2, lib.cuEventQuery):
        assert call(event) == 400
    handle = ctypes.c_void_p(stream.handle)
    assert lib.cuEventRecord(event, handle) == 400
    del stream
    assert lib.cuStreamSynchronize(handle) == 400


def test_streams_run_in_order_and_copies_return_at_once(cuda: Any, emulator: Any) -> None:
    data, stream = pinned(cuda, np.arange(1000)), cuda.Stream(NON_BLOCKING)
    back, memory = cuda.pagelocked_empty(1000, data.dtype), cuda.mem_alloc(data.nbytes)
    emulator.delays(80, 80, 80)
    start = time.perf_counter()
    cuda.memcpy_htod_async(memory, data, stream)
    cuda.memcpy_dtoh_async(back, memory, stream)
    assert time.perf_counter() - start < 0.07
    assert not stream.is_done()
    back[:] = -1
    stream.synchronize()
    assert stream.is_done() and time.perf_counter() - start >= 0.16
    assert (back == data).all()


@pytest.mark.parametrize("synchronous", [False, True])
def test_pageable_copies_in_return_before_the_device_has_the_bytes(cuda: Any, emulator: Any, synchronous: bool) -> None:
    """What is in the host's memory by then does not matter: the driver has its own copy."""
    stream, memory, data = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(80), np.arange(10.0)
    emulator.delay(H2D, 40)
    with emulator.tracing() as operations:
        start = time.perf_counter()
        if synchronous:
            cuda.memcpy_htod(memory, data)
        else:
            cuda.memcpy_htod_async(memory, data, stream)
        assert time.perf_counter() - start < 0.03
        data[:] = -1
        cuda.Context.synchronize()
        cuda.memcpy_dtoh(data, memory)
        np.testing.assert_array_equal(data, np.arange(10.0))
    assert [op.pageable for op in operations] == [True, True]


def test_pageable_copies_out_wait(cuda: Any, emulator: Any) -> None:
    stream, memory = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(80)
    emulator.delay(D2H, 15)
    start = time.perf_counter()
    cuda.memcpy_dtoh_async(np.zeros(10), memory, stream)
    assert time.perf_counter() - start >= 0.014


def test_bytes_move_at_the_end_of_a_copy(cuda: Any, emulator: Any) -> None:
    """So both mistakes show: reading the destination before, and changing the source meanwhile."""
    data, back = pinned(cuda, np.ones(10, np.uint8)), pinned(cuda, np.zeros(10, np.uint8))
    stream, memory = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(10)
    emulator.delay(H2D, 100)
    cuda.memcpy_htod_async(memory, data, stream)
    data[:] = 2
    stream.synchronize()
    cuda.memcpy_dtoh(back, memory)
    assert (back == 2).all()
    emulator.delay(D2H, 150)
    cuda.memcpy_dtoh_async(back, memory, stream)
    time.sleep(0.01)
    assert (back == 0xCB).all()
    stream.synchronize()
    assert (back == 2).all()


@pytest.mark.parametrize(
    ("kinds", "parallel"), [("hc", True), ("cd", True), ("hd", True), ("hh", False), ("cc", False)]
)
def test_engines_work_side_by_side(cuda: Any, emulator: Any, kinds: str, parallel: bool) -> None:
    emulator.delays(80, 80, 80)
    kept: list[Any] = []
    with emulator.tracing() as operations:
        for kind in kinds:
            stream, memory, host = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64), pinned(cuda, np.zeros(64, np.uint8))
            kept += [stream, memory, host]
            if kind == "h":
                cuda.memcpy_htod_async(memory, host, stream)
            elif kind == "d":
                cuda.memcpy_dtoh_async(host, memory, stream)
            else:
                assert launch(emulator, stream, (memory, 64, True)) == 0
        cuda.Context.synchronize()
    first, second = sorted(operations, key=lambda op: op.start)
    assert (second.start < first.finish - 1) == parallel
    assert second.finish - first.start == pytest.approx(80 if parallel else 160, abs=60)


def test_a_wide_engine_runs_kernels_at_once(cuda: Any, emulator: Any) -> None:
    emulator.engine_width(ENGINE_COMPUTE, 2)
    emulator.delay(COMPUTE, 100)
    memory = cuda.mem_alloc(64)
    with emulator.tracing() as operations:
        for _ in range(3):
            launch(emulator, cuda.Stream(NON_BLOCKING), (memory, 64, False))
        cuda.Context.synchronize()
    starts = sorted(op.start for op in operations)
    assert starts[1] - starts[0] < 95 < starts[2] - starts[0]


def test_bandwidth_is_by_bytes(cuda: Any, emulator: Any) -> None:
    emulator.delay(H2D, 1, 1e6)
    stream, memory, host = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(10_000), pinned(cuda, np.zeros(10_000, np.uint8))
    with emulator.tracing() as operations:
        cuda.memcpy_htod_async(memory, host, stream)
        stream.synchronize()
    assert operations[0].finish - operations[0].start == pytest.approx(11)


def test_events(cuda: Any, emulator: Any) -> None:
    stream, memory, host = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64), pinned(cuda, np.zeros(64, np.uint8))
    start, end, never = cuda.Event(), cuda.Event(), cuda.Event()
    assert never.query()
    emulator.delay(H2D, 60)
    cuda.memcpy_htod_async(memory, host, stream)  # the rest is enqueued meanwhile
    start.record(stream)
    cuda.memcpy_htod_async(memory, host, stream)
    end.record(stream)
    assert not end.query()
    end.synchronize()
    assert end.query() and end.time_since(start) == pytest.approx(60, abs=0.01)
    assert start.time_till(end) == pytest.approx(60, abs=0.01)
    plain = cuda.Event(cuda.event_flags.DISABLE_TIMING).record(stream)
    with pytest.raises(cuda.LogicError, match="invalid resource handle"):
        plain.time_since(start)
    with pytest.raises(cuda.LogicError, match="invalid resource handle"):
        never.time_since(start)


def test_waiting_for_an_event_orders_streams(cuda: Any, emulator: Any) -> None:
    data, back = pinned(cuda, np.arange(64, dtype=np.uint8)), pinned(cuda, np.zeros(64, np.uint8))
    a, b, memory = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64)
    emulator.delay(H2D, 20)
    cuda.memcpy_htod_async(memory, data, a)
    b.wait_for_event(cuda.Event().record(a))
    cuda.memcpy_dtoh_async(back, memory, b)
    b.synchronize()
    assert (back == data).all()


def test_a_missing_wait_is_a_race_even_when_nothing_goes_wrong(cuda: Any, emulator: Any) -> None:
    host, memory = pinned(cuda, np.zeros(64, np.uint8)), cuda.mem_alloc(64)
    a, b = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING)
    emulator.delay(H2D, 80)
    cuda.memcpy_htod_async(memory, host, a)
    launch(emulator, b, (memory, 64, False))
    cuda.Context.synchronize()
    assert emulator.hazards() == ["race: compute test reads what H2D  writes"]
    emulator.clear_hazards()
    launch(emulator, a, (memory, 64, False))
    launch(emulator, b, (memory, 64, False))  # both only read
    cuda.Context.synchronize()
    assert emulator.hazards() == []


def test_freeing_memory_in_use_is_seen(cuda: Any, emulator: Any) -> None:
    host, memory, stream = pinned(cuda, np.zeros(64, np.uint8)), cuda.mem_alloc(64), cuda.Stream(NON_BLOCKING)
    emulator.delay(H2D, 80)
    cuda.memcpy_htod_async(memory, host, stream)
    memory.free()
    host.base.free()
    assert len(emulator.hazards()) == 2
    emulator.clear_hazards()


def test_the_default_stream_waits_for_blocking_streams_only(cuda: Any, emulator: Any) -> None:
    emulator.delay(H2D, 80)
    for flags, waits in ((0, True), (NON_BLOCKING, False)):
        stream, memory, host = cuda.Stream(flags), cuda.mem_alloc(64), pinned(cuda, np.zeros(64, np.uint8))
        other = cuda.mem_alloc(64)
        with emulator.tracing() as operations:
            cuda.memcpy_htod_async(memory, host, stream)
            cuda.memcpy_dtoh(np.empty(64, np.uint8), other)
        copy_in, copy_out = sorted(operations, key=lambda op: op.kind)
        assert (copy_out.start >= copy_in.finish) == waits


def test_contexts_are_a_stack_of_each_thread(cuda: Any, emulator: Any) -> None:
    inner = cuda.Device(0).make_context()
    assert cuda.Context.get_device() == cuda.Device(0)
    memory = cuda.mem_alloc(10)
    memory.free()
    inner.pop()
    cuda.mem_alloc(10).free()
    inner.push()
    inner.pop()
    inner.detach()
    assert emulator.live()["stack_depth"] == 1


def test_streams_belong_to_their_context(cuda: Any, emulator: Any) -> None:
    stream, memory, host = cuda.Stream(), cuda.mem_alloc(64), pinned(cuda, np.zeros(64, np.uint8))
    inner = cuda.Device(0).make_context()
    with pytest.raises(cuda.LogicError, match="invalid resource handle"):
        cuda.memcpy_htod_async(memory, host, stream)
    inner.pop()
    inner.detach()
    cuda.memcpy_htod_async(memory, host, stream)
    stream.synchronize()


def test_a_context_takes_everything_with_it(emulator: Any) -> None:
    import pycuda.driver as cuda

    cuda.init()
    context = cuda.Device(0).make_context()
    kept = (cuda.Stream(), cuda.mem_alloc(100), cuda.Event())
    assert emulator.live()["device_bytes"] == 100
    context.pop()
    context.detach()
    assert all(count == 0 for name, count in emulator.live().items() if name != "stack_depth")
    del kept


@pytest.mark.parametrize(("name", "call"), [("cuMemAlloc", "mem_alloc"), ("cuStreamCreate", "Stream")])
def test_failures_by_name_and_count(cuda: Any, emulator: Any, name: str, call: str) -> None:
    emulator.fail(name + ("_v2" if name == "cuMemAlloc" else ""), skip=1, count=2, code=LAUNCH_FAILED)
    results = []
    for _ in range(4):
        try:
            getattr(cuda, call)(8) if call == "mem_alloc" else getattr(cuda, call)()
            results.append(True)
        except cuda.LaunchError as error:
            assert str(error) == f"{name} failed: unspecified launch failure"
            results.append(False)
    assert results == [True, False, False, True]


def test_a_sticky_error_stays(cuda: Any, emulator: Any) -> None:
    stream, memory, host = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64), pinned(cuda, np.zeros(64, np.uint8))
    emulator.fail("op:h2d", code=ILLEGAL_ADDRESS)
    cuda.memcpy_htod_async(memory, host, stream)
    for call in (stream.synchronize, stream.is_done, lambda: cuda.mem_alloc(8), cuda.mem_get_info):
        with pytest.raises(cuda.LogicError, match="illegal memory access"):
            call()
    emulator.break_contexts(0)  # so that the fixture can clean up


def test_a_kernel_with_a_wrong_address_breaks_the_context(cuda: Any, emulator: Any) -> None:
    stream, memory = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64)
    assert launch(emulator, stream, (memory, 65, True)) == 0
    with pytest.raises(cuda.LogicError, match="illegal memory access"):
        stream.synchronize()
    assert len(emulator.hazards()) == 1
    emulator.clear_hazards()
    emulator.break_contexts(0)


def test_host_functions_run_in_order_and_may_not_use_cuda(cuda: Any, emulator: Any) -> None:
    seen: list[Any] = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @function
    def note(user: int) -> None:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        seen.append((user, emulator.lib.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))))

    stream, memory, host = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64), pinned(cuda, np.zeros(64, np.uint8))
    emulator.delay(H2D, 80)
    cuda.memcpy_htod_async(memory, host, stream)
    assert emulator.lib.cuLaunchHostFunc(ctypes.c_void_p(stream.handle), note, ctypes.c_void_p(7)) == 0
    assert seen == []
    stream.synchronize()
    assert seen == [(7, 800)]
    assert len(emulator.hazards()) == 1
    emulator.clear_hazards()


def test_capture_and_graphs(cuda: Any, emulator: Any) -> None:
    from infer.backends.cuda import driver

    data, back = pinned(cuda, np.arange(64, dtype=np.uint8)), pinned(cuda, np.zeros(64, np.uint8))
    stream, memory = cuda.Stream(NON_BLOCKING), cuda.mem_alloc(64)
    driver.begin_capture(stream.handle)
    cuda.memcpy_htod_async(memory, data, stream)
    cuda.memcpy_dtoh_async(back, memory, stream)
    graph = driver.end_capture(stream.handle)
    assert (back == 0).all()  # nothing has run
    executable = driver.instantiate_graph(graph, stream.handle)
    driver.destroy_graph(graph)
    for seed in range(3):
        data[:] = seed
        with emulator.tracing() as operations:
            driver.launch_graph(executable, stream.handle)
            stream.synchronize()
        assert (back == seed).all() and all(op.graph for op in operations)
    driver.destroy_executable(executable)


def test_what_capture_forbids_invalidates_it(cuda: Any) -> None:
    from infer.backends.cuda import driver

    stream = cuda.Stream(NON_BLOCKING)
    for call in (stream.synchronize, stream.is_done, lambda: cuda.mem_alloc(8), lambda: cuda.pagelocked_empty(8, "u1")):
        driver.begin_capture(stream.handle)
        with pytest.raises(cuda.LogicError, match="when stream is capturing"):
            call()
        with pytest.raises(DeviceError, match="previous error during capture"):
            driver.end_capture(stream.handle)
    with pytest.raises(DeviceError, match="not initiated in this stream"):
        driver.end_capture(stream.handle)
    cuda.mem_alloc(8).free()
