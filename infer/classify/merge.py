"""Puts the outputs of ``classify --shard i/n`` together: row k of the whole is row ``k // n`` of shard ``k mod n``.

Nothing is believed that can be looked at: shard numbers, hashes of the files, numbers of rows, and the names of all
rows in order against what every shard saw of the whole job. Memory holds a block of rows of each shard.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.classify.shard_record import NamesHash, ShardRecord, read_record
from infer.classify.sinks import SUFFIXES, text_form
from infer.errors import InputError
from infer.files import replacing
from infer.names import escape_name
from infer.shard import Shard

#: What all shards of a job must have in common, and what may differ from machine to machine but is told.
_SAME, _TOLD = ("bundle", "column", "top"), ("target", "device", "batch", "decoder")
_BLOCK = 1024  # rows of each shard at a time, Parquet


@dataclass(frozen=True)
class Merged:
    """What was put together.

    Attributes:
        shards, rows, failed: numbers; ``failed`` of the rows are of images that could not be read.
        notes: what differs between the shards and may change the last digits of a score, one line each.
    """

    shards: int
    rows: int
    failed: int
    notes: list[str]


def merge_outputs(paths: Sequence[Path], output: Path) -> Merged:
    """Write ``output`` from all the shards of one job, given in any order; whole or not at all.

    Raises:
        InputError: a shard is missing, twice, damaged, or of another job; or the names of the rows are not those that
            the shards saw.
    """
    suffix = output.suffix.lower()
    for path in [*paths, output]:
        if path.suffix.lower() != suffix or suffix not in SUFFIXES:
            raise InputError(f"{path}: expected {', '.join(SUFFIXES)}, the same for all shards and --output")
    if output.resolve() in {path.resolve() for path in paths}:
        raise InputError(f"--output {output} is one of the shards; name another file")
    ordered = _in_order([(path, read_record(path)) for path in paths])
    first = ordered[0][1]
    notes = _compare(ordered)
    names = NamesHash()
    files = [path for path, _ in ordered]
    with replacing(output) as temporary:
        if suffix == ".parquet":
            _merge_parquet(files, temporary, names)
        else:
            _merge_text(files, temporary, suffix, first.job["top"], names)
        if (names.count, names.hexdigest()) != (first.total, first.names_sha256):
            raise InputError(
                f"the merged rows are not the images of the job: {first.total} were expected, {names.count} are there, "
                "or their names differ; run the shards again on inputs that do not change meanwhile"
            )
    return Merged(len(files), names.count, sum(record.failed for _, record in ordered), notes)


def _in_order(found: list[tuple[Path, ShardRecord]]) -> list[tuple[Path, ShardRecord]]:
    """All shards of one split, by number."""
    count = Shard.parse(found[0][1].shard).count
    places: dict[int, tuple[Path, ShardRecord]] = {}
    for path, record in found:
        shard = Shard.parse(record.shard)
        if shard.count != count:
            raise InputError(
                f"{path} is shard {shard}, but {found[0][0]} is one of {count}; merge the shards of one job"
            )
        if shard.index in places:
            raise InputError(f"shard {shard} is there twice: {places[shard.index][0]} and {path}; pass one of them")
        places[shard.index] = path, record
    missing = [f"{index}/{count}" for index in range(count) if index not in places]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise InputError(f"{len(missing)} of {count} shards missing: {', '.join(missing[:10])}{more}; pass all of them")
    return [places[index] for index in range(count)]


def _compare(ordered: list[tuple[Path, ShardRecord]]) -> list[str]:
    (first, expected), notes = ordered[0], []
    for path, record in ordered:
        for key in _SAME:
            if record.job.get(key) != expected.job.get(key):
                raise InputError(
                    f"{path} and {first} are of different jobs: {key} differs; merge the shards of one job"
                )
        if (record.total, record.names_sha256) != (expected.total, expected.names_sha256):
            raise InputError(
                f"{path} saw other inputs ({record.total} images) than {first} ({expected.total}): the same names in "
                "the same order are needed on every machine; run the shards again on the same inputs"
            )
        share = Shard.parse(record.shard).share(record.total)
        if record.rows != share:
            raise InputError(f"{path} has {record.rows} rows, its share of {record.total} images is {share}")
    for key in _TOLD:
        values = sorted({str(record.job.get(key)) for _, record in ordered})
        if len(values) > 1:
            notes.append(f"{key} differs ({'; '.join(values)}): the last digits of scores may too")
    return notes


def _merge_text(files: list[Path], output: Path, suffix: str, top: int, names: NamesHash) -> None:
    form = text_form(suffix, top)
    with ExitStack() as stack:
        target = stack.enter_context(output.open("wb"))
        target.write(form.header)
        streams: list[Iterator[bytes]] = []
        for path in files:
            file = stack.enter_context(path.open("rb"))
            if file.read(len(form.header)) != form.header:
                raise InputError(f"{path}: another header than {form.header.decode().strip()}")
            streams.append(form.rows(file))
        while True:
            rows = [next(stream, None) for stream in streams]
            for path, row in zip(files, rows, strict=True):
                if row is not None:
                    try:
                        names.add(escape_name(form.decode(row.decode()).name))
                    except (ValueError, KeyError, TypeError, csv.Error):
                        raise InputError(f"{path}: row {names.count // len(files)} is damaged") from None
                    target.write(row)
            if None in rows:
                if any(next(stream, None) is not None for stream in streams):
                    raise InputError("the shards have numbers of rows that are not of one job; run them again")
                return


def _merge_parquet(files: list[Path], output: Path, names: NamesHash) -> None:
    import pyarrow

    from infer.classify.sinks.parquet import write_groups
    from infer.sources.parquet import import_parquet

    opened = [import_parquet().ParquetFile(path) for path in files]
    schema = opened[0].schema_arrow
    for path, file in zip(files, opened, strict=True):
        if not file.schema_arrow.equals(schema):
            raise InputError(f"{path}: other columns than {files[0]}")
    readers = [_blocks(file) for file in opened]

    def rounds() -> Iterator[pyarrow.Table]:
        while True:
            blocks = [next(reader, None) for reader in readers]
            present = [pyarrow.Table.from_batches([block]) for block in blocks if block is not None]
            if not present:
                return
            table = pyarrow.concat_tables(present)
            sizes = [0 if block is None else block.num_rows for block in blocks]
            starts = [sum(sizes[:place]) for place in range(len(sizes))]
            order = [
                start + row
                for row in range(max(sizes))
                for start, size in zip(starts, sizes, strict=True)
                if row < size
            ]
            table = table.take(order)
            for name in table["name"].to_pylist():
                names.add(name)
            yield table

    write_groups(rounds(), output, schema)
    for file in opened:
        file.close()


def _blocks(file: Any) -> Iterator[Any]:
    """Record batches of exactly ``_BLOCK`` rows but for the last, whatever the row groups of the file."""
    import pyarrow

    waiting = file.schema_arrow.empty_table()
    for batch in file.iter_batches(_BLOCK):
        waiting = pyarrow.concat_tables([waiting, pyarrow.Table.from_batches([batch])])
        while len(waiting) >= _BLOCK:
            yield waiting.slice(0, _BLOCK).combine_chunks().to_batches()[0]
            waiting = waiting.slice(_BLOCK)
    if len(waiting):
        yield waiting.combine_chunks().to_batches()[0]
