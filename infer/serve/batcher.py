"""Dynamic batching: rows of many requests become batches of one device.

A batch goes out when it is full, when its oldest row has waited ``max_delay``, or at once when the device is idle.
While ``in_flight`` batches are under way, one full batch more is put together ahead; nothing else goes out.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Backend, Outputs
from infer.serve.ticket import Piece, Ticket, deliver

#: Rows of padding a batch may have, as a share of what is computed, before a smaller compiled size is taken.
_MOST_PADDING = 0.2


class Watcher(Protocol):
    """Who is told of what a batcher does; called from its threads."""

    def batch(self, rows: int, waits: Sequence[float], seconds: float) -> None:
        """A batch of ``rows`` came back after ``seconds``; its parts had waited for ``waits`` seconds."""
        ...

    def failed(self, error: Exception) -> None:
        """A batch failed."""
        ...

    def broken(self, error: Exception) -> None:
        """The batcher itself failed; nothing goes out any more."""
        ...


class _Rows:
    """Rows of a ticket that wait for the device."""

    __slots__ = ("arrived", "first", "images", "ticket")

    def __init__(self, ticket: Ticket, first: int, images: NDArray[np.uint8], arrived: float) -> None:
        self.ticket, self.first, self.images, self.arrived = ticket, first, images, arrived


class _Part(NamedTuple):
    """Rows that go out in a batch."""

    ticket: Ticket
    first: int
    images: NDArray[np.uint8]
    wait: float


class Batcher:
    """The queue before one backend, and the thread that empties it.

    Args:
        backend: what runs the batches.
        max_delay: seconds that a row waits for others while the device is busy but has room.
        watcher: is told of batches and failures.
        name: of the thread.
    """

    def __init__(self, backend: Backend, max_delay: float, watcher: Watcher, name: str) -> None:
        self._backend, self._max_delay, self._watcher = backend, max_delay, watcher
        self._largest, self._in_flight = backend.max_batch, backend.in_flight
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[_Rows] = deque()
        self._rows = self._under_way = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"batches of {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait for the device."""
        return self._rows

    @property
    def under_way(self) -> int:
        """Batches that were sent and have not come back."""
        return self._under_way

    def put(self, ticket: Ticket, first: int, images: NDArray[np.uint8]) -> None:
        """Add rows; from any thread.

        Args:
            ticket: whose they are.
            first: index of the first of them in the ticket.
            images: uint8 ``[n, H, W, 3]``, n at least 1, checked; not to be changed.
        """
        rows = _Rows(ticket, first, images, time.perf_counter())
        with self._changed:
            before, self._rows = self._rows, self._rows + len(images)
            self._waiting.append(rows)
            # Else the thread knows already when it goes on: the oldest row decides.
            if before == 0 or before < self._largest <= self._rows:
                self._changed.notify()

    def close(self) -> None:
        """Send what waits, wait until all of it came back, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        with self._changed:
            while self._under_way:
                self._changed.wait()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    rows = self._next()
                    if rows == 0:
                        return
                    parts, dropped = self._take(rows)
                    if parts:
                        self._under_way += 1
                if dropped:
                    deliver(dropped)
                if parts:
                    self._send(parts)
                del parts, dropped  # not kept until the next batch
        except Exception as error:
            self._watcher.broken(error)

    def _next(self) -> int:
        """Wait until a batch may go out; how many rows it has, 0 when all is done. Called with the lock."""
        while True:
            room = self._in_flight - self._under_way
            if self._rows >= self._largest and room >= 0:
                return self._largest
            if self._rows == 0:
                if self._closed:
                    return 0
            elif room > 0:
                left = self._waiting[0].arrived + self._max_delay - time.perf_counter()
                if room == self._in_flight or left <= 0 or self._closed:
                    return self._fitting(self._rows)
                self._changed.wait(left)
                continue
            self._changed.wait()

    def _fitting(self, rows: int) -> int:
        """``rows``, or a compiled size below it where padding would cost more than it brings."""
        sizes = self._backend.compiled_batches
        above = min((size for size in sizes if size >= rows), default=rows)
        below = max((size for size in sizes if size <= rows), default=rows)
        return below if above - rows > _MOST_PADDING * above else rows

    def _take(self, rows: int) -> tuple[list[_Part], list[tuple[Ticket, Piece]]]:
        """Up to ``rows`` rows from the front, and those that nobody waits for. Called with the lock."""
        parts: list[_Part] = []
        dropped: list[tuple[Ticket, Piece]] = []
        now = time.perf_counter()
        while rows and self._waiting:
            head = self._waiting[0]
            count = len(head.images)
            if head.ticket.abandoned:
                dropped.append((head.ticket, Piece(head.first, count, None)))
                self._waiting.popleft()
                self._rows -= count
                continue
            taken = min(rows, count)
            parts.append(_Part(head.ticket, head.first, head.images[:taken], now - head.arrived))
            rows -= taken
            self._rows -= taken
            if taken == count:
                self._waiting.popleft()
            else:
                head.images, head.first = head.images[taken:], head.first + taken
        return parts, dropped

    def _send(self, parts: list[_Part]) -> None:
        started = time.perf_counter()
        try:
            future = self._submit(parts)
        except Exception as error:
            self._back(parts, error, started)
        else:
            future.add_done_callback(partial(self._came_back, parts, started))

    def _submit(self, parts: list[_Part]) -> Future[Outputs]:
        rows = sum(len(part.images) for part in parts)
        buffer = self._backend.try_acquire(rows)  # pinned memory of a GPU
        if buffer is None and len(parts) == 1:
            return self._backend.submit(np.ascontiguousarray(parts[0].images))
        shape = (rows, *parts[0].images.shape[1:])
        images = np.empty(shape, np.uint8) if buffer is None else buffer.images
        try:
            at = 0
            for part in parts:
                images[at : at + len(part.images)] = part.images
                at += len(part.images)
        except BaseException:
            if buffer is not None:
                buffer.release()
            raise
        return self._backend.submit(images) if buffer is None else buffer.submit(rows)

    def _came_back(self, parts: list[_Part], started: float, future: Future[Outputs]) -> None:
        try:
            result: Outputs | Exception = future.result()
        except Exception as error:
            result = error
        self._back(parts, result, started)

    def _back(self, parts: list[_Part], result: Outputs | Exception, started: float) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
        seconds = time.perf_counter() - started
        pieces: list[tuple[Ticket, Piece]] = []
        at = 0
        for part in parts:
            count = len(part.images)
            mine = _rows_of(result, slice(at, at + count))
            pieces.append((part.ticket, Piece(part.first, count, mine, part.wait, seconds)))
            at += count
        deliver(pieces)
        if isinstance(result, Exception):
            self._watcher.failed(result)
        else:
            self._watcher.batch(at, [part.wait for part in parts], seconds)


def _rows_of(result: Outputs | Exception, rows: slice) -> Outputs | Exception:
    if not isinstance(result, Outputs):
        return result
    return Outputs(result.logits[rows], result.scores[rows], result.classes[rows])
