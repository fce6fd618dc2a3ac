"""Files that are written whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of ``path``; renamed to ``path`` on success, removed on any failure.

    Readers see the old file or the new one, never a part of one.

    Raises:
        OSError: with ``path`` as its name, whatever was refused: the temporary name says nothing to anybody.
    """
    temporary = _beside(path, ".tmp")  # named before it is there: a signal may come in between
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary), temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, for a folder: filled under a temporary name, then put in the place of ``path``.

    Raises:
        OSError: names below the temporary folder are given as below ``path``.
    """
    temporary, old = _beside(path, ".tmp"), _beside(path, ".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        try:
            if path.exists():
                path.replace(old)
            temporary.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.replace(path)
            raise
    except OSError as error:
        if error.errno:
            where = str(path) if error.filename is None else str(error.filename)
            error.filename, error.filename2 = where.replace(str(temporary), str(path)), None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def cache_root() -> Path:
    """The user's cache folder of this project: ``$IRESNET_CACHE`` or ``~/.cache/iresnet``."""
    root = os.environ.get("IRESNET_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "iresnet"
    return Path(root)


def folder_size(folder: Path) -> int:
    """Bytes of the files below ``folder``; 0 where there is none. Files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _beside(path: Path, suffix: str) -> Path:
    """A hidden name in the folder of ``path`` that nobody has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{suffix}")
