"""Images inside tar files, plain or compressed, as records. Members are read in place, never extracted."""

from __future__ import annotations

import io
import tarfile
import threading
import weakref
from collections import deque
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from infer.errors import ImageError
from infer.images import MAX_BYTES
from infer.sources.record import Record
from infer.sources.skipped import Skipped

#: Members of a compressed tar file are held for reading until later ones of so many bytes have been passed.
_PASSED_BYTES = 64 << 20
_END_BYTES = 1 << 20


class _TarReader:
    """One open tar file: lists its members, reads their bytes. Closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "r:*")  # noqa: SIM115
        assert self._tar.fileobj is not None
        self._file = self._tar.fileobj
        self._lock = threading.Lock()
        self.sequential = not isinstance(self._file, io.BufferedReader)
        self._passed: deque[tuple[int, bytes]] = deque()
        self._passed_bytes = 0
        weakref.finalize(self, self._tar.close)

    def next(self) -> tarfile.TarInfo | None:
        """The next member; None at the end of a sound archive. Raises anything where the archive is damaged."""
        with self._lock:
            member = self._tar.next()
            self._tar.members.clear()  # type: ignore[attr-defined] # it keeps them all otherwise: gigabytes
            if member is None:
                # tarfile takes a damaged header for the end, silently
                self._file.seek(self._tar.offset)
                if self._file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.ReadError(f"damaged header at byte {self._tar.offset}")
            return member

    def rest(self) -> str | None:
        """What is wrong with the end of an archive whose members have all been passed; None for a sound end.

        An archive ends with two blocks of zeros (POSIX.1-2008, pax, "ustar Interchange Format"). Behind them only zeros
        may follow: another archive there, as ``cat`` makes it, is not read by any tool unless it is told to.
        """
        with self._lock:
            self._file.seek(self._tar.offset)
            zeros = 0
            while block := self._file.read(_END_BYTES):
                if block.strip(b"\0"):
                    return "more data follows behind its end, as when tar files are put together with cat: split them"
                zeros += len(block)
            return None if zeros >= tarfile.BLOCKSIZE else "it ends without an end mark, so it may have been cut off"

    def keep(self, offset: int, size: int) -> None:
        """Hold what lies at ``offset`` for a later :meth:`read`, until much more was held.

        Decoders list some members ahead of those they read. In a compressed file each step back costs a new pass
        from its beginning.
        """
        if size > _PASSED_BYTES // 8:
            return
        with self._lock:
            try:
                self._file.seek(offset)
                self._passed.append((offset, self._file.read(size)))
            except Exception:
                return  # to be reported by who reads it
            self._passed_bytes += len(self._passed[-1][1])
            while self._passed_bytes > _PASSED_BYTES:
                self._passed_bytes -= len(self._passed.popleft()[1])

    def _take(self, offset: int, size: int) -> bytes:
        while self._passed and self._passed[0][0] <= offset:
            found, data = self._passed.popleft()
            self._passed_bytes -= len(data)
            if found == offset:
                return data
        self._file.seek(offset)
        return self._file.read(size)

    def read(self, name: str, offset: int, size: int) -> bytes:
        if size > MAX_BYTES:
            raise ImageError(f"{name}: {size} bytes, an image file may have {MAX_BYTES}")
        try:
            with self._lock:
                data = self._take(offset, size)
        except Exception as error:
            raise ImageError(f"{name}: the tar file cannot be read here ({error})") from error
        if len(data) < size:
            raise ImageError(f"{name}: the tar file ends inside it, after {len(data)} of {size} bytes")
        return data


def iter_members(path: Path, extensions: Collection[str], skipped: Skipped) -> Iterator[Record]:
    """The members of ``path`` with one of ``extensions``, one record each; damage is a record with a defect."""
    shown = str(path)
    images = 0
    try:
        reader = _TarReader(path)
        while (info := reader.next()) is not None:
            parts = PurePosixPath(info.name.lstrip("/")).parts
            member = "/".join(parts)
            if info.isdir() or any(part.startswith(".") and part not in (".", "..") for part in parts):
                continue
            if PurePosixPath(member).suffix.lower() not in extensions:
                skipped.add(member, inside="tar file")
                continue
            images += 1
            name = f"{shown}:{member}"
            if not info.isreg() or info.issparse():
                yield Record(name, path, member, defect="a link or special file inside a tar file")
                continue
            if reader.sequential:
                reader.keep(info.offset_data, info.size)
            read = partial(reader.read, name, info.offset_data, info.size)
            yield Record(name, path, member, read, reader.sequential)
    except Exception as error:  # tarfile, gzip, bz2 and lzma raise a dozen kinds on damaged files
        where = f"damaged after {images} images" if images else "not a tar file, or damaged"
        yield Record(shown, path, "", defect=f"{where} ({error})")
        return
    if not images:
        hint = f" ({skipped})" if skipped.total else ""
        yield Record(shown, path, "", defect=f"no image in this tar file{hint}")
    if (rest := reader.rest()) is not None:
        yield Record(shown, path, "", defect=f"{rest}, after {images} images")
