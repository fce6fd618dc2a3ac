"""Arrays in and out: DLPack of both kinds, strides, offsets, copies; the logger; what makes a target unavailable."""

from __future__ import annotations

import ctypes
import gc
import threading
from typing import Any

import numpy as np
import pytest
from cuda_emulator.emulator import COMPUTE
from device_user import Capsules, Device, Interface

from infer.backends.cuda import dlpack, driver
from infer.backends.cuda.logger import process_logger
from infer.backends.cuda.usage import Usage
from infer.errors import InputError, TargetUnavailableError


class Both(Capsules):
    """Exports both ways, and names no stream in the interface, as torch does."""

    def __init__(self, memory: Any, shape: tuple[int, ...], work: Any) -> None:
        super().__init__(memory, shape)
        self.work = work
        data = (int(memory), False)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": data, "version": 2}

    def __dlpack__(self, *, stream: int, max_version: Any = None) -> Any:
        self.work(stream)
        return super().__dlpack__(stream=stream)


def test_dlpack_is_asked_first(stack_11: Any, device: Device) -> None:
    """Its producer orders its work; the interface of the same array says nothing of it."""
    with stack_11.open(cuda_graphs=False) as backend:
        images, producer, stream = stack_11.images(8), device.stream(), device.stream()
        memory, pinned = device.cuda.mem_alloc(images.nbytes), device.cuda.pagelocked_empty(images.shape, np.uint8)
        device.memory.append(memory)
        pinned[:] = images
        stack_11.emulator.delay(0, 20)
        device.cuda.memcpy_htod_async(memory, pinned, producer)
        event = driver.create_event()

        def order(consumer: int) -> None:
            driver.record_event(event, producer.handle)
            driver.wait_event(consumer, event)

        results = backend.infer_device(Both(memory, images.shape, order), stream=stream.handle)
        np.testing.assert_array_equal(results.logits.get(), stack_11.expected(images)[0])
        driver.destroy_event(event)
        pinned.base.free()


class Raw:
    """A capsule whose fields a test has set."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int, max_version: tuple[int, int]) -> Any:
        assert max_version >= (1, 0)
        return self.capsule


def capsule_of(
    memory: int, shape: tuple[int, ...], strides: Any = None, offset: int = 0, versioned: bool = True
) -> Any:
    capsule = dlpack.make_capsule(memory, shape, "u1", device_type=2, device=0, owner=None, versioned=versioned)
    managed, (extents, _), owner = dlpack._exported[next(reversed(dlpack._exported))]
    managed.tensor.byte_offset = offset
    if strides is not None:
        array = (ctypes.c_int64 * len(shape))(*strides)
        managed.tensor.strides = array
        dlpack._exported[managed.manager] = managed, (extents, array), owner
    return capsule


@pytest.mark.parametrize("versioned", [True, False])
def test_offsets_and_strides_of_capsules(stack_11: Any, device: Device, versioned: bool) -> None:
    with stack_11.open(cuda_graphs=False) as backend:
        images, stream = stack_11.images(4), device.stream().handle
        memory = int(device.upload(np.concatenate([np.zeros((8, 8, 8, 3), np.uint8), images])))
        shifted = Raw(capsule_of(memory, images.shape, offset=8 * 192, versioned=versioned))
        results = backend.infer_device(shifted, stream=stream)
        np.testing.assert_array_equal(results.logits.get(), stack_11.expected(images)[0])
        # Where there is one image, the step to the next one means nothing.
        for strides in ((7, 24, 3, 1), (0, 24, 3, 1), (192, 24, 3, 1)):
            one = Raw(capsule_of(memory + 8 * 192, (1, 8, 8, 3), strides, versioned=versioned))
            found = backend.infer_device(one, stream=stream)
            np.testing.assert_array_equal(found.logits.get(), stack_11.expected(images[:1])[0])
        for shape, strides in (((2, 8, 8, 3), (384, 24, 3, 1)), ((1, 8, 8, 3), (192, 24, 1, 8))):
            with pytest.raises(InputError, match="C-contiguous"):
                backend.infer_device(Raw(capsule_of(memory, shape, strides, versioned=versioned)), stream=stream)
        interface = Interface(memory + 8 * 192, (1, 8, 8, 3), strides=(5, 24, 3, 1))
        np.testing.assert_array_equal(
            backend.infer_device(interface, stream=stream).logits.get(), stack_11.expected(images[:1])[0]
        )
        del shifted, one, results, found


def test_a_newer_dlpack_is_refused() -> None:
    capsule = dlpack.make_capsule(256, (1,), "f4", device_type=2, device=0, owner=None, versioned=True)
    dlpack._exported[next(reversed(dlpack._exported))][0].major = 2
    with pytest.raises(InputError, match=r"expected DLPack 1, found 2\.0"):
        dlpack.read_capsule(capsule)


def test_versioned_capsules_are_what_numpy_reads_and_writes() -> None:
    array = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    array.flags.writeable = False
    found = dlpack.read_capsule(array.__dlpack__(max_version=(1, 0)))
    assert (found.pointer, found.shape, found.dtype, found.read_only) == (array.ctypes.data, (2, 3, 4), "i4", True)

    class Host:
        def __dlpack_device__(self) -> tuple[int, int]:
            return dlpack.CPU, 0

        def __dlpack__(self, *, max_version: Any = None, **_: Any) -> Any:
            assert max_version is not None
            return dlpack.make_capsule(
                array.ctypes.data, array.shape, "i4", device_type=1, device=0, owner=self, versioned=True
            )

    before = len(dlpack._exported)
    view = np.from_dlpack(Host())
    np.testing.assert_array_equal(view, array)
    assert len(dlpack._exported) == before + 1
    del view
    assert len(dlpack._exported) == before


def version_of(capsule: Any) -> str:
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return str(name(capsule).decode())


def test_a_consumer_gets_the_version_and_the_copy_it_asks_for(stack_11: Any, device: Device) -> None:
    with stack_11.open(cuda_graphs=False) as backend:
        images, stream, reader = stack_11.images(8), device.stream(), device.stream()
        stack_11.emulator.delay(COMPUTE, 20)
        logits = backend.infer_device(Interface(device.upload(images), images.shape), stream=stream.handle).logits
        for version, name in ((None, "dltensor"), ((0, 8), "dltensor"), ((1, 0), "dltensor_versioned")):
            assert version_of(logits.__dlpack__(stream=reader.handle, max_version=version)) == name
        assert dlpack.read_capsule(logits.__dlpack__(stream=reader.handle)).pointer == logits.pointer
        for told in (reader.handle, -1, 1, 2):
            capsule = logits.__dlpack__(stream=told, copy=True, max_version=(1, 0), dl_device=(2, 0))
            copy = dlpack.read_capsule(capsule)
            assert copy.pointer != logits.pointer and not copy.read_only
            driver.synchronize_stream(reader.handle if told == -1 else told)
            have = device.download(copy.pointer, (8, 10), np.float32)
            np.testing.assert_array_equal(have, stack_11.expected(images)[0])
            del capsule, copy
        with pytest.raises(BufferError, match=r"expected the device \(2, 0\), found \(1, 0\)"):
            logits.__dlpack__(dl_device=(1, 0))


def test_what_an_exporter_refuses_is_an_error_of_ours(stack_11: Any, device: Device) -> None:
    class Refusing(Capsules):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("Can't export tensors that require gradient")

    with stack_11.open() as backend, pytest.raises(InputError, match="require gradient"):
        memory = device.upload(stack_11.images(2))
        backend.infer_device(Refusing(memory, (2, 8, 8, 3)), stream=device.stream().handle)


def test_the_capture_mode_of_the_thread_is_put_back(stack_11: Any, device: Device) -> None:
    """A caller's own forbidden call is still found out by CUDA after ours."""
    with stack_11.open() as backend:
        results = backend.infer_device(
            Interface(device.upload(stack_11.images(2)), (2, 8, 8, 3)), stream=device.stream().handle
        )
        assert results.ready.query() in (True, False)
        mode = ctypes.c_int(0)
        assert driver.library().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)) == 0
        assert mode.value == 0


def test_events_of_two_batches_are_two(stack_11: Any, device: Device) -> None:
    with stack_11.open(cuda_graphs=False) as backend:
        array, stream = Interface(device.upload(stack_11.images(2)), (2, 8, 8, 3)), device.stream().handle
        for _ in range(3):  # some are used again by now
            backend.infer_device(array, stream=stream).ready.synchronize()
            gc.collect()
        first, second = backend.infer_device(array, stream=stream), backend.infer_device(array, stream=stream)
        assert first.ready.handle != second.ready.handle


def test_slots_take_turns_on_the_device_path(stack_11: Any, device: Device) -> None:
    """Networks of several slots overlap where there is room for them."""
    stack_11.emulator.engine_width(2, 3)
    with stack_11.open(slots=3, cuda_graphs=False) as backend:
        array = Interface(device.upload(stack_11.images(2)), (2, 8, 8, 3))
        streams = [device.stream() for _ in range(3)]
        stack_11.emulator.delay(COMPUTE, 60)
        with stack_11.emulator.tracing() as operations:
            found = [backend.infer_device(array, stream=stream.handle) for stream in streams]
        networks = [op for op in operations if op.kind == COMPUTE]
        assert max(op.start for op in networks) < min(op.finish for op in networks)
        del found


@pytest.mark.parametrize("spin", [True, False])
def test_spinning_is_a_flag_of_the_events(stack_11: Any, spin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    create = driver.library().cuEventCreate

    def spy(event: Any, wanted: int) -> int:
        flags.append(wanted)
        return int(create(event, wanted))

    monkeypatch.setattr(driver.library(), "cuEventCreate", spy)
    with stack_11.open(spin=spin, slots=1):
        blocking = 1  # CU_EVENT_BLOCKING_SYNC
        assert (sum(not one & blocking for one in flags) >= 2) == spin  # those of the two staging buffers


# --- who is inside ---------------------------------------------------------------------------------------------------


def test_usage() -> None:
    released: list[int] = []
    usage = Usage(lambda: released.append(1))
    with usage, usage:
        usage.close()
        with usage:  # still inside
            pass
        assert released == []
        other: list[BaseException] = []

        def enter() -> None:
            try:
                usage.__enter__()
            except InputError as error:
                other.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(5)
        assert len(other) == 1
    assert released == [1]
    usage.close()
    assert released == [1]


# --- the logger ------------------------------------------------------------------------------------------------------


def test_one_logger_for_all_of_a_process(stack: Any) -> None:
    """The first is the one that TensorRT keeps; the stand-in reports a message to one that was freed."""
    first, second = stack.open(), stack.open()
    first.close()
    del first
    gc.collect()
    with pytest.raises(TargetUnavailableError, match="Serialization assertion"):
        bad = stack.folder / "bad.plan"
        bad.write_bytes(b"{}")
        stack.open(bad)
    stack.check(stack.images(2), second.infer(stack.images(2)))
    second.close()
    assert stack.emulator.hazards() == []


def test_messages_go_to_who_caused_them(stack_11: Any) -> None:
    import tensorrt as trt

    logger = process_logger(trt)
    assert process_logger(trt) is logger
    logger.take_errors()
    heard: dict[str, list[str]] = {"here": [], "there": []}
    ready, go = threading.Event(), threading.Event()

    def there() -> None:
        with logger.listening(lambda severity, message: heard["there"].append(message)):
            ready.set()
            go.wait(5)
            logger.log(trt.ILogger.ERROR, "of the other thread")

    thread = threading.Thread(target=there)
    thread.start()
    ready.wait(5)
    with logger.listening(lambda severity, message: heard["here"].append(message)):
        logger.log(trt.ILogger.WARNING, "of this thread")
        own = threading.Thread(target=logger.log, args=(trt.ILogger.INFO, "of TensorRT's own"))
        own.start()
        own.join()
        go.set()
        thread.join()
    assert heard == {
        "here": ["of this thread", "of TensorRT's own"],
        "there": ["of TensorRT's own", "of the other thread"],
    }
    logger.log(trt.ILogger.ERROR, "of  this\nthread")
    assert logger.take_errors() == ["of this thread"]
    assert logger.take_errors() == ["of the other thread"]
    assert logger.take_errors() == []
    with logger.listening(lambda severity, message: 1 / 0):
        logger.log(trt.ILogger.ERROR, "nothing is raised into TensorRT")
    logger.take_errors()


# --- what cannot run here --------------------------------------------------------------------------------------------


def test_a_driver_that_is_too_old(stack: Any) -> None:
    stack.emulator.driver_version(11.4)
    with pytest.raises(TargetUnavailableError, match=r"cannot use the installed NVIDIA driver \(CUDA 11\.4\): update"):
        stack.open()
