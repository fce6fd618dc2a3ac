"""Engines belong to the process that opened them: neither CUDA nor OpenVINO's threads survive ``fork``.

CUDA C++ programming guide, "Multi-Process": a context cannot be used by a child made with ``fork``; of OpenVINO, only
the memory of its threads is there in the child, and a call waits for them for ever.
"""

from __future__ import annotations

import os
from weakref import WeakSet

from infer.errors import ProcessError

_ENGINES: WeakSet[object] = WeakSet()


class Owner:
    """Remembers the process that opened an engine.

    The engine is also never released in a forked child: its destructors would wait for threads, or free memory, that
    are the parent's.
    """

    def __init__(self, engine: object) -> None:
        self._process = os.getpid()
        _ENGINES.add(engine)

    @property
    def is_here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._process

    def require(self, what: str) -> None:
        """Refuse any other process.

        Raises:
            ProcessError: this is not the process that opened ``what``.
        """
        if not self.is_here:
            raise ProcessError(
                f"{what} was opened in process {self._process} and cannot be used in its fork {os.getpid()}, where "
                "neither CUDA nor OpenVINO works. Open it in the worker, after the fork; see docs/runner.md, Processes"
            )


def _keep_for_ever() -> None:
    """A reference that nothing counts down, not even the end of the interpreter, which empties modules."""
    if engines := list(_ENGINES):
        import ctypes

        for engine in engines:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)
