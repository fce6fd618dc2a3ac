"""Keep the alternate signal stack of a thread as it was.

OpenVINO's CPU plugin gives the thread that first uses it an alternate signal stack and frees that memory with the
plugin, which may happen on another thread. Python's handlers run on the alternate stack, so the next Ctrl-C of the
first thread is then a segmentation fault: in a build, one that cancels TensorRT after OpenVINO was used.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t`` of signal.h on Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Undo what the body does to the calling thread's alternate signal stack (``sigaltstack(2)``, Linux only)."""
    if sys.platform != "linux":
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    known = sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            sigaltstack(ctypes.byref(before), None)
