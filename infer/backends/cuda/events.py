"""Events that are handed to callers: taken from a pool, usable and droppable on any thread."""

from __future__ import annotations

import threading
from collections import deque

from infer.backends.cuda import driver
from infer.backends.cuda.context import PrimaryContext
from infer.backends.cuda.usage import Usage
from infer.errors import InputError


class EventPool:
    """CUDA events that are used again when nobody holds them. Thread-safe.

    Args:
        context: of the events.
        usage: of their runner.
    """

    def __init__(self, context: PrimaryContext, usage: Usage) -> None:
        self._context, self._usage, self._lock = context, usage, threading.Lock()
        self._all: list[int] = []
        self._idle: deque[int] = deque()

    def take(self) -> Event:
        """An event for one use. Needs the context to be current."""
        try:
            return Event(self, self._idle.popleft())
        except IndexError:
            handle = driver.create_event()
        with self._lock:
            self._all.append(handle)
        return Event(self, handle)

    def give_back(self, handle: int) -> None:
        """Called by an event that nobody holds any more, on whatever thread, so without a lock."""
        self._idle.append(handle)

    def synchronize(self, handle: int) -> None:
        """Wait on the host; see :meth:`Event.synchronize`."""
        self._check()
        with self._usage, self._context.explaining("waiting for an event"):
            driver.synchronize_event(handle)

    def query(self, handle: int) -> bool:
        """Ask; see :meth:`Event.query`."""
        self._check()
        with self._usage, self._context.explaining("asking for an event"), driver.unaffected_by_captures():
            return driver.query_event(handle)

    def _check(self) -> None:
        if self._usage.closed:
            raise InputError("the runner of this event is closed")

    def close(self) -> None:
        """Destroy all events. Needs the context to be current, and nobody inside the runner."""
        with self._lock:
            for handle in self._all:
                driver.destroy_event(handle)
            self._all.clear()


class Event:
    """A point in a stream. Belongs to the runner: unusable once that is closed. Thread-safe.

    Attributes:
        handle: ``CUevent``, for ``cuStreamWaitEvent`` and the like; valid while this object lives.
    """

    def __init__(self, pool: EventPool, handle: int) -> None:
        self._pool, self.handle = pool, handle

    def synchronize(self) -> None:
        """Wait on the host until the work before this point is done; no context need be current.

        Raises:
            DeviceError: that work, or other work on the device, failed.
            InputError: the runner is closed.
        """
        self._pool.synchronize(self.handle)

    def query(self) -> bool:
        """Whether the work before this point is done; raises as :meth:`synchronize` does."""
        return self._pool.query(self.handle)

    def __del__(self) -> None:
        self._pool.give_back(self.handle)
