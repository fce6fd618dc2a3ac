"""TensorRT's timing cache kept in a file between builds, also those that run at the same time.

A cache belongs to one GPU and one TensorRT version. A file that does not fit is replaced and no error: a cache only
saves time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_build.targets.tensorrt.logging import BuildLog
from infer.files import write_bytes


class TimingCache:
    """The file, and what one build does with it: :meth:`attach` before it, :meth:`save` behind it."""

    def __init__(self, file: Path) -> None:
        """Nothing is read yet."""
        self._file = file
        self._attached = b""

    def attach(self, config: Any, log: BuildLog) -> str | None:
        """Give ``config`` the timings in the file, or an empty cache to fill. A note if the file does not fit."""
        try:
            stored = self._read()
        except OSError as error:
            return f"the timing cache {self._file} cannot be read ({error.strerror}); building without"
        self._attached = stored
        errors = len(log.errors)
        cache = config.create_timing_cache(stored)
        if cache is not None and config.set_timing_cache(cache, False):
            return None
        reason = "; ".join(log.errors[errors:]) or "TensorRT does not accept it"
        del log.errors[errors:]
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return (
            f"the timing cache {self._file} was ignored and is replaced: it is damaged or of another GPU or version "
            f"({reason})"
        )

    def save(self, config: Any, log: BuildLog) -> str | None:
        """Write the timings of ``config`` after the build, with those that other builds have written meanwhile.

        Returns:
            A note if that fails: it costs time later, not the plan.
        """
        cache = config.get_timing_cache()
        if cache is None:
            return None
        own = bytes(cache.serialize())
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._file.parent):
                stored = self._read()
                if stored not in (b"", self._attached):
                    own = _combined(config, own, stored, log)
                write_bytes(self._file, own)
        except OSError as error:
            return f"the timing cache {self._file} could not be written ({error.strerror})"
        return None

    def _read(self) -> bytes:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return b""


def _combined(config: Any, own: bytes, other: bytes, log: BuildLog) -> bytes:
    """``own`` with the timings in ``other`` that it lacks; ``own`` alone where they are of another GPU or version."""
    errors = len(log.errors)
    target, source = config.create_timing_cache(own), config.create_timing_cache(other)
    fits = target is not None and source is not None and target.combine(source, False)
    del log.errors[errors:]
    return bytes(target.serialize()) if fits else own


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other builds out; the lock is on the folder, so that no file of it is left behind."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system may have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
