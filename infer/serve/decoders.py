"""Threads that decode. A plain queue: a future for each image would cost a third of a small image's decoding."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

_LOG = logging.getLogger(__name__)


class Decoders:
    """``count`` threads that do what is put, in its order. What waits is bounded by those who put."""

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"decode {n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Do ``job`` soon; from any thread. It answers for its own errors."""
        self._jobs.put(job)

    def close(self) -> None:
        """Do what waits, then end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a thread less would be noticed by nobody
                _LOG.exception("a job of a decoding thread failed")
            del job  # its image is not kept until the next one comes
