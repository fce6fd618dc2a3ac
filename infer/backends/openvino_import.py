"""The ``openvino`` package without its telemetry.

Importing it forks the process, from a thread, to report the import to a server of its maker, and writes an identifier
into the home folder (openvino-telemetry, on unless the user opted out). A classifier must not do that unasked, and a
fork takes along whatever CUDA contexts and threads the process has. OpenVINO goes on with a stub of its own where the
reporting package cannot be imported.
"""

from __future__ import annotations

import sys
import threading
from types import ModuleType

_REPORTER = "openvino_telemetry"
_LOCK = threading.Lock()


def import_openvino() -> ModuleType:
    """The module ``openvino``; a program that imported it, or its telemetry, itself keeps what it has."""
    with _LOCK:
        blocked = _REPORTER not in sys.modules
        if blocked:
            sys.modules[_REPORTER] = None  # type: ignore[assignment]  # "cannot be imported", see the import system
        try:
            import openvino
        finally:
            if blocked:
                del sys.modules[_REPORTER]
    return openvino
