"""Text files of people: lists, labels, ground truth, as editors and spreadsheets of any system save them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from infer.errors import InputError

# UTF-32's little-endian mark starts with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")


def encoding_of(start: bytes) -> str | None:
    """The encoding that the first four bytes or more of a file tell: by a byte order mark, or by the zeros of ASCII
    characters in UTF-16; None where they tell nothing."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    if len(start) >= 4 and start[0] and not start[1] and start[2] and not start[3]:
        return "utf-16-le"
    if len(start) >= 4 and not start[0] and start[1] and not start[2] and start[3]:
        return "utf-16-be"
    return None


def decode_text(data: bytes, name: str) -> str:
    """``data`` as text: UTF-8, or what :func:`encoding_of` tells; no byte order mark is left.

    Raises:
        InputError: in no such encoding; says where, and what the byte is in Latin-1, which is what it mostly is.
    """
    encoding = encoding_of(data[:4]) or "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8") and data[error.start] >= 0xA0 and b"\0" not in data:
            line = data.count(b"\n", 0, error.start) + 1
            character = data[error.start : error.start + 1].decode("latin-1")
            raise InputError(
                f"{name}: expected UTF-8, found Latin-1 or another old encoding: byte {data[error.start]:#x} in line "
                f"{line}, {character!r} in Latin-1. Convert it: iconv -f LATIN1 -t UTF-8"
            ) from None
        raise InputError(f"{name}: expected a UTF-8 text file, found other bytes (at {error.start})") from None


def split_lines(text: str) -> list[str]:
    """The lines of ``text``. Unlike ``str.splitlines``, a label may hold any other separator that Unicode knows."""
    lines = _LINE_END.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def read_text(path: Path, what: str, most: int = 256 << 20) -> str:
    """The text of a file.

    Args:
        path: the file.
        what: it is for people: ``ground-truth file``.
        most: bytes that it may have.

    Raises:
        InputError: it cannot be read, is larger, or no text.
    """
    try:
        if path.stat().st_size > most:
            raise InputError(f"{path}: too large for a {what}, {path.stat().st_size} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read ({error.strerror})") from error
    return decode_text(data, str(path))
