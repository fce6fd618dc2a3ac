"""What happens when CUDA or TensorRT fail: one batch is lost or the runner is broken, and nothing leaks or hangs."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any

import pytest
from cuda_emulator.emulator import COMPUTE, ILLEGAL_ADDRESS, REFUSED
from device_user import Device, Interface
from soak import PLAIN, soak

from infer.backends.cuda import driver
from infer.backends.cuda.staging import Staging
from infer.errors import DeviceError, IResNetError


@pytest.mark.parametrize("function", PLAIN)
def test_a_call_that_fails_costs_one_batch(stack: Any, function: str) -> None:
    with stack.open(cuda_graphs=False) as backend:
        for seed in range(4):  # every slot, once more
            stack.emulator.fail(function, code=REFUSED)
            future = backend.submit(stack.images(5, seed))
            with pytest.raises(DeviceError, match="batch of 5 failed") as caught:
                future.result(10)
            assert not caught.value.sticky
            stack.check(stack.images(8), backend.infer(stack.images(8)))
            stack.emulator.fail(function, code=REFUSED)
            with pytest.raises(DeviceError):
                backend.infer(stack.images(2, seed))
            stack.check(stack.images(3), backend.infer(stack.images(3)))


def test_a_graph_that_does_not_launch_costs_one_batch(stack_11: Any) -> None:
    with stack_11.open() as backend:
        stack_11.emulator.fail("cuGraphLaunch")
        with pytest.raises(DeviceError, match="cuGraphLaunch"):
            backend.infer(stack_11.images(8))
        stack_11.check(stack_11.images(8), backend.infer(stack_11.images(8)))


def test_what_tensorrt_logs_is_in_the_message(stack: Any) -> None:
    with stack.open(cuda_graphs=False) as backend:
        stack.emulator.fail("emu_launch", code=700)
        with pytest.raises(DeviceError, match=r"enqueueV3.*Cuda Driver \(700\)"):
            backend.infer(stack.images(1))


@pytest.mark.parametrize("operation", ["op:h2d", "op:compute", "op:d2h"])
def test_a_broken_context_fails_fast_with_the_first_cause(stack: Any, operation: str) -> None:
    backend = stack.open()
    stack.emulator.delays(50, 50, 50)  # the failure comes after all three are submitted
    stack.check(stack.images(4), backend.infer(stack.images(4)))
    stack.emulator.fail(operation, code=ILLEGAL_ADDRESS)
    futures = [backend.submit(stack.images(4, seed)) for seed in range(3)]
    first = futures[0].exception(10)
    assert isinstance(first, DeviceError) and first.sticky
    assert "illegal memory access" in str(first) and "new process" in str(first)
    assert [str(future.exception(10)) for future in futures[1:]] == [str(first)] * 2
    calls = stack.emulator.calls("cuMemcpyHtoDAsync_v2")
    for call in (backend.submit, backend.infer, backend.profile):
        with pytest.raises(DeviceError, match="illegal memory access"):
            call(stack.images(1))
    with pytest.raises(DeviceError, match="illegal memory access"):
        backend.acquire(1)
    assert stack.emulator.calls("cuMemcpyHtoDAsync_v2") == calls
    backend.close()
    backend.close()


def test_threads_that_wait_for_a_slot_are_told(stack_11: Any) -> None:
    with stack_11.open(slots=1) as backend:
        stack_11.emulator.delay(2, 30)
        stack_11.emulator.fail("op:compute", code=ILLEGAL_ADDRESS)
        results: list[Future[Any] | BaseException] = []

        def work() -> None:
            try:
                results.append(backend.infer(stack_11.images(1)))
            except IResNetError as error:
                results.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(results) == 6
        assert all(isinstance(result, DeviceError) and result.sticky for result in results)


def test_closing_a_broken_runner_leaves_the_context_to_others(stack: Any) -> None:
    """Another user of the primary context must not be surprised by a release too many."""
    import pycuda.driver as cuda

    cuda.init()
    other = cuda.Device(0).retain_primary_context()
    backend = stack.open()
    stack.emulator.break_contexts()
    with pytest.raises(DeviceError):
        backend.infer(stack.images(1))
    backend.close()
    assert stack.emulator.live()["retained"] == 1
    release(other)


def release(context: Any) -> None:
    """Give up a primary context as :meth:`infer.backends.cuda.context.PrimaryContext.release` does."""
    from infer.backends.cuda import driver

    context.push()
    driver.pop_context()
    context.detach()


@pytest.mark.parametrize(
    "function",
    [
        *("cuStreamCreate", "cuEventCreate", "cuMemAlloc_v2", "cuMemHostAlloc", "cuMemcpyHtoDAsync_v2", "emu_launch"),
        *("cuEventRecord", "cuEventSynchronize", "cuDevicePrimaryCtxRetain"),
    ],
)
def test_opening_can_fail_anywhere_and_leaves_nothing(stack: Any, function: str) -> None:
    path = stack.write()
    calls = stack.emulator.calls(function)
    stack.open(path).close()
    calls = stack.emulator.calls(function) - calls
    assert calls > 0
    for skip in range(calls):
        stack.emulator.fail(function, skip=skip, code=REFUSED)
        try:
            backend = stack.open(path)
        except Exception as error:
            assert "OS call failed" in str(error) or "304" in str(error), error
        else:  # only what is not needed, a graph, may fail without an error
            stack.check(stack.images(8), backend.infer(stack.images(8)))
            assert backend.notes
            backend.close()
        stack.emulator.fail_clear()
        assert stack.emulator.live()["contexts"] == 0


def test_opening_interrupted_while_a_batch_runs(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is freed behind it: the fixture sees memory that is freed in use."""

    def interrupted(self: Staging) -> None:
        raise KeyboardInterrupt

    stack.emulator.delay(COMPUTE, 50)
    monkeypatch.setattr(Staging, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stack.open()
    assert stack.emulator.live()["contexts"] == 0


def test_an_interrupted_launch_costs_no_buffer(stack_11: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Staging, rows: int) -> None:
        raise KeyboardInterrupt

    with stack_11.open() as backend:
        with monkeypatch.context() as patch:
            patch.setattr(Staging, "launch", interrupted)
            for call in (backend.submit, backend.infer):
                with pytest.raises(KeyboardInterrupt):
                    call(stack_11.images(4))
        held = [backend.acquire(1, timeout=2) for _ in range(backend.in_flight)]
        for batch in held:
            batch.release()
        stack_11.check(stack_11.images(4), backend.infer(stack_11.images(4)))


def test_errors_keep_nothing_alive(stack_11: Any, device: Device) -> None:
    """Without a collection: an error that holds itself, through its traceback, holds streams beyond their context."""
    path = stack_11.write()
    images, wrong = stack_11.images(4), []
    memory = Interface(device.upload(images), images.shape)
    gc.collect()
    gc.disable()
    try:
        with stack_11.open(path, cuda_graphs=False) as backend:
            calls = (
                (backend.infer, images),
                (lambda batch: backend.submit(batch).result(), images),
                (lambda batch: backend.infer_device(batch, stream=device.streams[0].handle), memory),
            )
            device.stream()
            # pycuda takes the caller's context off first, whose error is not ours.
            for function, skip in (("emu_launch", 0), ("cuEventRecord", 0), ("cuCtxPopCurrent_v2", 1)):
                for call, batch in calls:
                    stack_11.emulator.fail(function, skip=skip, code=REFUSED)
                    try:
                        call(batch)
                    except DeviceError as error:
                        left = weakref.ref(error)
                    else:
                        raise AssertionError(function)
                    for _ in range(200):  # the thread that completes futures may still be there
                        if left() is None:
                            break
                        time.sleep(0.002)
                    else:
                        wrong.append((function, call))
                    stack_11.emulator.fail_clear()
    finally:
        gc.enable()
    assert wrong == []


@pytest.mark.usefixtures("device")
def test_an_error_that_is_kept_keeps_nothing_of_the_device(stack_11: Any) -> None:
    """While somebody else uses the context, which would else take everything with it."""
    before = stack_11.emulator.live()
    with stack_11.open(cuda_graphs=False) as backend:
        stack_11.emulator.fail("emu_launch", code=REFUSED)
        with pytest.raises(DeviceError) as kept:
            backend.infer(stack_11.images(4))
    assert stack_11.emulator.live() == before
    assert kept.value.__traceback__ is not None


def test_an_earlier_error_that_comes_with_the_context_of_the_caller(stack_11: Any, device: Device) -> None:
    """pycuda takes the caller's context off before it makes ours current, and may be told of an error then."""
    with stack_11.open() as backend:
        for seed in range(3):
            stack_11.emulator.fail("cuCtxPopCurrent_v2", code=REFUSED)
            stack_11.check(stack_11.images(4, seed), backend.infer(stack_11.images(4, seed)))
            assert driver.current_context() == device.context.handle


def test_a_context_reset_by_somebody_else(stack_11: Any) -> None:
    from infer.backends.cuda.driver import library

    backend = stack_11.open()
    assert library().cuDevicePrimaryCtxReset_v2(0) == 0
    with pytest.raises(DeviceError, match="gone"):
        backend.infer(stack_11.images(1))
    backend.close()
    del backend
    gc.collect()
    # TensorRT's objects could not be destroyed in their context any more.
    assert stack_11.emulator.hazards() == ["a TensorRT object was destroyed without a current context"]
    stack_11.emulator.clear_hazards()


def test_threads_and_random_failures(stack: Any) -> None:
    """Ten thousand batches from 8 threads, a failing call now and then, a new runner too: none wrong, lost or left."""
    good, bad, swaps = soak(stack, batches=10_000, threads=8, seed=1)
    assert good > 9000 and bad > 0 and swaps > 10
