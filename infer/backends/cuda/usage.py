"""Who is inside a runner: its memory goes behind the last call that uses it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from infer.errors import InputError


class Usage:
    """Counts the calls under way. ``with usage:`` is such a call; they nest. Thread-safe.

    Args:
        release: called once, by :meth:`close` or behind the last call, when nobody is inside any more.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._changed = threading.Condition()
        self._inside: Counter[int] = Counter()  # calls by thread
        self._deferred = False
        self.closed = False

    def __enter__(self) -> Usage:
        thread = threading.get_ident()
        with self._changed:
            if self.closed and thread not in self._inside:
                raise InputError("this runner is closed; open the bundle again")
            self._inside[thread] += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread = threading.get_ident()
        with self._changed:
            self._inside[thread] -= 1
            if not self._inside[thread]:
                del self._inside[thread]
                self._changed.notify_all()
            last = self._deferred and not self._inside
            if last:
                self._deferred = False
        if last:
            self._release()

    def close(self) -> None:
        """Refuse new calls, wait for those under way, then release; harmless when called twice.

        Called from inside one, by code of the user that a call runs, it leaves the rest to the last call.
        """
        with self._changed:
            if self.closed:
                return
            self.closed = True
            if threading.get_ident() in self._inside:
                self._deferred = True
                return
            self._changed.wait_for(lambda: not self._inside)
        self._release()
