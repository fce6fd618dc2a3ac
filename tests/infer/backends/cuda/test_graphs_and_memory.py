"""CUDA graphs and their fallback, kernels cached by TensorRT for RTX, and opening when memory is short."""

from __future__ import annotations

import json
import logging
import re
import threading
from typing import Any

import pytest
from cuda_emulator.emulator import COMPUTE, NOT_SUPPORTED, OUT_OF_MEMORY
from trt_stand_in.runtime import Counters

from infer.backends.cuda import driver
from infer.backends.cuda.session import _ladder
from infer.errors import DeviceError, DeviceMemoryError, InputError


def networks(stack: Any, backend: Any, sizes: tuple[int, ...]) -> list[bool]:
    """For each batch size: whether its network was launched by a graph, on every slot."""
    used = []
    for rows in sizes:
        images = stack.images(rows, rows)
        with stack.emulator.tracing() as operations:
            for outputs in backend.stream([images] * backend.in_flight):
                stack.check(images, outputs)
        launched = {op.graph != 0 for op in operations if op.kind == COMPUTE}
        assert len(launched) == 1
        used += launched
    return used


def test_graphs_run_the_captured_batch_sizes(stack: Any) -> None:
    outside = stack.target == "tensorrt"  # TensorRT for RTX captures by itself
    with stack.open() as backend:
        assert networks(stack, backend, (1, 2, 8, 1)) == [outside, False, outside, outside]
    with stack.open(graph_batches=(2, 4, 100)) as backend:
        assert networks(stack, backend, (1, 2, 4, 8)) == [False, outside, outside, False]
    with stack.open(cuda_graphs=False) as backend:
        assert networks(stack, backend, (1, 8)) == [False, False]
    assert stack.emulator.live()["executable_graphs"] == stack.emulator.live()["graphs"] == 0


def test_each_graph_has_an_execution_of_its_own(stack: Any) -> None:
    with stack.open(slots=2, graph_batches=(1, 4, 8)):
        assert Counters.executions == (8 if stack.target == "tensorrt" else 2)
    assert Counters.executions == 0


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_batches_run_without_a_graph_that_cannot_be_made(stack_11: Any, function: str) -> None:
    stack_11.emulator.fail(function, count=-1, code=NOT_SUPPORTED)
    with stack_11.open() as backend:
        stack_11.emulator.fail_clear()
        assert len(backend.notes) == 2 and "no CUDA graph for batches of 1" in backend.notes[0]
        assert networks(stack_11, backend, (1, 8, 3)) == [False, False, False]


def test_other_threads_use_the_device_while_a_graph_is_captured(stack_11: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's allocator in another thread must neither fail nor spoil the capture."""
    end, refused = driver.end_capture, []

    def allocate(context: int) -> None:
        try:
            assert driver.push_context(context) == 0
            driver.free(driver.allocate(64))
            driver.pop_context()
        except DeviceError as error:
            refused.append(error)

    def end_later(stream: int) -> int:
        other = threading.Thread(target=allocate, args=(driver.current_context(),))
        other.start()
        other.join()
        return end(stream)

    monkeypatch.setattr(driver, "end_capture", end_later)
    with stack_11.open() as backend:
        assert (refused, backend.notes) == ([], [])
        assert networks(stack_11, backend, (1, 8)) == [True, True]


def test_a_network_that_cannot_be_captured(stack: Any) -> None:
    with stack.open(stack.write(capturable=False)) as backend:
        notes = 2 if stack.target == "tensorrt" else 0
        assert len(backend.notes) == notes
        assert all("stream is capturing" in note for note in backend.notes)
        assert networks(stack, backend, (1, 8)) == [False, False]


def test_rtx_keeps_what_it_compiled_beside_the_bundle(stack: Any) -> None:
    cache, path = stack.folder / "tensorrt_rtx.cache", stack.write()
    rtx = stack.target == "tensorrt_rtx"
    compiled = Counters.compiled
    with stack.open(path, runtime_cache=cache) as backend:
        assert cache.exists() == rtx  # once it is warm, and again when it is closed
        backend.infer(stack.images(5))
    assert Counters.compiled - compiled == (3 if rtx else 0)
    if not rtx:
        assert not cache.exists()
        return
    assert json.loads(cache.read_bytes())["kernels"] == [1, 5, 8]
    written = cache.stat().st_mtime_ns
    with stack.open(path, runtime_cache=cache) as backend:
        backend.infer(stack.images(5))
    assert Counters.compiled - compiled == 3
    assert cache.stat().st_mtime_ns == written  # nothing new, nothing written
    for broken in (b"", b"garbage", b'{"version": "0", "kernels": [1]}'):
        cache.write_bytes(broken)
        with stack.open(path, runtime_cache=cache) as backend:
            stack.check(stack.images(5), backend.infer(stack.images(5)))
        assert json.loads(cache.read_bytes())["kernels"] == [1, 5, 8]
    assert list(stack.folder.glob(".*")) == []


def test_rtx_compiles_for_batch_sizes_as_asked(stack: Any) -> None:
    compiled = Counters.compiled
    with stack.open(slots=1) as backend:
        stack.check(stack.images(5), backend.infer(stack.images(5)))
    assert Counters.compiled - compiled == (3 if stack.target == "tensorrt_rtx" else 0)
    assert Counters.in_background == 0
    compiled = Counters.compiled
    with stack.open(specialization="none", slots=1) as backend:
        stack.check(stack.images(5), backend.infer(stack.images(5)))
    assert Counters.compiled == compiled
    with stack.open(specialization="eager", slots=1) as backend:
        stack.check(stack.images(5), backend.infer(stack.images(5)))
    assert (Counters.compiled > compiled) == (stack.target == "tensorrt_rtx")
    with pytest.raises(InputError, match="eager, none"):
        stack.open(specialization="lazy")


def test_a_cache_that_cannot_be_written_is_no_error(stack: Any) -> None:
    blocked = stack.folder / "file"
    blocked.write_text("no folder")
    with stack.open(runtime_cache=blocked / "cache") as backend:
        stack.check(stack.images(2), backend.infer(stack.images(2)))


def test_the_ladder_gives_up_slots_and_batch_in_turn() -> None:
    assert list(_ladder(3, 8)) == [(3, 8), (2, 8), (2, 4), (2, 2), (2, 1), (1, 1)]
    assert list(_ladder(1, 4)) == [(1, 4), (1, 2), (1, 1)]
    assert list(_ladder(5, 1)) == [(5, 1), (4, 1), (3, 1), (2, 1), (1, 1)]


def needs(stack: Any, path: Any, **options: Any) -> int:
    """Device memory of an open backend in bytes."""
    with stack.open(path, cuda_graphs=False, **options):
        return int(stack.emulator.live()["device_bytes"])


@pytest.mark.parametrize(("slots", "batch"), [(2, 8), (2, 4), (2, 1), (1, 1)])
def test_short_memory_costs_slots_then_batch(
    stack: Any, slots: int, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = stack.write(scratch_bytes=10_000, scratch_per_image=50_000)
    stack.emulator.memory(needs(stack, path, slots=slots, max_batch=batch) + 100)
    with stack.open(path) as backend:
        assert (backend.max_batch, backend.in_flight) == (batch, 2 * slots)
        note = f"device memory is short: {slots} slots of {batch} images instead of 3 slots of 8"
        assert note in backend.notes and note in caplog.text
        stack.check(stack.images(batch), backend.infer(stack.images(batch)))


def test_graphs_are_given_up_before_slots(stack_11: Any) -> None:
    path = stack_11.write(context_bytes=100_000)
    stack_11.emulator.memory(needs(stack_11, path) + 150_000)
    with stack_11.open(path) as backend:
        assert backend.in_flight == 6
        assert ["no CUDA graph" in note for note in backend.notes] == [True, True]
        assert networks(stack_11, backend, (8, 1)) == [False, False]


def test_memory_that_is_not_enough_is_named(stack: Any) -> None:
    path = stack.write(scratch_bytes=10_000, scratch_per_image=50_000)
    needed = needs(stack, path, slots=1, max_batch=1)
    stack.emulator.memory(needed - 100)
    with pytest.raises(DeviceMemoryError) as caught:
        stack.open(path)
    message = str(caught.value)
    assert "one slot with a batch of 1" in message and "smaller batch" in message
    numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]{3,}", message)]
    weights = stack.plan.weights_bytes
    assert 0 < needed - weights - numbers[0] < 2000  # needed beyond the weights, but for what the context keeps
    assert numbers[1:] == [needed - 100 - weights, needed - 100]  # free and total


def test_weights_that_do_not_fit_are_named(stack: Any) -> None:
    stack.emulator.memory(1000)
    with pytest.raises(DeviceMemoryError, match=r"the weights need .* out of memory"):
        stack.open()


def test_pinned_memory_can_run_out_too(stack_11: Any) -> None:
    stack_11.emulator.fail("cuMemHostAlloc", skip=10, code=OUT_OF_MEMORY)
    with stack_11.open() as backend:
        assert backend.in_flight == 4


def test_another_error_is_not_taken_for_short_memory(stack: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stack.emulator.fail("cuMemAlloc_v2", skip=2, code=719)
    with pytest.raises(Exception, match=r"launch failure|719") as caught:
        stack.open()
    assert not isinstance(caught.value, DeviceMemoryError) and isinstance(caught.value, DeviceError)
