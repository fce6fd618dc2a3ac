"""TensorRT's timing cache kept in a file between builds.

A cache belongs to one GPU and one TensorRT version. A file that does not fit is replaced and no error: a cache only
saves time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_build.targets.trt_logging import BuildLog


def attach(config: Any, file: Path, log: BuildLog) -> str | None:
    """Give ``config`` the timings in ``file``, or an empty cache to fill. A note if the file does not fit."""
    try:
        stored = file.read_bytes()
    except FileNotFoundError:
        stored = b""
    except OSError as error:
        return f"the timing cache {file} cannot be read ({error.strerror}); building without"
    errors = len(log.errors)
    cache = config.create_timing_cache(stored)
    if cache is not None and config.set_timing_cache(cache, False):
        return None
    reason = "; ".join(log.errors[errors:]) or "TensorRT does not accept it"
    del log.errors[errors:]
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return f"the timing cache {file} was ignored and is replaced: it is damaged or of another GPU or version ({reason})"


def collect(config: Any) -> bytes:
    """The timings of ``config`` after the build, as :func:`attach` reads them; empty if there are none."""
    cache = config.get_timing_cache()
    return b"" if cache is None else bytes(cache.serialize())
