"""What a shard leaves beside its output, ``OUTPUT.shard.json``: enough for :mod:`infer.classify.merge` to prove it.

Every shard passes over the names of the whole job. So each records how many there were and a hash of all of them, and
the merged rows must have just those names: then none is missing, none is there twice, and all are in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from infer.errors import InputError
from infer.files import sha256_file, write_bytes
from infer.names import escape_name
from infer.sources import Record


class ShardRecord(msgspec.Struct, kw_only=True):
    """One finished shard.

    Attributes:
        shard: ``i/n``, i from 0.
        rows: that its output has; ``failed`` of them are of images that could not be read.
        output_sha256: of the output's bytes.
        total: records of the whole job, all shards together.
        names_sha256: of all their names in order, see :class:`NamesHash`.
        job: what decides the rows, see :func:`infer.classify.job.identity`.
    """

    shard: str
    rows: int
    failed: int
    output_sha256: str
    total: int
    names_sha256: str
    job: dict[str, Any]


class NamesHash:
    """SHA-256 of names in order, each with its length in bytes before it; they are hashed as rows have them."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.count = 0

    def add(self, name: str) -> None:
        """Take one, as :func:`infer.names.escape_name` gives it."""
        data = name.encode()
        self._digest.update(b"%d:%b" % (len(data), data))
        self.count += 1

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same records, all of them taken note of as they pass."""
        for record in records:
            self.add(escape_name(record.name))
            yield record

    def hexdigest(self) -> str:
        """64 hex digits."""
        return self._digest.hexdigest()


def record_path(output: Path) -> Path:
    """Where the record of ``output`` is."""
    return output.with_name(f"{output.name}.shard.json")


def write_record(output: Path, rows: Path, names: NamesHash, failed: int, count: int, job: dict[str, Any]) -> None:
    """Write the record of ``output``, whose bytes are still at ``rows``: it must be there before the output is.

    Args:
        output: the file that is about to appear.
        rows: its bytes.
        names: of the whole job.
        failed: rows with an error.
        count: rows.
        job: its identity.
    """
    record = ShardRecord(
        shard=job["shard"],
        rows=count,
        failed=failed,
        output_sha256=sha256_file(rows),
        total=names.count,
        names_sha256=names.hexdigest(),
        job=job,
    )
    write_bytes(record_path(output), msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


# As in infer.bundle: msgspec 0.22 crashes when several threads are the first to decode a type.
_RECORD = msgspec.json.Decoder(ShardRecord)


def read_record(output: Path) -> ShardRecord:
    """The record of a shard, its output's hash compared.

    Raises:
        InputError: the output or the record is missing or damaged, or they do not belong together.
    """
    path = record_path(output)
    if not output.is_file():
        partial = output.with_name(f"{output.name}.partial")
        what = "an interrupted shard; finish it with --resume" if partial.is_dir() else "no such file"
        raise InputError(f"{output}: {what}")
    try:
        record = _RECORD.decode(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{output}: no {path.name} beside it, which classify --shard i/n writes; copy both, or run the shard again"
        ) from None
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: damaged ({error}); run the shard again") from error
    if sha256_file(output) != record.output_sha256:
        raise InputError(f"{output} is not the file that {path.name} was written for (sha256); run the shard again")
    return record
