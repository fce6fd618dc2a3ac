"""Blocks of device memory for results: written again only behind every stream that was told of them."""

from __future__ import annotations

import contextlib
import logging
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from infer.backends.cuda import driver
from infer.backends.cuda.remains import Remains
from infer.errors import DeviceError, DeviceMemoryError

if TYPE_CHECKING:
    from infer.backends.cuda.context import PrimaryContext
    from infer.backends.cuda.events import Event, EventPool

_LOG = logging.getLogger(__name__)
_CAPTURING = range(900, 910)  # codes of what may not be done while a stream is captured
_SPARE = 8  # idle blocks of a size that are kept before one is made to wait for another stream


class Memory:
    """A block's bytes and who may still read them. Belongs to a block, or idle to the pool.

    Attributes:
        pointer: address.
        size: bytes.
        streams: handles of the streams that were told of it, with what tells each from a later one of that handle.
        untold: it was shown to somebody who did not name a stream.
    """

    def __init__(self, pointer: int, size: int) -> None:
        self.pointer, self.size = pointer, size
        self.streams: dict[int, int] = {}
        self.untold = False

    def free(self) -> None:
        """Free it behind everything that is under way; for one that its runner has outlived."""
        driver.synchronize_context()
        driver.free(self.pointer)

    def forget_readers(self) -> None:
        """Nothing of what was enqueued reads it any more."""
        self.streams.clear()
        self.untold = False


class ResultPool:
    """Blocks of device memory for results. Thread-safe; needs the context to be current.

    A block that nobody holds any more may still be read by work that its holders have enqueued. Work of one stream
    runs in order, so on a stream that alone knows a block it is used again as it is. Where other streams were told of
    it, the next writer waits on the device for what they hold by then. Where a stream is gone, or somebody has not
    named one, it is used again behind a synchronisation of the context, which makes all idle blocks as new.

    Nothing is freed before the end, because freeing waits for the device; what is kept is what was once held at the
    same time, and a few.
    """

    def __init__(self, context: PrimaryContext, events: EventPool) -> None:
        self.context, self._events, self._lock = context, events, threading.Lock()
        self._returned: SimpleQueue[Any] = SimpleQueue()
        self._idle: dict[int, list[Memory]] = {}
        self._blocks = 0

    def take(self, size: int, stream: int) -> Block:
        """A block of at least ``size`` bytes, to be written in ``stream``.

        Raises:
            DeviceMemoryError: there is no memory for it.
            DeviceError: CUDA refused.
        """
        size = 1 << max(size - 1, 4095).bit_length()
        identity = driver.stream_id(stream)
        with self._lock, driver.unaffected_by_captures():
            self._collect()
            memory = self._known_to(size, stream, identity)
            if memory is None and len(self._idle.get(size, ())) < _SPARE:
                memory = self._allocate(size)
            if memory is None:
                memory = self._shared(size, stream, identity)
        memory.streams[stream] = identity
        return Block(self, memory)

    def _collect(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                memory = self._returned.get_nowait()
                self._idle.setdefault(memory.size, []).append(memory)

    def _known_to(self, size: int, stream: int, identity: int) -> Memory | None:
        """An idle block that no other stream was told of."""
        idle = self._idle.get(size, [])
        for place, memory in enumerate(idle):
            if not memory.untold and memory.streams.items() <= {(stream, identity)}:
                return idle.pop(place)
        return None

    def _allocate(self, size: int) -> Memory | None:
        """A new block; None where there is no memory, but an idle block that will do."""
        try:
            pointer = driver.allocate(size)
        except DeviceMemoryError:
            if self._idle.get(size):
                return None
            self._free_idle()
            pointer = driver.allocate(size)
        self._blocks += 1
        return Memory(pointer, size)

    def _shared(self, size: int, stream: int, identity: int) -> Memory:
        """An idle block that ``stream`` is made to wait for; where that cannot be, the host waits for everybody."""
        idle = self._idle[size]
        for place, memory in enumerate(idle):
            marks = None if memory.untold else self._marks(memory, stream, identity)
            if marks is not None:
                for mark in marks:
                    driver.wait_event(stream, mark.handle)
                del idle[place]
                memory.forget_readers()
                return memory
        if not self._captured(idle):
            try:
                self._synchronize()
                return idle.pop()
            except DeviceError as error:
                if error.status not in _CAPTURING:
                    raise
        # Somebody captures a stream: to wait for the context would fail, and spoil the capture.
        memory = Memory(driver.allocate(size), size)
        self._blocks += 1
        return memory

    @staticmethod
    def _captured(idle: list[Memory]) -> bool:
        """Whether a stream that was told of one of these blocks is being captured."""
        for stream in {stream for memory in idle for stream in memory.streams}:
            with contextlib.suppress(DeviceError):
                if driver.is_capturing(stream):
                    return True
        return False

    def _marks(self, memory: Memory, stream: int, identity: int) -> list[Event] | None:
        """Events behind what other streams hold now that were told of a block; None when one is gone or captured."""
        marks = []
        for other, known in memory.streams.items():
            if (other, known) == (stream, identity):
                continue
            try:
                if driver.stream_id(other) != known or driver.is_capturing(other):
                    return None
                mark = self._events.take()
                driver.record_event(mark.handle, other)
            except DeviceError as error:
                _LOG.debug("a stream that was told of a result is gone: %s", error)
                return None
            marks.append(mark)
        return marks

    def _synchronize(self) -> None:
        driver.synchronize_context()
        for idle in self._idle.values():
            for memory in idle:
                memory.forget_readers()

    def _free_idle(self) -> None:
        if any(self._idle.values()):
            self._synchronize()
        for idle in self._idle.values():
            for memory in idle:
                driver.free(memory.pointer)
            self._blocks -= len(idle)
        self._idle.clear()

    def give_back(self, memory: Memory) -> None:
        """Called when nobody holds a block any more: no lock, no CUDA call, no context need be current."""
        self._returned.put(memory)

    def close(self) -> Remains:
        """Free what nobody holds, and return what is held.

        Needs nobody inside the runner. In a broken context nothing can be freed one by one, so nothing remains.
        """
        if self.context.failure is not None:
            return Remains(self.context, self._returned, 0)
        with self._lock, driver.unaffected_by_captures():
            self._collect()
            self._free_idle()
        return Remains(self.context, self._returned, self._blocks)


class Block:
    """Device memory of one result; goes back to its pool when the last array of it goes."""

    def __init__(self, pool: ResultPool, memory: Memory) -> None:
        self._pool, self._memory = pool, memory
        self.pointer = memory.pointer

    def tell(self, stream: int | None) -> None:
        """Remember that ``stream`` may read it; None for one that was not named. Needs the context to be current."""
        if stream is None or stream == driver.PER_THREAD_STREAM:  # by which every thread means another one
            self._memory.untold = True
            return
        identity = driver.stream_id(stream)
        if self._memory.streams.setdefault(stream, identity) != identity:  # the one of before is gone
            self._memory.untold = True

    def __del__(self) -> None:
        self._pool.give_back(self._memory)
