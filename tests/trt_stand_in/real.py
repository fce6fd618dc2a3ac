"""The stand-in's kernel on a real GPU, behind the few calls that the stand-in makes on the emulator."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
from pathlib import Path
from typing import Any

def why_no_gpu() -> str | None:
    """Why a real GPU cannot be used here; None where it can. Loads the driver, so ask before the emulator is loaded."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed"
    if hasattr(cuda, "emu_enable"):
        return "the emulated driver stands in the place of the real one in this process"
    if status := cuda.cuInit(0):
        return f"the NVIDIA driver finds no usable GPU (cuInit returned error {status})"
    if importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed"
    return None


def _nvrtc() -> ctypes.CDLL:
    places = []
    for name in ("nvidia", "torch"):
        if (spec := importlib.util.find_spec(name)) is not None:
            for folder in spec.submodule_search_locations or ():
                places += sorted(Path(folder).rglob("libnvrtc.so*"))
    places += sorted(Path("/usr/local").glob("cuda*/lib64/libnvrtc.so*"))
    for place in places:
        for needed in place.parent.glob("libnvrtc-builtins.so*"):  # it looks for these by name only
            ctypes.CDLL(str(needed), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(place))
    raise RuntimeError("expected NVRTC to compile the stand-in's kernel, found none: pip install nvidia-cuda-nvrtc")


def compile_ptx(source: str) -> bytes:
    """PTX of CUDA C; needs no GPU."""
    nvrtc, program, size = _nvrtc(), ctypes.c_void_p(), ctypes.c_size_t()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"rows.cu", 0, None, None) == 0
    options = (ctypes.c_char_p * 2)(b"--gpu-architecture=compute_75", b"--fmad=false")
    status = nvrtc.nvrtcCompileProgram(program, 2, options)
    if status:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    return ptx.raw


class RealDevice:
    """Poses as :class:`cuda_emulator.emulator.Emulator` where the stand-in asks. A context must be current."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self.lib: Any = self
        self.reports: list[str] = []
        self.spin_ns = 0
        self._marks = itertools.count(1)
        self._module, self._rows, self._wait = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        ptx = compile_ptx(Path(__file__).with_name("rows.cu").read_text())
        self._check(self._cuda.cuModuleLoadData(ctypes.byref(self._module), ptx))
        for function, name in ((self._rows, b"rows"), (self._wait, b"wait_for")):
            self._check(self._cuda.cuModuleGetFunction(ctypes.byref(function), self._module, name))
        self._wrong = ctypes.c_uint64()
        self._check(self._cuda.cuMemAlloc_v2(ctypes.byref(self._wrong), ctypes.c_size_t(8)))
        self._check(self._cuda.cuMemsetD8_v2(self._wrong, ctypes.c_ubyte(0), ctypes.c_size_t(8)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_cuda"], name)

    @staticmethod
    def _check(status: int) -> None:
        assert status == 0, f"CUDA error {status}"

    def report(self, text: str) -> None:
        """A fault that the stand-in saw."""
        self.reports.append(text)

    def hazards(self) -> list[str]:
        """Faults seen so far; waits for the device."""
        found = ctypes.c_uint64()
        self._check(self._cuda.cuCtxSynchronize())
        self._check(self._cuda.cuMemcpyDtoH_v2(ctypes.byref(found), self._wrong, ctypes.c_size_t(8)))
        return self.reports + (["scratch memory used by two executions at once"] if found.value else [])

    def wait(self, stream: int, milliseconds: float) -> None:
        """Keep a stream busy."""
        self._launch(self._wait, stream, 1, [ctypes.c_uint64(round(milliseconds * 1e6))])

    def emu_launch_row_kernel(self, stream: int, nominal: int, kernel: Any) -> int:
        """The emulator's call of this name."""
        rows = kernel._obj
        values = [getattr(rows, name) for name, _ in rows._fields_]
        values += [self.spin_ns, next(self._marks), self._wrong.value]
        return self._launch(self._rows, stream, 64, [ctypes.c_uint64(value) for value in values], checked=False)

    def _launch(self, function: Any, stream: int, threads: int, values: list[Any], *, checked: bool = True) -> int:
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        one, zero = ctypes.c_uint(1), ctypes.c_uint(0)
        status = int(
            self._cuda.cuLaunchKernel(
                *(function, one, one, one, ctypes.c_uint(threads), one, one, zero),
                *(ctypes.c_void_p(stream), pointers, None),
            )
        )
        if checked:
            self._check(status)
        return status
