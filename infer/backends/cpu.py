"""Which processor this is, for what depends on it."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path


@functools.cache
def processor() -> str:
    """Name of the first processor, with a hash of its instruction sets where Linux lists them."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                field, _, value = line.partition(":")
                if field.strip() == "model name":
                    name = value.strip()
                elif field.strip() in ("flags", "Features"):
                    flags = hashlib.sha256(" ".join(sorted(value.split())).encode()).hexdigest()[:12]
                    break
    except OSError:
        pass
    return f"{name} {flags}".strip()
