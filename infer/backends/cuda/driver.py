"""The CUDA driver functions that pycuda does not wrap, through ctypes on the driver's own library.

pycuda has no stream capture and no graphs, takes only its own stream objects, does not tell the handle of an event, and
can destroy one only on the thread that made its context. Handles are plain integers here; ``handle`` of a pycuda stream
is such a handle.
Every call releases the GIL and needs a current context unless it says otherwise.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from infer.errors import DeviceError, TargetUnavailableError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Values of cuda.h.
STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
_EVENT_BLOCKING_SYNC = 1
_EVENT_DISABLE_TIMING = 2
_NOT_READY = 600
_POINTER_MEMORY_TYPE = 2
_POINTER_DEVICE_ORDINAL = 9
_MEMORY_TYPE_DEVICE = 2


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
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    for name, arguments in {
        "cuStreamBeginCapture_v2": [pointer, integer],
        "cuStreamEndCapture": [pointer, pointer],
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
        "cuStreamWaitEvent": [pointer, pointer, ctypes.c_uint],
        "cuCtxPopCurrent_v2": [pointer],
        "cuPointerGetAttribute": [pointer, integer, ctypes.c_uint64],
    }.items():
        getattr(cuda, name).argtypes = arguments
    return cuda


def describe(status: int) -> str:
    """Text of a status code: ``out of memory, CUDA error 2``."""
    text = ctypes.c_char_p()
    library().cuGetErrorString(status, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()}, CUDA error {status}"


def _check(status: int, function: str) -> None:
    if status:
        raise DeviceError(f"{function} failed ({describe(status)})")


def pop_context() -> None:
    """Take the current context off the driver's stack of this thread, behind pycuda's back."""
    popped = ctypes.c_void_p()
    _check(library().cuCtxPopCurrent_v2(ctypes.byref(popped)), "cuCtxPopCurrent")


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
