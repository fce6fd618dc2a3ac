"""A user of the runner's device, as torch or CuPy would be, and what such libraries hand out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.backends.cuda import dlpack


class Device:
    """A user of the same primary context, as torch or CuPy would be."""

    def __init__(self) -> None:
        import pycuda.driver as cuda

        self.cuda = cuda
        cuda.init()
        self.context = cuda.Device(0).retain_primary_context()
        self.context.push()
        self.memory: list[Any] = []
        self.streams: list[Any] = []

    def stream(self) -> Any:
        self.streams.append(self.cuda.Stream(1))
        return self.streams[-1]

    def upload(self, array: NDArray[Any]) -> Any:
        memory = self.cuda.mem_alloc(array.nbytes)
        self.memory.append(memory)
        self.cuda.memcpy_htod(memory, array)
        self.cuda.Context.synchronize()  # from pageable memory, the call may return before the device has the bytes
        return memory

    def download(self, pointer: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        host = np.empty(shape, dtype)
        self.cuda.memcpy_dtoh(host, int(pointer))
        return host

    def close(self) -> None:
        for stream in self.streams:
            stream.synchronize()
        for memory in self.memory:
            memory.free()
        self.streams.clear()
        self.cuda.Context.pop()
        self.context.push()
        from infer.backends.cuda import driver

        driver.pop_context()
        self.context.detach()


class Interface:
    """An array of another library with ``__cuda_array_interface__``."""

    def __init__(self, memory: Any, shape: tuple[int, ...], **changes: Any) -> None:
        data = (int(memory), True)
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "|u1", "data": data, "version": 3, **changes}


class Capsules:
    """An array of another library with DLPack."""

    def __init__(
        self, memory: Any, shape: tuple[int, ...], dtype: str = "u1", device: tuple[int, int] = (2, 0)
    ) -> None:
        self.memory, self.shape, self.dtype, self.where = memory, shape, dtype, device
        self.asked: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.where

    def __dlpack__(self, *, stream: int) -> Any:
        self.asked.append(stream)
        kind, ordinal = self.where
        return dlpack.make_capsule(
            int(self.memory), self.shape, self.dtype, device_type=kind, device=ordinal, owner=self
        )


def outputs_for(user: Device, rows: int) -> list[Any]:
    """Device memory for logits, scores and classes."""
    return [user.upload(np.zeros((rows, columns), np.float32)) for columns in (10, 3, 3)]


def fetch(user: Device, outputs: list[Any], rows: int) -> list[NDArray[Any]]:
    """What is in them."""
    shapes = (((rows, 10), np.float32), ((rows, 3), np.float32), ((rows, 3), np.int32))
    return [user.download(memory, *shape) for memory, shape in zip(outputs, shapes, strict=True)]
