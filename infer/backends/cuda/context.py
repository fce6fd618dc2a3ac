"""The primary context of a device: retained, pushed and popped by each thread, and released whatever happened.

The primary context is the one that the CUDA runtime uses, so torch, CuPy and other users in the process share it;
``pycuda.autoinit`` would make one of its own and leave it current on a thread. Nothing stays current here: a context
left on the stack of a thread that ends makes pycuda abort the process.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from infer.backends.cuda import driver
from infer.errors import DeviceError, DeviceMemoryError, InputError, TargetUnavailableError

_LOG = logging.getLogger(__name__)
_POPS = 3  # how often a pop that fails is tried


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
        except self._cuda.Error as error:
            self._retry_push(error)
        return self

    def _retry_push(self, error: BaseException) -> None:
        """The first try may only have told what earlier work came to; a context that is gone stays so."""
        if driver.push_context(self._context.handle) == 0:
            driver.pop_context()
            # pycuda takes the caller's context off first. Where that told an error the driver has done it all the same,
            # and pycuda would do it again.
            before = self._cuda.Context.get_current()
            if before is not None and driver.current_context() != before.handle:
                driver.push_context(before.handle)
            try:
                self._context.push()
                return
            except self._cuda.Error as again:
                error = again
        if self.failure is None:  # somebody reset the device
            self.failure = DeviceError(f"the CUDA context of device {self.ordinal} is gone: {error}", sticky=True)
        raise self.again() from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._cuda.Context.pop()
        except self._cuda.Error as failed:
            # cuCtxPopCurrent may tell what earlier work came to, and pycuda then keeps the context on its own stack.
            said = self._pop_again(failed)
            try:
                if error is None:
                    raise said from failed
            finally:
                del said  # it would hold its own traceback

    def _pop_again(self, failed: BaseException) -> BaseException:
        """Take the context off both stacks; the error to raise."""
        handle, said = self._context.handle, failed
        for _ in range(_POPS):
            if driver.current_context() != handle and (status := driver.push_context(handle)):
                _LOG.error("the CUDA context stays current on this thread: %s", driver.describe(status))
                break
            if said is failed:
                said = self.explain(failed, "leaving the CUDA context")
            try:
                self._cuda.Context.pop()
                break
            except self._cuda.Error as again:
                _LOG.debug("leaving the CUDA context: %s", again)
        return said if isinstance(said, DeviceError) else DeviceError(f"leaving the CUDA context failed: {failed}")

    def free_memory(self) -> tuple[int, int]:
        """Free and total bytes of the device. Needs the context to be current."""
        try:
            free, total = self._cuda.mem_get_info()
        except self._cuda.Error as error:
            raise self.explain(error, "asking for the free memory") from error
        return int(free), int(total)

    def explain(self, error: BaseException, doing: str) -> BaseException:
        """The error to raise for ``error``, which happened while ``doing``. Needs the context to be current.

        A sticky error, told by its code or by the one that a harmless call meets, is kept in :attr:`failure`. What has
        nothing to do with a call that failed, such as KeyboardInterrupt or short memory, is returned as it is.
        """
        if isinstance(error, self._cuda.MemoryError):
            return DeviceMemoryError(f"{doing} failed: {error}")
        if not isinstance(error, (DeviceError, self._cuda.Error)) or isinstance(error, DeviceMemoryError):
            return error
        status = error.status if isinstance(error, DeviceError) else 0
        if status not in driver.STICKY:
            status = driver.health()
        if status not in driver.STICKY:
            return DeviceError(f"{doing} failed: {error}", status=status)
        if self.failure is None:
            self.failure = DeviceError(
                f"{doing} failed and left the CUDA context unusable: {error}. Close the runner; the GPU can be used "
                "again from a new process",
                sticky=True,
                status=status,
            )
        return self.again()

    @contextlib.contextmanager
    def explaining(self, doing: str) -> Iterator[None]:
        """Make the context current for the block, and let errors leave it as :meth:`explain` has them."""
        with self:
            try:
                yield
            except Exception as error:
                found = self.explain(error, doing)
                if found is error:
                    raise
                try:
                    raise found from error
                finally:
                    del found  # it would hold its own traceback

    def again(self) -> DeviceError:
        """The first failure once more, as an object of its own: one raised many times would gather tracebacks."""
        assert self.failure is not None
        return DeviceError(str(self.failure), sticky=True, status=self.failure.status)

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
