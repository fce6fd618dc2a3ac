"""The Python half of the C library in ``embed/``: what its functions do once the arguments are there.

Every function returns a status of ``iresnet_infer.h`` and never raises; the message of an error goes into a buffer of
the caller. :data:`ANSWERED` is set in every result: without it the interpreter could not be started or has failed.
Handles are numbers, so that one which is closed, or was never open, is an error and not a crash.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from infer.bundle.tensors import INPUT, OUTPUTS
from infer.errors import (
    BundleError,
    DeviceError,
    InputError,
    IResNetError,
    KnownAnswersError,
    TargetUnavailableError,
    UnsupportedError,
    UntrainedError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from infer.runner import Runner

ABI = 1
ANSWERED = 0x100
OK, INVALID_ARGUMENT, BUNDLE, TARGET_UNAVAILABLE, UNTRAINED, UNSUPPORTED, DEVICE, INTERNAL, WRONG_ANSWERS = range(9)


class _Open:
    """A runner with the number of calls that use it."""

    def __init__(self, runner: Runner, ffi: Any) -> None:
        self.runner = runner
        self.labels = [ffi.new("char[]", label.encode()) for label in runner.labels]
        self._calls, self._closing, self._idle = 0, False, threading.Condition()

    @contextmanager
    def use(self) -> Iterator[Runner]:
        with self._idle:
            if self._closing:
                raise InputError("this runner is being closed")
            self._calls += 1
        try:
            yield self.runner
        finally:
            with self._idle:
                self._calls -= 1
                self._idle.notify_all()

    def close(self) -> None:
        """Refuse new calls, wait for those under way, release the runner."""
        with self._idle:
            self._closing = True
            self._idle.wait_for(lambda: not self._calls)
        self.runner.close()


class Library:
    """The open runners of a process and the functions that the C library calls.

    Args:
        ffi: cffi's, with the declarations of ``embed/build.py``.
    """

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        self._runners: dict[int, _Open] = {}
        self._numbers = itertools.count(1)

    def register(self) -> None:
        """Put the functions behind the declarations."""
        for name in ("start", "open", "info", "label", "preprocess", "infer", "infer_device", "close"):
            self._ffi.def_extern(name=f"_iresnet_{name}", error=0)(self._guarded(getattr(self, name)))

    def _guarded(self, function: Callable[..., None]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            *rest, message, size = arguments
            try:
                function(*rest)
            except BaseException as error:  # nothing may cross into C
                status, text = _describe(error)
                data = text.encode()[: size - 1].decode(errors="ignore").encode()
                self._ffi.memmove(message, data + b"\0", len(data) + 1)
                return ANSWERED | status
            return ANSWERED | OK

        return call

    def _find(self, handle: int) -> _Open:
        found = self._runners.get(handle)
        if found is None:
            raise InputError("this runner is not open: it was closed, or iresnet_open failed")
        return found

    def start(self) -> None:
        """Answer: the package is loaded."""

    def open(
        self,
        bundle: Any,
        target: Any,
        threads: int,
        allow_untrained: int,
        device: int,
        slots: int,
        spin: int,
        handle: Any,
    ) -> None:
        """``iresnet_open``."""
        from infer.backends.base import GpuOptions
        from infer.runner import open_bundle

        folder = os.fsdecode(self._ffi.string(bundle))
        name = self._ffi.string(target).decode() if target else None
        gpu = GpuOptions(device=device, slots=slots or GpuOptions.slots, spin=bool(spin))
        runner = open_bundle(
            folder, target=name, allow_untrained=bool(allow_untrained), threads=threads or None, gpu=gpu
        )
        try:
            runner.require_trained()
        except IResNetError:
            runner.close()
            raise
        number = next(self._numbers)
        self._runners[number] = _Open(runner, self._ffi)
        handle[0] = number

    def info(self, handle: int, info: Any) -> None:
        """``iresnet_get_info``."""
        with self._find(handle).use() as runner:
            manifest, backend = runner.manifest, runner.backend
            info.height, info.width, info.channels = manifest.inputs[0].shape[1:]
            info.num_classes, info.top_k = manifest.model.num_classes, manifest.outputs[1].shape[1]
            info.max_batch, info.in_flight = backend.max_batch, backend.in_flight
            info.trained, info.device_pointers = manifest.model.trained, backend.on_device is not None

    def label(self, handle: int, index: int, label: Any) -> None:
        """``iresnet_label``."""
        labels = self._find(handle).labels
        if not 0 <= index < len(labels):
            raise InputError(f"class: expected 0 to {len(labels) - 1}, found {index}")
        label[0] = labels[index]

    def preprocess(self, handle: int, rgb: Any, width: int, height: int, row: int, image: Any, size: int) -> None:
        """``iresnet_preprocess``."""
        from PIL import Image

        from infer.images.resize import preprocess

        with self._find(handle).use() as runner:
            if width < 1 or height < 1 or row < 3 * width:
                raise InputError(
                    f"rgb: expected at least one pixel and rows of 3 * width bytes or more, found {width} x {height} "
                    f"pixels in rows of {row} bytes"
                )
            side = runner.preprocessing.crop
            out = self._array("image", image, size, np.uint8, (side, side, 3))
            rows = np.frombuffer(self._ffi.buffer(rgb, row * (height - 1) + 3 * width), np.uint8)
            pixels = np.lib.stride_tricks.as_strided(rows, (height, width, 3), (row, 3, 1), writeable=False)
            preprocess(Image.fromarray(np.ascontiguousarray(pixels)), runner.preprocessing, out=out)

    def infer(self, handle: int, images: Any, size: int, batch: int, outputs: Any) -> None:
        """``iresnet_infer``."""
        with self._find(handle).use() as runner:
            self._check_batch(batch, None)
            batch_array = self._array(INPUT, images, size, np.uint8, (batch, *runner.manifest.inputs[0].shape[1:]))
            shapes = _output_shapes(runner, batch)
            wanted = {
                name: self._array(name, getattr(outputs, name), getattr(outputs, f"{name}_bytes"), dtype, shape)
                for name, (shape, dtype) in shapes.items()
                if getattr(outputs, name) != self._ffi.NULL
            }
            results = runner.infer(batch_array)
            for name, array in wanted.items():
                np.copyto(array, getattr(results, name))

    def infer_device(self, handle: int, images: int, size: int, batch: int, outputs: Any, stream: int) -> None:
        """``iresnet_infer_device``."""
        with self._find(handle).use() as runner:
            if (backend := runner.backend.on_device) is None:
                raise UnsupportedError(
                    f"the {runner.target} target has no device memory; open a bundle on a tensorrt target, or use "
                    "iresnet_infer"
                )
            self._check_batch(batch, runner.backend.max_batch)
            height, width, channels = runner.manifest.inputs[0].shape[1:]
            _check_size(INPUT, size, batch * height * width * channels)
            pointers = []
            for name, (shape, dtype) in _output_shapes(runner, batch).items():
                if getattr(outputs, name) == self._ffi.NULL:
                    raise InputError(f"{name}: expected device memory for all three outputs, found NULL")
                _check_size(name, getattr(outputs, f"{name}_bytes"), int(np.prod(shape)) * np.dtype(dtype).itemsize)
                pointers.append(int(self._ffi.cast("uintptr_t", getattr(outputs, name))))
            backend.enqueue(images, batch, pointers, stream)

    def close(self, handle: int) -> None:
        """``iresnet_close``."""
        opened = self._find(handle)
        if self._runners.pop(handle, None) is not None:
            opened.close()

    @staticmethod
    def _check_batch(batch: int, most: int | None) -> None:
        if batch < 1 or (most is not None and batch > most):
            raise InputError(f"batch: expected 1 {'or more' if most is None else f'to {most}'}, found {batch}")

    def _array(self, name: str, pointer: Any, size: int, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """The caller's memory as an array."""
        _check_size(name, size, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.frombuffer(self._ffi.buffer(pointer, size), dtype).reshape(shape)


def _output_shapes(runner: Runner, batch: int) -> dict[str, tuple[tuple[int, int], Any]]:
    classes, k = runner.manifest.model.num_classes, runner.manifest.outputs[1].shape[1]
    return dict(
        zip(OUTPUTS, (((batch, classes), np.float32), ((batch, k), np.float32), ((batch, k), np.int32)), strict=True)
    )


def _check_size(name: str, size: int, expected: int) -> None:
    if size != expected:
        raise InputError(f"{name}: expected {expected} bytes, found {size}")


#: Status of each kind of error; the first that fits.
_STATUS: tuple[tuple[type[IResNetError], int], ...] = (
    (DeviceError, DEVICE),
    (UnsupportedError, UNSUPPORTED),
    (UntrainedError, UNTRAINED),
    (TargetUnavailableError, TARGET_UNAVAILABLE),
    (BundleError, BUNDLE),
    (InputError, INVALID_ARGUMENT),
    (KnownAnswersError, WRONG_ANSWERS),
)


def _describe(error: BaseException) -> tuple[int, str]:
    """Status and message of an error."""
    text = " ".join(str(error).split())
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status, text
    if isinstance(error, ImportError):
        text += f". Set IRESNET_PYTHON to the python of an environment that has all packages, not {sys.executable}"
    return INTERNAL, f"{type(error).__name__}: {text}"
