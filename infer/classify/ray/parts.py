"""The folder of a job on many machines: numbered parts, each of them whole or not there, and what job they are of.

rows.parquet/_job.json               underscores hide it from readers of data sets
rows.parquet/part-000000.parquet     records 0 to part_rows - 1, in order
rows.parquet/part-000001.parquet     and so on
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from infer.bundle import Manifest
from infer.classify.shard_record import NamesHash
from infer.errors import InputError
from infer.files import write_bytes
from infer.names import escape_name
from infer.sources import Record

SUFFIXES = (".parquet", ".jsonl", ".ndjson")
_JOB = "_job.json"


class Slice(msgspec.Struct, frozen=True):
    """Consecutive records of the job.

    Attributes:
        number: of the part, from 0.
        count: records.
        names_sha256: of their names in order, see :class:`NamesHash`: every machine must find the same ones.
    """

    number: int
    count: int
    names_sha256: str


class PartCounts(msgspec.Struct, frozen=True):
    """What a finished part has.

    Attributes:
        rows: of the file.
        failed: those of images that could not be read.
    """

    rows: int
    failed: int


class JobRecord(msgspec.Struct, kw_only=True):
    """What decides the rows.

    Attributes:
        job: bundle, inputs and options, as JSON.
        part_rows: records a part, but for the last.
        images: of the job.
        names_sha256: of all slices' hashes in order.
        finished: rows of all parts, once the job has ended; None before.
    """

    job: dict[str, Any]
    part_rows: int
    images: int
    names_sha256: str
    finished: PartCounts | None = None


# As in infer.bundle: msgspec 0.22 crashes when several threads are the first to decode a type.
_RECORD = msgspec.json.Decoder(JobRecord)


def bundle_digest(manifest: Manifest) -> str:
    """SHA-256 of what decides the answers of a bundle on any target."""
    plans = sorted(entry.sha256 for plan in manifest.plans for entry in plan.files)
    parts = [manifest.graph.sha256, manifest.labels.sha256, manifest.preprocessing.to_json(), plans]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cut(records: Iterable[Record], rows: int) -> list[Slice]:
    """The slices of a stream of records, ``rows`` each; reads names only."""
    slices: list[Slice] = []
    names = NamesHash()
    for record in records:
        if names.count == rows:
            slices.append(Slice(len(slices), names.count, names.hexdigest()))
            names = NamesHash()
        names.add(escape_name(record.name))
    if names.count:
        slices.append(Slice(len(slices), names.count, names.hexdigest()))
    return slices


class PartsFolder:
    """The folder ``output``.

    Args:
        output: a name that ends in one of :data:`SUFFIXES`, the form of its parts.

    Raises:
        InputError: another ending, or there is something else of that name.
    """

    def __init__(self, output: Path) -> None:
        self.path, self.suffix = output.absolute(), output.suffix.lower()
        if self.suffix not in SUFFIXES:
            raise InputError(
                f"--output {output}: with --ray expected the name of a folder of parts, {', '.join(SUFFIXES)}"
            )
        if output.is_file():
            raise InputError(f"--output {output}: a file; with --ray it is a folder of parts, name another")

    def part(self, number: int) -> Path:
        """Where a part is, or will be."""
        return self.path / f"part-{number:06d}{self.suffix}"

    def read(self) -> JobRecord | None:
        """What job the parts are of; None where there is none.

        Raises:
            InputError: the record is damaged.
        """
        path = self.path / _JOB
        try:
            return _RECORD.decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
            raise InputError(f"{path}: damaged ({error}); pass --overwrite to start again") from error

    def begin(self, record: JobRecord, *, resume: bool, overwrite: bool) -> bool:
        """Take hold of the folder; whether the job is finished already.

        Raises:
            InputError: there are parts and nobody said what to do with them, or they are of another job.
        """
        found = None if overwrite else self.read()
        if found is not None and not resume:
            state = "finished" if found.finished else "interrupted"
            raise InputError(
                f"{self.path}: the parts of a job, {state}; pass --resume to go on with it, or --overwrite to discard "
                "it"
            )
        if found is not None:
            self._compare(found, record)
            return found.finished is not None
        strangers = [path.name for path in self._files() if not path.name.startswith(("part-", ".", "_"))]
        if strangers:
            raise InputError(f"{self.path} holds other files ({strangers[0]}); name a new folder")
        self._clear()
        self.write(record)
        return False

    def _files(self) -> list[Path]:
        return sorted(self.path.iterdir()) if self.path.is_dir() else []

    def _compare(self, found: JobRecord, record: JobRecord) -> None:
        now = json.loads(json.dumps(record.job))
        changed = sorted(key for key in {**found.job, **now} if found.job.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise InputError(
                f"{self.path} belongs to another job: {key} was {found.job.get(key)!r}, is {now.get(key)!r}. Repeat "
                "that one's command, or pass --overwrite"
            )
        if (found.images, found.names_sha256) != (record.images, record.names_sha256):
            raise InputError(
                f"the inputs changed: {found.images} images when the job began, {record.images} now, or other names. "
                "Bring them back, or pass --overwrite to start again"
            )

    def _clear(self) -> None:
        """Remove the files of a job. The record goes first: what stays, when that is cut short, is no job."""
        (self.path / _JOB).unlink(missing_ok=True)
        for path in self._files():
            if path.name.startswith("part-") and path.is_file():
                path.unlink()

    def write(self, record: JobRecord) -> None:
        """Note what job it is.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path / _JOB, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error

    def missing(self, slices: list[Slice]) -> list[Slice]:
        """Those that have no part yet."""
        there = {path.name for path in self._files()}
        return [one for one in slices if self.part(one.number).name not in there]

    def counts(self, slices: list[Slice]) -> PartCounts:
        """Rows of the parts that are there, looked at.

        Raises:
            InputError: a part has another number of rows than its slice.
        """
        rows = failed = 0
        for one in slices:
            counted = _count(self.part(one.number))
            if counted.rows != one.count:
                raise InputError(
                    f"{self.part(one.number)}: expected {one.count} rows, found {counted.rows}; remove it and --resume"
                )
            rows, failed = rows + counted.rows, failed + counted.failed
        return PartCounts(rows, failed)


def _count(path: Path) -> PartCounts:
    if path.suffix == ".parquet":
        from infer.sources.parquet import import_parquet

        column = import_parquet().read_table(path, columns=["error"])["error"]
        return PartCounts(len(column), len(column) - column.null_count)
    rows = failed = 0
    with path.open("rb") as file:
        for line in file:
            rows += 1
            failed += "error" in json.loads(line)
    return PartCounts(rows, failed)
