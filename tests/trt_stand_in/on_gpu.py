"""The stand-in on a real GPU: the real driver, real streams, and a kernel of its own in the place of a network.

TensorRT's bindings are still posed as; what the runner does with memory, streams, events and graphs is real.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from trt_stand_in.kernels import Launch

_SOURCE = Path(__file__).with_name("rows.cu")
_THREADS = 256


class RealDevice:
    """What the stand-in asks of the emulator, answered by libcuda.

    Attributes:
        cycles: that the kernel waits before it computes, to make races show.
        reports: what the stand-in found wrong.
    """

    def __init__(self, cycles: int = 0) -> None:
        self.lib: Any = ctypes.CDLL("libcuda.so.1")
        self.cycles, self.reports = cycles, []  # type: int, list[str]
        self._function: Any = None
        with tempfile.TemporaryDirectory() as folder:
            code = Path(folder, "rows.cubin")
            subprocess.run(["nvcc", "-cubin", "-arch=native", "-lineinfo", "-o", code, _SOURCE], check=True)
            self._code = code.read_bytes()

    def report(self, text: str) -> None:
        """Note a mistake of the caller."""
        self.reports.append(text)

    def launch(self, call: Launch, stream: int, *, captured: bool) -> int:
        """As :func:`trt_stand_in.kernels.launch`."""
        if self._function is None:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            if status := self.lib.cuModuleLoadData(ctypes.byref(module), self._code):
                return int(status)
            if status := self.lib.cuModuleGetFunction(ctypes.byref(function), module, b"rows"):
                return int(status)
            self._function = function
        words = int(np.prod(call.image)) // 8
        values = [
            *(ctypes.c_uint64(pointer) for pointer in (call.images, call.logits, call.scores, call.classes)),
            ctypes.c_uint64(call.scratch if call.scratch_bytes >= 8 else 0),
            *(ctypes.c_int(number) for number in (words, call.num_classes, call.top_k)),
            ctypes.c_longlong(self.cycles),
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid = (call.rows, 1, 1, _THREADS, 1, 1)
        return int(self.lib.cuLaunchKernel(self._function, *grid, 0, ctypes.c_void_p(stream), pointers, None))


def install(key: str, cycles: int = 0) -> RealDevice:
    """Let ``import tensorrt`` (or ``tensorrt_rtx``) give the stand-in of version ``key`` on the real GPU."""
    import sys

    from trt_stand_in import auxiliary
    from trt_stand_in.api import VERSIONS
    from trt_stand_in.module import make_module

    device = RealDevice(cycles)
    auxiliary.launch = device.launch  # type: ignore[assignment]
    sys.modules[VERSIONS[key][0]] = make_module(key, device)  # type: ignore[arg-type]
    return device
