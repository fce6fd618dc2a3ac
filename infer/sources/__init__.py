"""What people name on a command line, as a stream of records: images, folders, tar and Parquet files, patterns, lists.

Order is fixed: arguments as given, a folder's own files before its subfolders, both sorted by name, the members of a
tar file and the rows of a Parquet file as they are stored. Hidden names (also macOS's ``._`` twins) and files of other
kinds in folders and tar files are passed over, and counted. What was meant as an image and cannot be read becomes a
record whose :meth:`Record.load` raises, so that it is named and counted where the images are decoded. Nothing is ever
extracted.
"""

from __future__ import annotations

import codecs
import glob
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from infer.errors import ImageError, InputError
from infer.images import EXTENSIONS, open_image_file
from infer.sources.kinds import PARQUET_SUFFIXES, TAR_SUFFIXES, is_archive, is_parquet, is_tar
from infer.sources.record import Record
from infer.sources.skipped import Skipped
from infer.sources.tar import iter_members
from infer.text_files import encoding_of

__all__ = ["PARQUET_SUFFIXES", "TAR_SUFFIXES", "Record", "Skipped", "count_records", "iter_records", "read_list"]

_BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<words>[^{}]*,[^{}]*))\}")


def iter_records(
    paths: Iterable[str | os.PathLike[str]],
    also: Collection[str] = (),
    *,
    column: str | None = None,
    labelled: bool = False,
    skipped: Skipped | None = None,
) -> Iterator[Record]:
    """The images at ``paths``, one record each, found while they are iterated.

    Args:
        paths: image files (of any extension), folders (searched recursively, links followed), tar files (plain or
            compressed), Parquet files with a column of encoded images, glob patterns (``**`` crosses folders), and
            sets of names in braces as WebDataset has them: ``shard-{000..063}.tar``.
        also: further extensions, lower case with the dot, to yield from tar files: labels that lie beside the images.
        column: of Parquet files, the one with the images; None finds it by type and name.
        labelled: take the classes that Parquet files have beside the images, see :attr:`Record.label`.
        skipped: counts what is passed over.

    Raises:
        InputError: when the paths are used up and held not one image; the message says what was wrong with them.
    """
    held: list[Record] = []  # defects before the first image: together with no image at all they are the error
    found = False
    for record in _iter_all(paths, EXTENSIONS.union(also), column, labelled, skipped or Skipped()):
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
        raise InputError(
            f"no image found ({reasons}{more}). Expected image files, folders, tar or Parquet files of images"
        )


def read_list(path: str) -> Iterator[str]:
    """The lines of a text file, or of standard input for ``-``, as they come; empty ones are passed over.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as file:
            encoding = encoding_of(file.peek(4)[:4])
            if encoding is not None and encoding != "utf-8-sig":
                for text in io.TextIOWrapper(file, encoding):
                    if name := text.lstrip("\ufeff").rstrip("\r\n"):
                        yield name
                return
            for number, line in enumerate(file):  # names of files may be any bytes
                start = codecs.BOM_UTF8 if number == 0 else b""
                if text := os.fsdecode(line.removeprefix(start).rstrip(b"\r\n")):
                    yield text
    except (OSError, ValueError) as error:
        raise InputError(f"list of inputs {path}: cannot be read ({error})") from error


def count_records(paths: Iterable[str | os.PathLike[str]], stop: Callable[[], bool] = lambda: False) -> int | None:
    """How many records :func:`iter_records` gives, found without opening an image.

    Args:
        paths: as there.
        stop: asked now and then; True ends the count.

    Returns:
        The number; None after ``stop``, or where it would cost reading the data (a tar file).
    """
    total = 0
    nothing = Skipped()
    for item in _resolve(paths, nothing):
        if isinstance(item, Path) and item.is_dir():
            for _ in _iter_folder(item, nothing):
                total += 1
                if stop():
                    return None
            continue
        if isinstance(item, Path) and item.is_file() and is_tar(item):
            return None
        if isinstance(item, Path) and item.is_file() and is_parquet(item):
            from infer.sources.parquet import count_rows

            total += count_rows(item)
        else:
            total += 1
        if stop():
            return None
    return total


def _iter_all(
    paths: Iterable[str | os.PathLike[str]],
    extensions: Collection[str],
    column: str | None,
    labelled: bool,
    skipped: Skipped,
) -> Iterator[Record]:
    for item in _resolve(paths, skipped):
        if isinstance(item, Record):
            yield item
        else:
            yield from _iter_path(item, extensions, column, labelled, skipped)


def _resolve(paths: Iterable[str | os.PathLike[str]], skipped: Skipped) -> Iterator[Path | Record]:
    """Patterns and braces resolved: what to open, and what there is nothing of."""
    for item in paths:
        text = os.fspath(item)
        path = Path(text)
        if not text:
            yield Record("''", path, "", defect="an empty path")
        elif os.path.lexists(path):  # whatever its name looks like
            yield path
        elif (braces := _BRACES.search(text)) is not None:
            words = _words(braces)
            yield from _resolve((text[: braces.start()] + word + text[braces.end() :] for word in words), skipped)
        elif glob.has_magic(text):
            matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
            found = [Path(match) for match in matches]
            kept = [p for p in found if p.is_dir() or is_archive(p) or p.suffix.lower() in EXTENSIONS]
            for other in set(found).difference(kept):
                skipped.add(other.name)
            if not kept:
                why = "nothing matches this pattern" if not matches else f"none of {len(matches)} matches is an image"
                yield Record(text, path, "", defect=why)
            yield from kept
        else:
            yield path


def _words(braces: re.Match[str]) -> Iterator[str]:
    if braces["words"] is not None:
        yield from braces["words"].split(",")
    else:
        first, last = braces["first"], braces["last"]
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first) if first.startswith("0") else 0)


def _iter_path(
    path: Path, extensions: Collection[str], column: str | None, labelled: bool, skipped: Skipped
) -> Iterator[Record]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        yield Record(str(path), path.parent, path.name, defect="no such file or folder")
    except (OSError, ValueError) as error:  # ValueError: a null character
        yield Record(str(path), path.parent, path.name, defect=f"cannot be read ({error})")
    else:
        if stat.S_ISDIR(mode):
            yield from _iter_folder(path, skipped)
        elif stat.S_ISREG(mode) and is_tar(path):
            yield from iter_members(path, extensions, skipped)
        elif stat.S_ISREG(mode) and is_parquet(path):
            from infer.sources.parquet import iter_rows

            yield from iter_rows(path, column, labelled=labelled)
        else:
            yield _file_record(path, path.parent)


def _file_record(path: Path, source: Path) -> Record:
    name = str(path)
    return Record(name, source, path.relative_to(source).as_posix(), partial(_read_file, path, name))


def _read_file(path: Path, name: str) -> bytes:
    with open_image_file(path, name) as file:
        try:
            return file.read()
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error})") from error


def _iter_folder(root: Path, skipped: Skipped) -> Iterator[Record]:
    unreadable: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    images = archives = 0
    kind = ""
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
            if is_archive(Path(name)):
                archives, kind = archives + 1, Path(name).suffix
            if Path(name).suffix.lower() in EXTENSIONS:
                images += 1
                yield _file_record(Path(folder, name), root)
            else:
                skipped.add(name)
    for failed in unreadable:
        yield Record(str(failed.filename), root, "", defect=f"folder cannot be read ({failed.strerror})")
    if not images and not unreadable:
        hint = f" but {archives} tar or Parquet files: name them, {root}/*{kind}" if archives else ""
        hint = hint or (f" ({skipped})" if skipped.total else "")
        yield Record(str(root), root, "", defect=f"no image in this folder{hint}")
