"""Which processor this is, for what depends on it."""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path


@functools.cache
def processor() -> str:
    """Name of the first processor, with a hash of its instruction sets where Linux lists them."""
    flags = cpu_flags()
    digest = "" if flags is None else hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:12]
    return f"{processor_name()} {digest}".strip()


def processor_name() -> str:
    """Name of the first processor, as Linux or Python calls it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str] | None:
    """Instruction sets of the first processor in Linux's names (``avx2``, ``asimddp``); None where it lists none."""
    fields = _cpuinfo()
    listed = fields.get("flags") or fields.get("Features")
    return None if listed is None else frozenset(listed.split())


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor; empty where the system has no such file."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            lines = file.read().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
