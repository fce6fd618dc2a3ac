"""The Python half of the C library in ``infer/embed``: what its functions do once the arguments are there.

``infer/embed/interpreter.c`` imports this module and calls :func:`start`, ``infer/embed/library.c`` the methods of
:class:`Library`. Every method returns ``(status, message)`` with a status of ``iresnet_infer.h``, or ``(OK, answer)``,
and never raises. Memory of the caller comes as addresses. Handles are numbers, so that one which is closed, or was
never open, is an error and not a crash.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - see start
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from infer.bundle.tensors import INPUT, OUTPUTS
from infer.errors import (
    BundleError,
    DeviceError,
    InputError,
    IResNetError,
    KnownAnswersError,
    ProcessError,
    TargetUnavailableError,
    UnsupportedError,
    UntrainedError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from infer.runner import Runner

ABI = 2
OK, INVALID_ARGUMENT, BUNDLE, TARGET_UNAVAILABLE, UNTRAINED, UNSUPPORTED, DEVICE, INTERNAL, WRONG_ANSWERS = range(9)
SHUT_DOWN = 10
#: Of ``iresnet_answers``.
UNCHECKED, PASSED, CANNOT_TELL = range(3)

Reply = tuple[int, Any]


def start(on_exit: Callable[[], None]) -> Library:
    """The library of this process, which ends before the interpreter does.

    Args:
        on_exit: refuses new calls and returns when those under way have ended.
    """
    library, process = Library(), os.getpid()

    def end() -> None:
        if os.getpid() == process:
            on_exit()
            library.end()

    # Before the pools of concurrent.futures take no more work, which they stop ahead of all of atexit; what is
    # registered last is called first, and they register when they are imported. The function is not public.
    getattr(threading, "_register_atexit", atexit.register)(end)
    return library


class _Open:
    """A runner with the number of calls that use it."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._calls, self._closing, self._idle = 0, False, threading.Condition()
        self._told = 0

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

    def answers(self) -> tuple[int, float, float]:
        """Outcome, lowest SQNR and highest floor, dB, of the known answers checked so far."""
        test = self.runner.self_test
        checked = list(test.checked) if test is not None else []
        self._told = len(checked)
        checked = [one for one in checked if one.target == self.runner.target]
        if not checked:
            return UNCHECKED, float("nan"), float("nan")
        sqnr = min(float("inf") if one.sqnr_db is None else one.sqnr_db for one in checked)
        told = all(one.outcome == "passed" for one in checked)
        return PASSED if told else CANNOT_TELL, sqnr, max(one.floor_db for one in checked)

    def new_answers(self) -> tuple[int, float, float] | None:
        """The same where a batch size was checked since they were told, else None."""
        test = self.runner.self_test
        return self.answers() if test is not None and len(test.checked) != self._told else None


def _guarded(method: Callable[..., Any]) -> Callable[..., Reply]:
    """Nothing may be raised into C."""

    def call(*arguments: Any) -> Reply:
        try:
            return OK, method(*arguments)
        except BaseException as error:
            status, text = _describe(error)
            return status, text.encode(errors="surrogateescape").replace(b"\0", b"\\0")

    return call


class Library:
    """The open runners of a process and what the C library calls."""

    def __init__(self) -> None:
        self._runners: dict[int, _Open] = {}
        self._numbers = itertools.count(1)

    def _find(self, handle: int) -> _Open:
        found = self._runners.get(handle)
        if found is None:
            raise InputError(
                "runner: expected an open one, found one that was closed or that iresnet_open did not make"
            )
        return found

    @_guarded
    def open(
        self,
        bundle: bytes,
        target: str | None,
        threads: int,
        allow_untrained: int,
        device: int,
        slots: int,
        spin: int,
        self_test: str | None,
    ) -> tuple[Any, ...]:
        """``iresnet_open``: number, sizes, known answers, target, device, notes and labels."""
        from infer.backends.base import GpuOptions
        from infer.runner import open_bundle

        gpu = GpuOptions(device=device, slots=slots or GpuOptions.slots, spin=bool(spin))
        runner = open_bundle(
            os.fsdecode(bundle),
            target=target,
            allow_untrained=bool(allow_untrained),
            threads=threads or None,
            gpu=gpu,
            self_test=self_test,
        )
        try:
            runner.require_trained()
            opened, number = _Open(runner), next(self._numbers)
            manifest, backend = runner.manifest, runner.backend
            sizes = (
                *manifest.inputs[0].shape[1:],
                manifest.model.num_classes,
                manifest.outputs[1].shape[1],
                backend.max_batch,
                backend.in_flight,
                int(manifest.model.trained),
                int(backend.on_device is not None),
            )
            notes = [*(runner.self_test.notes if runner.self_test is not None else ()), *backend.notes]
            texts = (_text(runner.target), _text(backend.device), _text("\n".join(dict.fromkeys(notes))))
            answer = (number, sizes, opened.answers(), *texts, [_text(label) for label in runner.labels])
        except BaseException:
            runner.close()
            raise
        self._runners[number] = opened
        return answer

    @_guarded
    def preprocess(self, handle: int, rgb: int, width: int, height: int, row: int, image: int, size: int) -> None:
        """``iresnet_preprocess``."""
        from PIL import Image

        from infer.images.resize import preprocess

        with self._find(handle).use() as runner:
            side = runner.preprocessing.crop
            out = _array("image", image, size, np.uint8, (side, side, 3))
            rows = _memory(rgb, np.uint8, (row * (height - 1) + 3 * width,))
            pixels = np.lib.stride_tricks.as_strided(rows, (height, width, 3), (row, 3, 1), writeable=False)
            preprocess(Image.fromarray(np.ascontiguousarray(pixels)), runner.preprocessing, out=out)

    @_guarded
    def infer(
        self, handle: int, images: int, size: int, batch: int, outputs: tuple[tuple[int, int], ...], _stream: int
    ) -> tuple[int, float, float] | None:
        """``iresnet_infer``; the known answers anew where they were checked on the way."""
        opened = self._find(handle)
        with opened.use() as runner:
            _check_batch(batch, None)
            batch_array = _array(INPUT, images, size, np.uint8, (batch, *runner.manifest.inputs[0].shape[1:]))
            wanted = {
                name: _array(name, pointer, found, dtype, shape)
                for (pointer, found), (name, shape, dtype) in zip(outputs, _outputs(runner, batch), strict=True)
                if pointer
            }
            results = runner.infer(batch_array)
            for name, array in wanted.items():
                np.copyto(array, getattr(results, name))
        return opened.new_answers()

    @_guarded
    def infer_device(
        self, handle: int, images: int, size: int, batch: int, outputs: tuple[tuple[int, int], ...], stream: int
    ) -> tuple[int, float, float] | None:
        """``iresnet_infer_device``; the known answers as :meth:`infer`."""
        opened = self._find(handle)
        with opened.use() as runner:
            if (backend := runner.backend.on_device) is None:
                raise UnsupportedError(
                    f"the {runner.target} target has no device memory; open a bundle on a tensorrt target, or use "
                    "iresnet_infer"
                )
            _check_batch(batch, runner.backend.max_batch)
            height, width, channels = runner.manifest.inputs[0].shape[1:]
            _check_size(INPUT, size, batch * height * width * channels)
            for (pointer, found), (name, shape, dtype) in zip(outputs, _outputs(runner, batch), strict=True):
                if not pointer:
                    raise InputError(f"{name}: expected device memory for all three outputs, found NULL")
                _check_size(name, found, int(np.prod(shape)) * np.dtype(dtype).itemsize)
            backend.enqueue(images, batch, [pointer for pointer, _ in outputs], stream)
        return opened.new_answers()

    @_guarded
    def close(self, handle: int) -> None:
        """``iresnet_close``."""
        if (opened := self._runners.pop(handle, None)) is not None:
            opened.close()

    def end(self) -> None:
        """Release every runner; no call is under way."""
        while self._runners:
            with suppress(Exception):  # the process ends, and its other exit functions are to run
                self._runners.popitem()[1].close()


class _Memory:
    """Memory at an address, for NumPy."""

    def __init__(self, address: int, dtype: Any, shape: tuple[int, ...]) -> None:
        kind = np.dtype(dtype).str
        self.__array_interface__ = {"version": 3, "data": (address, False), "typestr": kind, "shape": shape}


def _memory(address: int, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.asarray(_Memory(address, dtype, shape))


def _array(name: str, address: int, size: int, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The caller's memory as an array."""
    _check_size(name, size, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return _memory(address, dtype, shape)


def _text(value: str) -> bytes:
    return value.encode(errors="replace").replace(b"\0", b" ")


def _check_batch(batch: int, most: int | None) -> None:
    if batch < 1 or (most is not None and batch > most):
        raise InputError(f"batch: expected 1 {'or more' if most is None else f'to {most}'}, found {batch}")


def _outputs(runner: Runner, batch: int) -> list[tuple[str, tuple[int, int], Any]]:
    """Name, shape and dtype of each."""
    classes, k = runner.manifest.model.num_classes, runner.manifest.outputs[1].shape[1]
    return [(OUTPUTS[0], (batch, classes), np.float32), (OUTPUTS[1], (batch, k), np.float32),
            (OUTPUTS[2], (batch, k), np.int32)]  # fmt: skip


def _check_size(name: str, size: int, expected: int) -> None:
    if size != expected:
        raise InputError(f"{name}: expected {expected} bytes, found {size}")


#: Status of each kind of error; the first that fits.
_STATUS: tuple[tuple[type[IResNetError], int], ...] = (
    (ProcessError, SHUT_DOWN),
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
