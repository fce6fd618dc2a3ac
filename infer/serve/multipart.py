"""Files of a multipart body that is in memory already: nothing is spooled to a disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from infer.names import printable
from infer.serve.refusal import Refusal

_LONGEST_NAME = 256


@dataclass
class Part:
    """One file.

    Attributes:
        name: its file name, else the name of its field.
        data: its bytes.
    """

    name: str = ""
    data: bytes = b""
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    pieces: list[bytes] = field(default_factory=list)


class _Reader:
    """Callbacks of python-multipart."""

    def __init__(self, most: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._most = most

    def on_part_begin(self) -> None:
        if len(self.parts) == self._most:
            raise Refusal(400, f"body: expected at most {self._most} images, found more")
        self.parts.append(Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].value += data[start:end]

    def on_header_end(self) -> None:
        part = self.parts[-1]
        if bytes(part.header).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(part.value))
            name = options.get(b"filename") or options.get(b"name") or b""
            part.name = printable(name.decode("utf-8", "replace"))[:_LONGEST_NAME]
        part.header.clear()
        part.value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].pieces.append(data[start:end])

    def on_part_end(self) -> None:
        part = self.parts[-1]
        part.data = part.pieces[0] if len(part.pieces) == 1 else b"".join(part.pieces)
        part.pieces.clear()
        part.name = part.name or f"part {len(self.parts) - 1}"

    def on_end(self) -> None:
        self.ended = True


def read_parts(body: bytes, content_type: str, most: int) -> list[Part]:
    """Every part of a multipart body.

    Args:
        body: the whole body.
        content_type: the header, with the boundary.
        most: parts there may be.

    Raises:
        Refusal: 400, no boundary, damaged, cut, no part or too many.
    """
    boundary = parse_options_header(content_type.encode("latin-1", "replace"))[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:  # RFC 2046, 5.1.1
        raise Refusal(400, "content-type: expected multipart/form-data with a boundary of 1 to 70 characters")
    reader = _Reader(most)
    names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
    callbacks: Any = {f"on_{name}": getattr(reader, f"on_{name}") for name in names}
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, f"body: damaged multipart ({str(error)[:120]})") from None
    if not reader.ended:
        raise Refusal(400, "body: ends before the last boundary")
    if not reader.parts:
        raise Refusal(400, "body: expected an image in each part, found no part")
    return reader.parts
