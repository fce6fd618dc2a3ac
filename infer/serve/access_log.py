"""A JSON line for each request, written by a thread of its own: a reader that stands still stops no request."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import IO, Any

import msgspec

_MOST_LINES = 10_000
_PAUSE = 0.05


class AccessLog:
    """Lines to a stream, at most :data:`_MOST_LINES` of them waiting; what does not fit is dropped and counted.

    Args:
        stream: binary, such as ``sys.stdout.buffer``; None writes nothing.
        on_drop: called for each line that is dropped.
    """

    def __init__(self, stream: IO[bytes] | None, on_drop: Callable[[], None]) -> None:
        self._stream, self._on_drop = stream, on_drop
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_LINES)
        self._thread: threading.Thread | None = None
        if stream is not None:
            self._thread = threading.Thread(target=self._run, args=(stream,), name="access log", daemon=True)
            self._thread.start()

    @property
    def on(self) -> bool:
        """Whether lines are written."""
        return self._thread is not None

    def write(self, line: dict[str, Any]) -> None:
        """Add a line; never waits. ``time`` is added."""
        if self._thread is None:
            return
        line["time"] = time.time()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._on_drop()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for at most ``timeout`` seconds."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._lines.put(None, timeout=timeout)
            self._thread.join(timeout)
            self._thread = None

    def _run(self, stream: IO[bytes]) -> None:
        encoder = msgspec.json.Encoder()
        while True:
            lines = [self._lines.get()]
            with suppress(queue.Empty):
                while lines[-1] is not None and len(lines) < 1000:
                    lines.append(self._lines.get_nowait())
            text = bytearray()
            for line in lines:
                if line is not None:
                    when = datetime.fromtimestamp(line.pop("time"), UTC)
                    text += encoder.encode({"time": when.isoformat(timespec="milliseconds"), **line}) + b"\n"
            try:
                stream.write(text)
                stream.flush()
            except (OSError, ValueError):  # closed: the server goes on
                return
            if lines[-1] is None:
                return
            time.sleep(_PAUSE)  # many lines with one call, and few turns of this thread
