"""The CUDA driver functions that pycuda does not wrap, through ctypes on the driver's own library.

pycuda has no stream capture and no graphs, takes only its own stream objects, does not tell the handle of an event or
the code of an error, and holds the GIL while it frees memory, which waits for the device. Handles and addresses are
plain integers here; ``handle`` of a pycuda stream is such a handle.
Every call releases the GIL and needs a current context unless it says otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator

from infer.errors import DeviceError, DeviceMemoryError, TargetUnavailableError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Values of cuda.h.
STREAM_NON_BLOCKING = 1
LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
"""Handles of the default stream of a context, and of the one that is another in each thread."""
_CAPTURE_THREAD_LOCAL, _CAPTURE_RELAXED = 1, 2
_EVENT_BLOCKING_SYNC = 1
_EVENT_DISABLE_TIMING = 2
_OUT_OF_MEMORY = 2
_NOT_READY = 600
_CAPTURE_IMPLICIT = 906
_POINTER_MEMORY_TYPE = 2
_POINTER_DEVICE_ORDINAL = 9
_MEMORY_TYPE_DEVICE = 2

STICKY = frozenset((214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721))
"""Codes of which cuda.h says that every later call returns the same one: uncorrectable memory, illegal addresses and
instructions, a launch that failed or took too long, a context that is gone."""


@functools.cache
def library() -> ctypes.CDLL:
    """The driver's library.

    Raises:
        TargetUnavailableError: no NVIDIA driver is installed.
    """
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise TargetUnavailableError(
            f"the NVIDIA driver is not installed ({_LIBRARY} not found); install it, or use the openvino target"
        ) from None
    # Without argument types ctypes would cut 64-bit handles down to an int.
    pointer, integer, address, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_size_t
    for name, arguments in {
        "cuStreamBeginCapture_v2": [pointer, integer],
        "cuStreamEndCapture": [pointer, pointer],
        "cuStreamIsCapturing": [pointer, pointer],
        "cuThreadExchangeStreamCaptureMode": [pointer],
        "cuGraphInstantiateWithFlags": [pointer, pointer, ctypes.c_ulonglong],
        "cuGraphUpload": [pointer, pointer],
        "cuGraphLaunch": [pointer, pointer],
        "cuGraphExecDestroy": [pointer],
        "cuGraphDestroy": [pointer],
        "cuEventCreate": [pointer, ctypes.c_uint],
        "cuEventDestroy_v2": [pointer],
        "cuEventRecord": [pointer, pointer],
        "cuEventQuery": [pointer],
        "cuEventSynchronize": [pointer],
        "cuStreamCreate": [pointer, ctypes.c_uint],
        "cuStreamDestroy_v2": [pointer],
        "cuStreamSynchronize": [pointer],
        "cuStreamWaitEvent": [pointer, pointer, ctypes.c_uint],
        "cuCtxPushCurrent_v2": [pointer],
        "cuCtxPopCurrent_v2": [pointer],
        "cuCtxGetCurrent": [pointer],
        "cuMemAlloc_v2": [pointer, size],
        "cuMemFree_v2": [address],
        "cuMemGetInfo_v2": [pointer, pointer],
        "cuMemcpyDtoDAsync_v2": [address, address, size, pointer],
        "cuPointerGetAttribute": [pointer, integer, address],
    }.items():
        getattr(cuda, name).argtypes = arguments
    if hasattr(cuda, "cuStreamGetId"):  # CUDA 12
        cuda.cuStreamGetId.argtypes = [pointer, pointer]
    return cuda


def describe(status: int) -> str:
    """Text of a status code: ``out of memory, CUDA error 2``."""
    text = ctypes.c_char_p()
    library().cuGetErrorString(status, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()}, CUDA error {status}"


def _check(status: int, function: str) -> None:
    if status:
        kind = DeviceMemoryError if status == _OUT_OF_MEMORY else DeviceError
        raise kind(f"{function} failed ({describe(status)})", status=status)


def health() -> int:
    """Status of a call that does nothing: 0, or what earlier work has done to the context."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    return int(library().cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))


def push_context(context: int) -> int:
    """Make a context current on this thread, behind pycuda's back; a status code. Needs none to be current."""
    return int(library().cuCtxPushCurrent_v2(context))


def pop_context() -> None:
    """Take the current context off the driver's stack of this thread, behind pycuda's back."""
    popped = ctypes.c_void_p()
    _check(library().cuCtxPopCurrent_v2(ctypes.byref(popped)), "cuCtxPopCurrent")


def current_context() -> int:
    """Handle of the context that is current on this thread; 0 for none."""
    found = ctypes.c_void_p()
    library().cuCtxGetCurrent(ctypes.byref(found))
    return found.value or 0


def synchronize_context() -> None:
    """Wait on the host for everything that is under way in the context."""
    _check(library().cuCtxSynchronize(), "cuCtxSynchronize")


@contextlib.contextmanager
def unaffected_by_captures() -> Iterator[None]:
    """Let this thread allocate, free and ask for events while others capture streams in CUDA's global mode.

    In that mode, which is torch's, such calls of any thread fail and spoil the capture. Ours have nothing to do with
    the stream under capture.
    """
    cuda, mode = library(), ctypes.c_int(_CAPTURE_RELAXED)
    status = cuda.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        if status == 0:
            cuda.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def is_capturing(stream: int) -> bool:
    """Whether ``stream`` is being captured, or is the default stream, which no one may use while another one is."""
    found = ctypes.c_int()
    status = library().cuStreamIsCapturing(stream, ctypes.byref(found))
    if status == _CAPTURE_IMPLICIT:
        return True
    _check(status, "cuStreamIsCapturing")
    return found.value != 0


def begin_capture(stream: int) -> None:
    """Start to capture ``stream``; other threads may go on using CUDA."""
    _check(library().cuStreamBeginCapture_v2(stream, _CAPTURE_THREAD_LOCAL), "cuStreamBeginCapture")


def end_capture(stream: int) -> int:
    """End the capture, also one that went wrong, and return the graph."""
    graph = ctypes.c_void_p()
    _check(library().cuStreamEndCapture(stream, ctypes.byref(graph)), "cuStreamEndCapture")
    return graph.value or 0


def instantiate_graph(graph: int, stream: int) -> int:
    """An executable graph, uploaded so that its first launch is as fast as the others."""
    cuda, executable = library(), ctypes.c_void_p()
    _check(cuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0), "cuGraphInstantiate")
    cuda.cuGraphUpload(executable, stream)
    return executable.value or 0


def launch_graph(executable: int, stream: int) -> None:
    """Enqueue a graph."""
    if status := library().cuGraphLaunch(executable, stream):
        _check(status, "cuGraphLaunch")


def destroy_executable(executable: int) -> None:
    """Destroy an executable graph; an error is ignored, as there is nothing left to do about it."""
    library().cuGraphExecDestroy(executable)


def destroy_graph(graph: int) -> None:
    """Destroy a captured graph; an error is ignored."""
    library().cuGraphDestroy(graph)


def create_stream() -> int:
    """A stream that does not wait for the default stream."""
    stream = ctypes.c_void_p()
    _check(library().cuStreamCreate(ctypes.byref(stream), STREAM_NON_BLOCKING), "cuStreamCreate")
    return stream.value or 0


def destroy_stream(stream: int) -> None:
    """Destroy a stream, whose work still ends; an error is ignored."""
    library().cuStreamDestroy_v2(stream)


def synchronize_stream(stream: int) -> None:
    """Wait on the host until ``stream`` is idle."""
    _check(library().cuStreamSynchronize(stream), "cuStreamSynchronize")


def stream_id(stream: int) -> int:
    """What tells a stream from a later one with the same handle; 0 where the driver, older than CUDA 12, cannot.

    Raises:
        DeviceError: there is no such stream.
    """
    cuda, found = library(), ctypes.c_ulonglong()
    if not hasattr(cuda, "cuStreamGetId"):
        return 0
    _check(cuda.cuStreamGetId(stream, ctypes.byref(found)), "cuStreamGetId")
    return found.value


def record_event(event: int, stream: int) -> None:
    """Record ``event`` behind the work now in ``stream``."""
    _check(library().cuEventRecord(event, stream), "cuEventRecord")


def wait_event(stream: int, event: int) -> None:
    """Let ``stream`` wait on the device until ``event`` has happened. The host does not wait."""
    _check(library().cuStreamWaitEvent(stream, event, 0), "cuStreamWaitEvent")


def create_event(*, spin: bool = False) -> int:
    """An event without timing. A host thread that waits for it blocks, or spins: some 10 us faster, and a core busy."""
    event = ctypes.c_void_p()
    flags = _EVENT_DISABLE_TIMING | (0 if spin else _EVENT_BLOCKING_SYNC)
    _check(library().cuEventCreate(ctypes.byref(event), flags), "cuEventCreate")
    return event.value or 0


def destroy_event(event: int) -> None:
    """Destroy an event; an error is ignored."""
    library().cuEventDestroy_v2(event)


def synchronize_event(event: int) -> None:
    """Wait on the host until ``event`` has happened."""
    _check(library().cuEventSynchronize(event), "cuEventSynchronize")


def query_event(event: int) -> bool:
    """Whether ``event`` has happened."""
    status = library().cuEventQuery(event)
    if status == _NOT_READY:
        return False
    _check(status, "cuEventQuery")
    return True


def allocate(size: int) -> int:
    """Address of ``size`` bytes of device memory, on a multiple of 256.

    Raises:
        DeviceMemoryError: there is not so much left.
    """
    address = ctypes.c_uint64()
    _check(library().cuMemAlloc_v2(ctypes.byref(address), size), "cuMemAlloc")
    return address.value


def free(address: int) -> None:
    """Free device memory, and wait for the device; an error is ignored."""
    library().cuMemFree_v2(address)


def copy(target: int, source: int, size: int, stream: int) -> None:
    """Enqueue a copy within the device's memory."""
    _check(library().cuMemcpyDtoDAsync_v2(target, source, size, stream), "cuMemcpyDtoDAsync")


def device_of(pointer: int) -> int | None:
    """Ordinal of the device whose memory ``pointer`` lies in; None for host memory and for no memory at all."""
    cuda = library()
    kind, ordinal = ctypes.c_uint(), ctypes.c_int()
    if (
        cuda.cuPointerGetAttribute(ctypes.byref(kind), _POINTER_MEMORY_TYPE, pointer)
        or kind.value != _MEMORY_TYPE_DEVICE
    ):
        return None
    if cuda.cuPointerGetAttribute(ctypes.byref(ordinal), _POINTER_DEVICE_ORDINAL, pointer):
        return None
    return ordinal.value
