"""Arrays in device memory: taken from other libraries without a copy, and handed out the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infer.backends.cuda import dlpack, driver
from infer.backends.cuda.buffers import ALIGNMENT, Layout
from infer.backends.cuda.driver import LEGACY_STREAM
from infer.errors import InputError

if TYPE_CHECKING:
    from infer.backends.cuda.events import Event
    from infer.backends.cuda.results import Block
    from infer.backends.cuda.session import Session

_ON_DEVICE = (dlpack.CUDA, dlpack.CUDA_MANAGED)
# What other libraries raise when they cannot export an array.
_REFUSALS = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)


class DeviceImages(NamedTuple):
    """A batch in device memory: address, images, the stream that produces it (None: ready), and what keeps it."""

    pointer: int
    rows: int
    stream: int | None
    owner: Any


def import_images(images: Any, layout: Layout, device: int, stream: int) -> DeviceImages:
    """Address and rows of ``images``, checked; the context must be current.

    DLPack is asked first: there the producer puts its work in order with ``stream``, while many arrays say nothing of
    a stream in ``__cuda_array_interface__``.

    Args:
        images: uint8 ``[N, H, W, 3]``, C-contiguous, with DLPack or ``__cuda_array_interface__``.
        layout: the expected image.
        device: the expected ordinal.
        stream: where the images will be used.

    Raises:
        InputError: something else, or not on this device.
    """
    producer = None
    if (refusal := _why_no_dlpack(images)) is None:
        found = _from_dlpack(images, stream)
    elif (interface := getattr(images, "__cuda_array_interface__", None)) is not None:
        strides = interface.get("strides")
        found = dlpack.Foreign(
            interface["data"][0] or 0,
            tuple(interface["shape"]),
            interface["typestr"].lstrip("|<"),
            tuple(strides) if strides else None,  # in bytes, which for uint8 are elements
            dlpack.CUDA,
            device,
            images,
        )
        producer = interface.get("stream")
    else:
        raise refusal
    shape = found.shape
    if found.dtype != "u1" or len(shape) != 4 or shape[1:] != layout.image:
        height, width, channels = layout.image
        raise InputError(f"expected uint8 [N, {height}, {width}, {channels}], found {found.dtype} {list(shape)}")
    if found.strides is not None and any(
        extent > 1 and have != want  # where there is one element, no step is taken
        for extent, have, want in zip(shape, found.strides, dlpack.contiguous(shape), strict=True)
    ):
        raise InputError("expected C-contiguous images; copy them first")
    if shape[0]:
        check_pointer("images", found.pointer, device)
    return DeviceImages(found.pointer, shape[0], producer, found.owner)


def _why_no_dlpack(images: Any) -> InputError | None:
    """Why DLPack is not the way to ``images``; None where it is."""
    if not (hasattr(images, "__dlpack__") and hasattr(images, "__dlpack_device__")):
        return InputError(
            f"expected an object with __dlpack__ or __cuda_array_interface__, found {type(images).__name__}"
        )
    try:
        kind = int(images.__dlpack_device__()[0])
    except _REFUSALS as error:
        return InputError(f"the images say nothing of their device: {error}")
    if kind in _ON_DEVICE:
        return None
    return InputError("expected images in the memory of an NVIDIA GPU; host memory goes to infer() or submit()")


def _from_dlpack(images: Any, stream: int) -> dlpack.Foreign:
    try:
        try:
            capsule = images.__dlpack__(stream=stream, max_version=dlpack.VERSION)
        except TypeError:  # from before version 1
            capsule = images.__dlpack__(stream=stream)
    except _REFUSALS as error:
        raise InputError(f"the images cannot be taken by DLPack: {error}") from error
    return dlpack.read_capsule(capsule)


def check_pointer(name: str, pointer: int, device: int) -> None:
    """Raise InputError unless ``pointer`` is aligned memory of ``device``; the context must be current."""
    if pointer % ALIGNMENT:
        raise InputError(f"{name}: expected an address on a multiple of {ALIGNMENT} bytes, found {pointer:#x}; copy it")
    if (found := driver.device_of(pointer)) != device:
        where = "no device memory" if found is None else f"memory of device {found}"
        raise InputError(f"{name}: expected memory of CUDA device {device}, found {where} at {pointer:#x}")


class DeviceArray:
    """A result in device memory.

    Read it through ``torch.from_dlpack(a)`` or ``cupy.from_dlpack(a)``, without a copy. It is written by work on the
    stream it was asked for; DLPack keeps the consumer's stream in order with that, and with what overwrites the memory
    after the last reference is gone. ``__cuda_array_interface__`` is for those who have nothing else:
    ``torch.as_tensor`` takes no notice of the stream it names, and the runner does not learn the reader's.

    What was made of it stays when the runner is closed; nothing new can be made of it then.
    """

    def __init__(
        self,
        session: Session,
        block: Block,
        offset: int,
        shape: tuple[int, ...],
        dtype: str,
        *,
        stream: int,
        ready: Event,
    ) -> None:
        self._session, self._block, self._ready, self._stream = session, block, ready, stream
        self._device = session.context.ordinal
        self.pointer = block.pointer + offset
        self.shape, self.dtype = shape, np.dtype(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._check()
        self._block.tell(None)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
            "stream": self._stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; the consumer's ``stream`` is made to wait for the results (-1: it need not).

        Raises:
            BufferError: another device than this one is asked for.
            InputError: the runner is closed, or ``stream`` is being captured.
            DeviceError: CUDA refused.
        """
        self._check()
        if dl_device is not None and (int(dl_device[0]), dl_device[1]) != self.__dlpack_device__():
            raise BufferError(
                f"expected the device {self.__dlpack_device__()}, found {tuple(dl_device)}; copy it there"
            )
        stream = stream or LEGACY_STREAM
        pointer, owner = self.pointer, self._block
        with self._session.working("handing out a result"):
            if stream == -1:
                self._block.tell(None)
            else:
                require_no_capture(stream)
                if stream != self._stream:
                    driver.wait_event(stream, self._ready.handle)
                self._block.tell(stream)
            if copy:
                owner = self._copy(stream)
                pointer = owner.pointer
        return dlpack.make_capsule(
            pointer,
            self.shape,
            f"{self.dtype.kind}{self.dtype.itemsize}",
            device_type=dlpack.CUDA,
            device=self._device,
            owner=(self if owner is self._block else owner, self._ready),
            versioned=max_version is not None and max_version[0] >= dlpack.VERSION[0],
            copied=bool(copy),
        )

    def _copy(self, stream: int) -> Block:
        """A block of its own with the same values, written in ``stream``; at once where that names none."""
        named = stream not in (-1, driver.PER_THREAD_STREAM)
        target = stream if named else LEGACY_STREAM
        block = self._session.results.take(self.nbytes, target)
        driver.wait_event(target, self._ready.handle)
        driver.copy(block.pointer, self.pointer, self.nbytes, target)
        if not named:
            driver.synchronize_stream(target)
            block.tell(None)
        self._block.tell(target)
        return block

    def get(self) -> NDArray[Any]:
        """A copy in host memory; waits until the results are written.

        Raises:
            DeviceError: the work failed.
            InputError: the runner is closed.
        """
        import pycuda.driver as cuda

        self._check()
        host: NDArray[Any] = np.empty(self.shape, self.dtype)
        with self._session.working("copying a result"):
            driver.synchronize_event(self._ready.handle)
            cuda.memcpy_dtoh(host, self.pointer)
        return host

    def _check(self) -> None:
        if self._session.usage.closed:
            raise InputError("the runner of this array is closed")


def require_no_capture(stream: int) -> None:
    """Refuse a stream under capture before anything could spoil the capture. Needs the context to be current.

    Raises:
        InputError: it is being captured.
    """
    if driver.is_capturing(stream):
        raise InputError(
            "the stream is being captured into a CUDA graph, and the runner's batches cannot be part of another's "
            "graph: call the runner before or behind the capture; it launches graphs of its own"
        )


class DeviceOutputs(NamedTuple):
    """Results in device memory; see :class:`infer.backends.base.Outputs` for the shapes.

    Attributes:
        ready: happens when they are written.
        images: what was classified, kept alive until then whatever becomes of the results.
    """

    logits: DeviceArray
    scores: DeviceArray
    classes: DeviceArray
    ready: Event
    images: Any
