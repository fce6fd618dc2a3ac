"""Arrays in device memory: taken from other libraries without a copy, and handed out the same way."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infer.backends.cuda import dlpack, driver
from infer.backends.cuda.buffers import ALIGNMENT, Layout
from infer.errors import InputError

if TYPE_CHECKING:
    from infer.backends.cuda.context import PrimaryContext
    from infer.backends.cuda.events import Event

LEGACY_STREAM = 1
"""Handle of the default stream in the interfaces of ``__cuda_array_interface__`` and DLPack."""


class DeviceImages(NamedTuple):
    """A batch in device memory: address, images, the stream that produces it (None: ready), and what keeps it."""

    pointer: int
    rows: int
    stream: int | None
    owner: Any


def import_images(images: Any, layout: Layout, device: int, stream: int) -> DeviceImages:
    """Address and rows of ``images``, checked; the context must be current.

    Args:
        images: uint8 ``[N, H, W, 3]``, C-contiguous, with ``__cuda_array_interface__`` or DLPack.
        layout: the expected image.
        device: the expected ordinal.
        stream: where the images will be used; a DLPack producer puts its work in order with it.

    Raises:
        InputError: something else, or not on this device.
    """
    interface = getattr(images, "__cuda_array_interface__", None)
    if interface is not None:
        strides = interface.get("strides")
        found = dlpack.Foreign(
            interface["data"][0],
            tuple(interface["shape"]),
            interface["typestr"].lstrip("|<"),
            tuple(strides) if strides else None,  # in bytes, which for uint8 are elements
            dlpack.CUDA,
            device,
            images,
        )
        producer = interface.get("stream")
    elif hasattr(images, "__dlpack__"):
        kind, _ = images.__dlpack_device__()
        if int(kind) not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
            raise InputError("expected images in the memory of an NVIDIA GPU; host memory goes to infer() or submit()")
        found = dlpack.read_capsule(images.__dlpack__(stream=stream))
        producer = None
    else:
        raise InputError(
            f"expected an object with __cuda_array_interface__ or __dlpack__, found {type(images).__name__}"
        )
    shape = found.shape
    if found.dtype != "u1" or len(shape) != 4 or shape[1:] != layout.image:
        height, width, channels = layout.image
        raise InputError(f"expected uint8 [N, {height}, {width}, {channels}], found {found.dtype} {list(shape)}")
    if found.strides is not None and found.strides != _contiguous(shape):
        raise InputError("expected C-contiguous images; copy them first")
    check_pointer("images", found.pointer, device)
    return DeviceImages(found.pointer, shape[0], producer, found.owner)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for extent in reversed(shape[1:]):
        strides.insert(0, strides[0] * extent)
    return tuple(strides)


def check_pointer(name: str, pointer: int, device: int) -> None:
    """Raise InputError unless ``pointer`` is aligned memory of ``device``; the context must be current."""
    if pointer % ALIGNMENT:
        raise InputError(f"{name}: expected an address on a multiple of {ALIGNMENT} bytes, found {pointer:#x}; copy it")
    if (found := driver.device_of(pointer)) != device:
        where = "no device memory" if found is None else f"memory of device {found}"
        raise InputError(f"{name}: expected memory of CUDA device {device}, found {where} at {pointer:#x}")


class ResultPool:
    """Blocks of device memory for results, used again on the stream they were used on. Thread-safe.

    Work of one stream runs in order, so a block that nobody holds any more can be written again on the same stream
    even while earlier work of the consumer there still reads it. Nothing is freed before the end, because freeing
    waits for the device; what is kept is what was once held at the same time.
    """

    def __init__(self, context: PrimaryContext) -> None:
        self.context, self._lock = context, threading.Lock()
        self._idle: dict[tuple[int, int], list[Any]] = {}
        self._all: dict[int, Any] = {}
        self.closed = False

    def take(self, size: int, stream: int) -> Block:
        """A block of at least ``size`` bytes. Needs the context to be current."""
        import pycuda.driver as cuda

        size = 1 << max(size - 1, 4095).bit_length()
        with self._lock:
            if self.closed:
                raise InputError("this runner is closed; open the bundle again")
            idle = self._idle.setdefault((stream, size), [])
            if idle:
                return Block(self, idle.pop(), size, stream)
            memory = cuda.mem_alloc(size)
            self._all[int(memory)] = memory
            return Block(self, memory, size, stream)

    def give_back(self, memory: Any, size: int, stream: int) -> None:
        """Called when nobody holds a block any more. Frees nothing: no context need be current here."""
        if not self.closed:
            self._idle[stream, size].append(memory)

    def close(self, *, broken: bool) -> None:
        """Free all blocks, also those that results still show. Needs the context to be current.

        ``broken``: nothing can be freed; the memory is kept for :meth:`forget`.
        """
        with self._lock:
            self.closed = True
            self._idle.clear()
            if not broken:
                for memory in self._all.values():
                    memory.free()
                self._all.clear()

    def forget(self) -> None:
        """Drop what :meth:`close` has kept."""
        self._all.clear()


class Block:
    """Device memory of one result; goes back to its pool when the last array of it goes."""

    def __init__(self, pool: ResultPool, memory: Any, size: int, stream: int) -> None:
        self._pool, self._memory, self._size, self.stream = pool, memory, size, stream
        self.pointer = int(memory)

    def check(self) -> PrimaryContext:
        """The context of the memory; raises InputError when the memory is gone."""
        if self._pool.closed:
            raise InputError("the runner of this array is closed and its device memory is freed")
        return self._pool.context

    def __del__(self) -> None:
        self._pool.give_back(self._memory, self._size, self.stream)


class DeviceArray:
    """A result in device memory, of the runner: valid until that is closed.

    Read it through ``torch.as_tensor(a, device="cuda")``, ``cupy.asarray(a)`` or ``from_dlpack(a)``, without a copy.
    It is written by work on the stream it was asked for; both interfaces keep other streams in order. The memory is
    written again, on that same stream, after the last reference is gone.
    """

    def __init__(
        self, block: Block, offset: int, shape: tuple[int, ...], dtype: str, *, device: int, ready: Event
    ) -> None:
        self._block, self._ready, self._device = block, ready, device
        self.pointer = block.pointer + offset
        self.shape, self.dtype = shape, np.dtype(dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._block.check()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
            "stream": self._block.stream or LEGACY_STREAM,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._device

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A capsule; the consumer's ``stream`` is made to wait for the results (-1: it need not)."""
        context = self._block.check()
        if stream is None:
            stream = LEGACY_STREAM
        if stream not in (-1, self._block.stream):
            with context:
                driver.wait_event(stream, self._ready.handle)
        dtype = f"{self.dtype.kind}{self.dtype.itemsize}"
        return dlpack.make_capsule(
            self.pointer, self.shape, dtype, device_type=dlpack.CUDA, device=self._device, owner=self
        )

    def get(self) -> NDArray[Any]:
        """A copy in host memory; waits until the results are written.

        Raises:
            DeviceError: the work failed.
            InputError: the runner is closed.
        """
        import pycuda.driver as cuda

        host: NDArray[Any] = np.empty(self.shape, self.dtype)
        with self._block.check():
            self._ready.synchronize()
            cuda.memcpy_dtoh(host, self.pointer)
        return host


class DeviceOutputs(NamedTuple):
    """Results in device memory; see :class:`infer.backends.base.Outputs` for the shapes.

    Attributes:
        ready: happens when they are written.
        images: what was classified, kept alive with the results.
    """

    logits: DeviceArray
    scores: DeviceArray
    classes: DeviceArray
    ready: Event
    images: Any
