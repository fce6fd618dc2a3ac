"""The one logger that TensorRT gets in a process.

TensorRT keeps the first logger it sees for the process; a later one is ignored with a warning. When the first is freed
while TensorRT lives, the next message crashes. So runtimes and builders of one module share one, which is never freed.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

_LOG = logging.getLogger(__name__)
_LOGGERS: dict[type, Any] = {}
_MAKING = threading.Lock()

Listener = Callable[[Any, str], None]
"""Called with TensorRT's severity and the message."""


def process_logger(trt: Any) -> Any:
    """The ``ILogger`` of module ``trt``, made on the first call, with the methods of :class:`_Sorter`."""
    with _MAKING:
        if (found := _LOGGERS.get(trt.ILogger)) is not None:
            return found

        class Logger(_Sorter, trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                _Sorter.__init__(self, (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR))

            def log(self, severity: Any, msg: str) -> None:
                self.sort(severity, msg)

        logger = _LOGGERS[trt.ILogger] = Logger()
        # One more reference that nothing counts down: modules are emptied before TensorRT's libraries are unloaded.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(logger))
        return logger


class _Sorter:
    """Keeps errors for those who ask what went wrong, and passes everything on to who listens."""

    def __init__(self, errors: tuple[Any, ...]) -> None:
        self._severe = errors
        self._errors: deque[tuple[int, str]] = deque(maxlen=50)
        self._listeners: tuple[tuple[int, Listener], ...] = ()
        self._changing = threading.Lock()

    def sort(self, severity: Any, msg: str) -> None:
        """Called by TensorRT, on any thread; nothing may be raised into it."""
        try:
            thread = threading.get_ident()
            if severity in self._severe:
                self._errors.append((thread, " ".join(msg.split())))
            listeners = self._listeners
            own = [listener for listening, listener in listeners if listening == thread]
            # Threads of TensorRT's own may work for any of them.
            for listener in own[-1:] or [listener for _, listener in listeners]:
                listener(severity, msg)
            if not listeners:
                _LOG.debug("TensorRT: %s", msg)
        except Exception:
            _LOG.exception("a TensorRT message was lost: %r", msg[:200])

    def take_errors(self) -> list[str]:
        """The errors that this thread met since it last asked; where there are none, those of other threads."""
        thread, found = threading.get_ident(), list(self._errors)
        own = [one for one in found if one[0] == thread] or found
        for one in own:
            with contextlib.suppress(ValueError):
                self._errors.remove(one)
        return list(dict.fromkeys(message for _, message in own))

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Pass what this thread causes on to ``listener``, and what no listening thread causes."""
        entry = (threading.get_ident(), listener)
        with self._changing:
            self._listeners = (*self._listeners, entry)
        try:
            yield
        finally:
            with self._changing:
                self._listeners = tuple(one for one in self._listeners if one is not entry)
