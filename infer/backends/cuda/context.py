"""The primary context of a device: retained, pushed and popped by each thread, and released whatever happened.

The primary context is the one that the CUDA runtime uses, so torch, CuPy and other users in the process share it;
``pycuda.autoinit`` would make one of its own and leave it current on a thread. Nothing stays current here: a context
left on the stack of a thread that ends makes pycuda abort the process.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

from infer.backends.cuda import driver
from infer.errors import DeviceError, DeviceMemoryError, InputError, TargetUnavailableError


class PrimaryContext:
    """The retained primary context of one device.

    ``with context:`` makes it current for the block, on any thread, and puts back what was current before; blocks
    nest. Thread-safe.

    Args:
        ordinal: number of the device.

    Raises:
        TargetUnavailableError: no such device, or its context cannot be made.

    Attributes:
        failure: the first sticky error, which makes every later call fail; None while the context is sound.
    """

    def __init__(self, ordinal: int) -> None:
        import pycuda.driver as cuda

        self._cuda = cuda
        self.ordinal = ordinal
        self.failure: DeviceError | None = None
        self._released = False
        try:
            cuda.init()
            device = cuda.Device(ordinal)
            self.name: str = device.name()
            self._context: Any = device.retain_primary_context()
        except cuda.Error as error:
            raise TargetUnavailableError(f"expected a usable CUDA device {ordinal}; {error}") from error

    def __enter__(self) -> PrimaryContext:
        if self._released:  # pycuda would take the context below off its stack with it
            raise InputError("this runner is closed; open the bundle again")
        try:
            self._context.push()
        except self._cuda.Error as error:  # somebody reset the device
            if self.failure is None:
                self.failure = DeviceError(f"the CUDA context of device {self.ordinal} is gone: {error}", sticky=True)
            raise self.again() from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cuda.Context.pop()

    def free_memory(self) -> tuple[int, int]:
        """Free and total bytes of the device. Needs the context to be current."""
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def explain(self, error: BaseException, doing: str) -> BaseException:
        """The error to raise for ``error``, which happened while ``doing``. Needs the context to be current.

        A sticky error, after which CUDA answers every call with the same code, is kept in :attr:`failure`. What has
        nothing to do with a call that failed, such as KeyboardInterrupt or short memory, is returned as it is.
        """
        if not isinstance(error, (DeviceError, self._cuda.Error)) or isinstance(error, DeviceMemoryError):
            return error
        broken = self._broken()
        if broken is None:
            return DeviceError(f"{doing} failed: {error}")
        if self.failure is None:
            self.failure = DeviceError(
                f"{doing} failed and left the CUDA context unusable: {error}. Close the runner; the GPU can be used "
                "again from a new process",
                sticky=True,
            )
        return self.again()

    def again(self) -> DeviceError:
        """The first failure once more, as an object of its own: one raised many times would gather tracebacks."""
        return DeviceError(str(self.failure), sticky=True)

    def _broken(self) -> BaseException | None:
        """The error that a harmless call meets, if any."""
        try:
            self._cuda.mem_get_info()
        except self._cuda.Error as error:
            return error  # type: ignore[no-any-return]
        return None

    def release(self) -> None:
        """Give the context back; what was made in it and still lives is then out of pycuda's reach.

        pycuda leaves a primary context that it detaches on the driver's stack, and releases it only on the thread that
        retained it or where it is current. So it is made current here and taken off the driver's stack first.
        Left to its destructor, it would be detached as a context of the other kind, which fails.
        """
        self._released = True
        with contextlib.suppress(self._cuda.Error):  # a context that was reset cannot be made current any more
            self._context.push()
            driver.pop_context()
        self._context.detach()
