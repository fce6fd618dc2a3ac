"""What callers still hold when a runner is closed: freed when they give it up, and the context with the last of it."""

from __future__ import annotations

import contextlib
import logging
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from infer.backends.cuda import driver
from infer.errors import DeviceError, InputError

if TYPE_CHECKING:
    from infer.backends.cuda.buffers import PinnedBuffer
    from infer.backends.cuda.context import PrimaryContext

_LOG = logging.getLogger(__name__)


class Held(Protocol):
    """Memory that somebody held beyond the runner."""

    def free(self) -> None:
        """Free it. Needs the context to be current."""


class Remains:
    """Memory to be freed once it comes back through a queue.

    Args:
        context: of the memory; released at the end.
        returned: where it comes back. Whoever gives it up only puts it there: destructors run anywhere and make no CUDA
            call.
        count: how much of what comes back is of others than :meth:`add`.
    """

    def __init__(self, context: PrimaryContext, returned: SimpleQueue[Held], count: int) -> None:
        self._context, self._returned, self._count = context, returned, count
        self._buffers: list[PinnedBuffer] = []  # a weak reference tells nothing when it is gone itself

    def add(self, buffers: list[PinnedBuffer]) -> None:
        """Wait for the last array that shows each of these, too."""
        self._buffers += buffers
        self._count += len(buffers)
        for buffer in buffers:
            buffer.give_up(self._returned.put)

    def settle(self) -> bool:
        """Free what is there already, with the context current; whether that was all. Else a thread goes on."""
        with contextlib.suppress(Empty):
            while self._count:
                self._free(self._returned.get_nowait())
        if not self._count:
            return True
        _LOG.debug("%d arrays outlive their runner", self._count)
        try:
            threading.Thread(target=self._wait, name="iresnet-remains", daemon=True).start()
        except RuntimeError as error:  # the interpreter ends, and the process with it
            _LOG.debug("memory of the closed runner is still held: %s", error)
        return False

    def _free(self, held: Held) -> None:
        self._count -= 1
        with contextlib.suppress(DeviceError, InputError):
            held.free()

    def _wait(self) -> None:
        while self._count:
            held = self._returned.get()
            with contextlib.suppress(DeviceError, InputError), self._context, driver.unaffected_by_captures():
                self._free(held)
            del held
        self._buffers.clear()
        with contextlib.suppress(DeviceError, InputError):
            self._context.release()
