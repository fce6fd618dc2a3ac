"""Events that are handed to callers: taken from a pool, usable and droppable on any thread."""

from __future__ import annotations

import threading

from infer.cuda import driver
from infer.errors import InputError


class EventPool:
    """CUDA events that are used again when nobody holds them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[int] = []
        self._idle: list[int] = []
        self.closed = False

    def take(self) -> Event:
        """An event for one use. Needs the context to be current."""
        with self._lock:
            if self.closed:
                raise InputError("this runner is closed; open the bundle again")
            if self._idle:
                return Event(self, self._idle.pop())
            handle = driver.create_event()
            self._all.append(handle)
            return Event(self, handle)

    def give_back(self, handle: int) -> None:
        """Called by an event that nobody holds any more, on whatever thread. Appending needs no lock."""
        self._idle.append(handle)

    def close(self) -> None:
        """Destroy all events. Needs the context to be current."""
        with self._lock:
            self.closed = True
            for handle in self._all:
                driver.destroy_event(handle)
            self._all.clear()


class Event:
    """A point in a stream. Belongs to the runner: unusable once that is closed.

    Attributes:
        handle: ``CUevent``, for ``cuStreamWaitEvent`` and the like.
    """

    def __init__(self, pool: EventPool, handle: int) -> None:
        self._pool, self.handle = pool, handle

    def synchronize(self) -> None:
        """Wait on the host until the work before this point is done. Needs no current context of the caller."""
        self._check()
        driver.synchronize_event(self.handle)

    def query(self) -> bool:
        """Whether the work before this point is done."""
        self._check()
        return driver.query_event(self.handle)

    def _check(self) -> None:
        if self._pool.closed:
            raise InputError("the runner of this event is closed")

    def __del__(self) -> None:
        self._pool.give_back(self.handle)
