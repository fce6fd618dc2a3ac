"""What people name on a command line, as a stream of records: image files, folders, tar files, glob patterns.

Order is fixed: arguments as given, a folder's own files before its subfolders, both sorted by name, the members of a
tar file as they are stored. Hidden names (also macOS's ``._`` twins) and files of other kinds in folders and tar files
are passed over. What was meant as an image and cannot be read becomes a record whose :meth:`Record.load` raises, so
that it is named and counted where the images are decoded. Tar members are read in place, never extracted.
"""

from __future__ import annotations

import glob
import io
import os
import stat
import tarfile
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from infer.errors import ImageError, InputError
from infer.images import EXTENSIONS, MAX_BYTES, open_image_file

if TYPE_CHECKING:
    from collections.abc import Callable

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Record:
    """One image to decode.

    Attributes:
        name: for people, printable: the path, or ``archive.tar:member``.
        source: what holds it: the folder that was named, the tar file, or the folder of a single file.
        member: its path below ``source``, parts joined by ``/``.
        read: gives the encoded bytes; None when ``defect`` is set.
        sequential: reading in order is cheap, out of order may cost a new pass (a compressed tar file).
        defect: why it cannot be read at all; None otherwise.
    """

    name: str
    source: Path
    member: str
    read: Callable[[], bytes] | None = None
    sequential: bool = False
    defect: str | None = None

    def load(self) -> bytes:
        """The encoded bytes. Safe to call from several threads.

        Raises:
            ImageError: they cannot be read; the message starts with the name.
        """
        if self.read is None:
            raise ImageError(f"{self.name}: {self.defect}")
        return self.read()


def iter_records(paths: Iterable[str | os.PathLike[str]], also: Collection[str] = ()) -> Iterator[Record]:
    """The images at ``paths``, one record each, found while they are iterated.

    Args:
        paths: image files (of any extension), folders (searched recursively, links followed), tar files (plain or
            compressed), glob patterns (``**`` crosses folders).
        also: further extensions, lower case with the dot, to yield from tar files: labels that lie beside the images.

    Raises:
        InputError: when the paths are used up and held not one image; the message says what was wrong with them.
    """
    held: list[Record] = []  # defects before the first image: together with no image at all they are the error
    found = False
    for record in _iter_all(paths, EXTENSIONS.union(also)):
        if record.defect is not None and not found:
            held.append(record)
            continue
        if not found and PurePosixPath(record.member).suffix.lower() not in also:
            found = True
            yield from held
        yield record
    if not found:
        reasons = "; ".join(f"{record.name}: {record.defect}" for record in held[:5]) or "nothing given"
        more = f"; and {len(held) - 5} more" if len(held) > 5 else ""
        raise InputError(f"no image found ({reasons}{more}). Expected image files, folders or tar files of images")


def _iter_all(paths: Iterable[str | os.PathLike[str]], extensions: Collection[str]) -> Iterator[Record]:
    for item in paths:
        text = os.fspath(item)
        path = Path(text)
        if not text:
            yield Record("''", path, "", defect="an empty path")
        elif os.path.lexists(path) or not glob.has_magic(text):
            yield from _iter_path(path, extensions)
        else:
            matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
            kept = [p for p in map(Path, matches) if p.is_dir() or _is_tar(p) or p.suffix.lower() in EXTENSIONS]
            if not kept:
                why = "nothing matches this pattern" if not matches else f"none of {len(matches)} matches is an image"
                yield Record(printable(text), path, "", defect=why)
            for path in kept:
                yield from _iter_path(path, extensions)


def _iter_path(path: Path, extensions: Collection[str]) -> Iterator[Record]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        yield Record(printable(str(path)), path.parent, path.name, defect="no such file or folder")
    except (OSError, ValueError) as error:  # ValueError: a null character
        yield Record(printable(str(path)), path.parent, path.name, defect=f"cannot be read ({error})")
    else:
        if stat.S_ISDIR(mode):
            yield from _iter_folder(path)
        elif stat.S_ISREG(mode) and _is_tar(path):
            yield from _iter_tar(path, extensions)
        else:
            yield _file_record(path, path.parent)


def _file_record(path: Path, source: Path) -> Record:
    name = printable(str(path))
    return Record(name, source, path.relative_to(source).as_posix(), partial(_read_file, path, name))


def _read_file(path: Path, name: str) -> bytes:
    with open_image_file(path, name) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error})") from error


def _iter_folder(root: Path) -> Iterator[Record]:
    unreadable: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    images = archives = 0
    for folder, subfolders, files in os.walk(root, onerror=unreadable.append, followlinks=True):
        try:
            status = Path(folder).stat()
        except OSError as error:
            unreadable.append(error)
            continue
        key = (status.st_dev, status.st_ino)
        if key in seen:  # a link back up, or two links to one folder
            subfolders.clear()
            continue
        seen.add(key)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            archives += _is_tar(Path(name))
            if Path(name).suffix.lower() in EXTENSIONS:
                images += 1
                yield _file_record(Path(folder, name), root)
    for failed in unreadable:
        yield Record(printable(str(failed.filename)), root, "", defect=f"folder cannot be read ({failed.strerror})")
    if not images and not unreadable:
        hint = f" but {archives} tar files: name them, {root}/*.tar" if archives else ""
        yield Record(printable(str(root)), root, "", defect=f"no image in this folder{hint}")


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(TAR_SUFFIXES)


class _TarReader:
    """One open tar file: lists its members, reads their bytes. Closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "r:*")  # noqa: SIM115
        assert self._tar.fileobj is not None
        self._file = self._tar.fileobj
        self._lock = threading.Lock()
        self.sequential = not isinstance(self._file, io.BufferedReader)
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

    def read(self, name: str, offset: int, size: int) -> bytes:
        if size > MAX_BYTES:
            raise ImageError(f"{name}: {size} bytes, an image file may have {MAX_BYTES}")
        try:
            with self._lock:
                self._file.seek(offset)
                data = self._file.read(size)
        except Exception as error:
            raise ImageError(f"{name}: the tar file cannot be read here ({error})") from error
        if len(data) < size:
            raise ImageError(f"{name}: the tar file ends inside it, after {len(data)} of {size} bytes")
        return data


def _iter_tar(path: Path, extensions: Collection[str]) -> Iterator[Record]:
    shown = printable(str(path))
    images = 0
    try:
        reader = _TarReader(path)
        while (info := reader.next()) is not None:
            parts = PurePosixPath(info.name.lstrip("/")).parts
            member = "/".join(parts)
            if PurePosixPath(member).suffix.lower() not in extensions or any(p[0] == "." != p for p in parts):
                continue
            if info.isdir():
                continue
            images += 1
            name = f"{shown}:{printable(member)}"
            if not info.isreg() or info.issparse():
                yield Record(name, path, member, defect="a link or special file inside a tar file")
                continue
            read = partial(reader.read, name, info.offset_data, info.size)
            yield Record(name, path, member, read, reader.sequential)
    except Exception as error:  # tarfile, gzip, bz2 and lzma raise a dozen kinds on damaged files
        where = f"damaged after {images} images" if images else "not a tar file, or damaged"
        yield Record(shown, path, "", defect=f"{where} ({error})")
        return
    if not images:
        yield Record(shown, path, "", defect="no image in this tar file")


def printable(name: str) -> str:
    """``name`` with control characters and undecodable bytes escaped, fit for a terminal, a log or JSON."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)
