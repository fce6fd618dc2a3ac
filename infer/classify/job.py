"""Classify a stream of records into a sink: in order, one row each, restartable.

The rows of a batch may depend on its composition: backends pad to sizes they have compiled, and another size may
round otherwise. So batches are cut at fixed records of a job, and a resumed job starts where a batch starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.classify.meter import Meter
from infer.classify.sinks import FileSink, Sink
from infer.classify.sinks.rows import Kept
from infer.errors import InputError
from infer.files import sha256_file
from infer.images.jpeg import decoder_name
from infer.names import escape_name, printable
from infer.predictions import Prediction, rank
from infer.shard import Shard
from infer.sources import PARQUET_SUFFIXES, TAR_SUFFIXES, Record

if TYPE_CHECKING:
    from infer.pipeline import Answers, DecoderName
    from infer.runner import Runner


@dataclass
class JobCounts:
    """Rows of a job by outcome, those that an interrupted run left too."""

    good: int = 0
    failed: int = 0

    def add(self, failed: bool) -> None:
        """Count a row."""
        if failed:
            self.failed += 1
        else:
            self.good += 1


def identity(
    runner: Runner,
    inputs: Sequence[str],
    lists: Sequence[str],
    shard: Shard,
    column: str | None,
    top: int,
    *,
    fast: bool = False,
    dali: str | None = None,
) -> dict[str, Any]:
    """What decides the rows of a job, as JSON; a resumed one must have the same.

    Folders, patterns and standard input are named only: that they still hold the same images is checked row by row.
    ``dali`` is its version where it decodes.
    """
    decoder = [*([f"dali {dali}"] if dali else []), decoder_name(), *(["fast"] if fast else [])]
    manifest = runner.manifest
    plans = [entry.sha256 for plan in manifest.plans if plan.target == runner.target for entry in plan.files]
    bundle = [manifest.graph.sha256, manifest.labels.sha256, manifest.preprocessing.to_json(), plans]
    return {
        "bundle": hashlib.sha256(json.dumps(bundle, sort_keys=True).encode()).hexdigest(),
        "target": runner.target,
        "device": runner.backend.device,
        "batch": runner.backend.max_batch,
        "inputs": [_described(text) for text in inputs],
        "lists": [_described(path, whole=True) for path in lists],
        "shard": str(shard),
        "column": column,
        "top": top,
        "decoder": ", ".join(decoder),
    }


def _described(text: str, *, whole: bool = False) -> str:
    path = Path(text)
    try:
        if whole and path.is_file():
            return f"{escape_name(text)} (sha256 {sha256_file(path)})"
        if path.name.lower().endswith((*TAR_SUFFIXES, *PARQUET_SUFFIXES)) and path.is_file():
            return f"{escape_name(text)} ({path.stat().st_size} bytes)"
    except (OSError, ValueError):
        pass  # to be reported by who reads it
    return escape_name(os.fspath(text))


def skip_kept(records: Iterator[Record], kept: Iterable[Kept], tally: JobCounts) -> int:
    """Pass over the records that have rows already, without reading them; how many.

    Raises:
        InputError: the rows are of other images.
    """
    count = 0
    for row in kept:
        record = next(records, None)
        if record is None or record.name != row.name:
            found = "the inputs now end before it" if record is None else f"the inputs now have {record.name} there"
            raise InputError(
                f"the inputs changed: row {count} of the interrupted run is {row.name}, {found}. "
                "Bring them back, or pass --overwrite to start again"
            )
        tally.add(row.failed)
        count += 1
    return count


def run_job(
    runner: Runner,
    records: Iterable[Record],
    sink: Sink,
    *,
    top: int,
    strict: bool = False,
    fast: bool = False,
    decoder: DecoderName = "host",
    workers: int | None = None,
    meter: Meter,
    tally: JobCounts,
    failed: Callable[[Prediction], None],
    changed: Callable[[], None] = lambda: None,
) -> None:
    """Classify ``records`` and give ``sink`` their rows, batch by batch.

    Memory holds a bounded number of batches, whatever the number of records.

    Args:
        runner: opened; what it answers must be allowed (:meth:`Runner.require_trained`).
        records: those that have no row yet.
        sink: takes the rows.
        top: classes a row.
        strict: raise at the first image that cannot be read; the rows of the batches before it are written.
        fast: decode large JPEG files at a reduced size; see :func:`infer.images.jpeg.load_input`.
        decoder, workers: see :func:`infer.pipeline.run_records`.
        meter: kept up to date.
        tally: counts the rows.
        failed: told of each image that cannot be read.
        changed: called after each batch.

    Raises:
        ImageError: under ``strict``.
        IResNetError: the sink cannot write.
    """
    for answers in runner.run(
        records, workers=workers, strict=strict, fast=fast, decoder=decoder, waiting=meter.waiting
    ):
        rows = _rows(answers, runner.labels, top)
        with meter.waiting("write"):
            sink.write(rows)
        for row in rows:
            tally.add(row.error is not None)
            if row.error is not None:
                failed(row)
        meter.advance(len(rows))
        changed()


def _rows(answers: Answers, labels: Sequence[str], top: int) -> list[Prediction]:
    """A row for each record of a batch in their order, failures where they stand."""
    rows = {
        failure.index: Prediction(failure.record.name, error=printable(" ".join(str(failure.error).split())))
        for failure in answers.failures
    }
    if answers.outputs is not None:
        found = rank([record.name for record in answers.records], answers.outputs, labels, top)
        rows.update(zip(answers.indices.tolist(), found, strict=True))
    return [rows[index] for index in sorted(rows)]


def begin(sink: FileSink, job: dict[str, Any], records: Iterator[Record], tally: JobCounts, *, resume: bool) -> int:
    """Start ``sink`` and take from ``records`` those that an interrupted run has done; how many.

    Raises:
        InputError: see :meth:`FileSink.begin` and :func:`skip_kept`.
    """
    if sink.begin(job, job["batch"], resume=resume):
        return skip_kept(records, sink.kept(), tally)
    return 0
