"""Which NVIDIA GPUs the CUDA driver sees, asked through ctypes.

TensorRT's own libraries crash or print noise where no driver is installed, so the driver is asked first. Nothing but
``libcuda`` is needed and no context is created.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR = 75  # CUdevice_attribute of cuda.h
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name and compute capability, ``("NVIDIA L4", "8.9")``."""

    name: str
    compute_capability: str


def find_gpus() -> tuple[list[Gpu], str]:
    """The GPUs that the driver offers this process, in its order, and what is missing where there are none.

    The second value is empty when a GPU was found. ``CUDA_VISIBLE_DEVICES`` counts.
    """
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return [], f"the NVIDIA driver is not installed ({_LIBRARY} not found)"
    status = cuda.cuInit(0)
    if status:
        return [], f"the NVIDIA driver finds no usable GPU (cuInit returned error {status})"
    count = ctypes.c_int()
    status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        return [], "the NVIDIA driver finds no GPU"
    return [_describe(cuda, ordinal) for ordinal in range(count.value)], ""


def driver_version() -> str:
    """CUDA version of the installed driver, ``13.0``; empty where there is none."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ""
    version = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)):
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _describe(cuda: ctypes.CDLL, ordinal: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(name.value.decode("utf-8", "replace"), f"{major.value}.{minor.value}")
