"""One image that is still to be read, whatever it lies in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infer.errors import ImageError


@dataclass(frozen=True)
class Record:
    """One image to decode.

    Attributes:
        name: the path as it is, ``archive.tar:member`` or ``table.parquet:key``; see :mod:`infer.names` for writing it.
        source: what holds it: the folder that was named, the tar or Parquet file, or the folder of a single file.
        member: its path below ``source``, parts joined by ``/``; of a Parquet row, its key.
        read: gives the encoded bytes; None when ``defect`` is set.
        sequential: reading in order is cheap, out of order may cost a new pass (a compressed tar
            file, a Parquet file).
        defect: why it cannot be read at all; None otherwise.
        label: its class, where a column beside it says so: an index or a name; None elsewhere.
    """

    name: str
    source: Path
    member: str
    read: Callable[[], bytes] | None = None
    sequential: bool = False
    defect: str | None = None
    label: int | str | None = None

    def load(self) -> bytes:
        """The encoded bytes. Safe to call from several threads.

        Raises:
            ImageError: they cannot be read; the message starts with the name.
        """
        if self.read is None:
            raise ImageError(f"{self.name}: {self.defect}")
        return self.read()
