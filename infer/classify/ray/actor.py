"""What runs on the machines of a cluster: an opened bundle, and the records of the job one after another."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.errors import IResNetError

if TYPE_CHECKING:
    from infer.classify.ray.parts import Slice
    from infer.runner import Runner
    from infer.sources import Record


@dataclass(frozen=True)
class Work:
    """What every actor has to know.

    Attributes:
        version: of the package on the driver.
        bundle: folder, the same on each machine.
        output: folder of the parts.
        inputs, lists, column: of the images, as on the command line.
        part_rows: records a part.
        top: classes a row.
        target, threads, strict, fast, gpu_decode: as on the command line.
        cores: of an actor: its threads that decode.
        bundle_sha256: see :func:`infer.classify.ray.parts.bundle_digest`.
    """

    version: str
    bundle: str
    output: str
    inputs: tuple[str, ...]
    lists: tuple[str, ...]
    column: str | None
    part_rows: int
    top: int
    target: str | None
    threads: int | None
    cores: int
    strict: bool
    fast: bool
    gpu_decode: bool
    bundle_sha256: str


@dataclass(frozen=True)
class Done:
    """What came of a part, as columns of a row.

    Attributes:
        number: of the part.
        rows, failed: of it.
        where: target and device, for people.
        kind, error: class and message of what went wrong for good; empty where nothing did.
        named: what could not be read, the first few, a line each.
    """

    number: int
    rows: int = 0
    failed: int = 0
    where: str = ""
    kind: str = ""
    error: str = ""
    named: str = ""


class Classifier:
    """Classifies parts; one for each GPU or group of cores.

    Parts come with rising numbers, so the list of records is gone through once. One that comes late, since its actor
    died, begins it anew.
    """

    _MOST_NAMED = 3

    def __init__(self, work: Work) -> None:
        self._work = work
        self._runner: Runner | None = None
        self._records: Iterator[Record] = iter(())
        self._next = -1  # number of the part that the records are at

    def classify(self, one: Slice) -> Done:
        """Write a part. What is wrong for good is an answer and not an exception: Ray would try again, and wrap it."""
        try:
            return self._classify(one)
        except (IResNetError, OSError, ImportError) as error:
            text = " ".join(str(error).split())
            return Done(one.number, kind=type(error).__name__, error=f"{socket.gethostname()}: {text}")

    def _classify(self, one: Slice) -> Done:
        from infer.classify.job import JobCounts, run_job
        from infer.classify.meter import Meter
        from infer.classify.ray.parts import PartsFolder
        from infer.classify.shard_record import NamesHash
        from infer.classify.sinks import open_sink, partial_output
        from infer.errors import InputError
        from infer.names import printable

        work, runner = self._work, self._open()
        folder = PartsFolder(Path(work.output))
        part, where = folder.part(one.number), f"{runner.target}: {runner.backend.device}"
        if part.is_file():  # of an attempt whose answer was lost
            there = folder.counts([one])
            return Done(one.number, there.rows, there.failed, where)
        sink = open_sink(partial_output(part), work.top)
        tally, names = JobCounts(), NamesHash()
        named: list[str] = []
        sink.begin({"part": one.number}, runner.backend.max_batch, resume=False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="PIL")
                run_job(
                    runner,
                    names.watch(self._slice(one)),
                    sink,
                    top=work.top,
                    strict=work.strict,
                    fast=work.fast,
                    decoder="dali" if work.gpu_decode else "host",
                    workers=work.cores,
                    meter=Meter(),
                    tally=tally,
                    failed=lambda row: (
                        named.append(printable(str(row.error))) if len(named) < self._MOST_NAMED else None
                    ),
                )
            if (names.count, names.hexdigest()) != (one.count, one.names_sha256):
                raise InputError(
                    f"part {one.number} has other images here ({names.count}) than on the driver ({one.count}): the "
                    "same inputs have to be under the same paths on every machine"
                )
            sink.finish()
        except BaseException:
            self._next = -1
            sink.close(keep=False)
            raise
        return Done(one.number, tally.good + tally.failed, tally.failed, where, named="\n".join(named))

    def _open(self) -> Runner:
        if self._runner is not None:
            return self._runner
        import infer
        from infer.classify.ray.parts import bundle_digest
        from infer.errors import InputError
        from infer.pipeline.device import require_device
        from infer.runner import open_bundle

        work = self._work
        if infer.__version__ != work.version:
            raise InputError(
                f"this machine has iresnet {infer.__version__}, the driver {work.version}; install the same"
            )
        runner = open_bundle(work.bundle, target=work.target, allow_untrained=True, threads=work.threads)
        try:
            if bundle_digest(runner.manifest) != work.bundle_sha256:
                raise InputError(f"{work.bundle} is another bundle here than on the driver")
            if work.gpu_decode:
                require_device(runner.backend, runner.preprocessing, fast=work.fast)
        except BaseException:
            runner.close()
            raise
        self._runner = runner
        return runner

    def _slice(self, one: Slice) -> Iterator[Record]:
        """The records of a part; goes on where the last one ended, as long as numbers rise."""
        if self._next < 0 or one.number < self._next:
            self._records, self._next = self._all(), 0
        rows = self._work.part_rows
        skipped = islice(self._records, (one.number - self._next) * rows)
        for _ in skipped:
            pass
        self._next = one.number + 1
        return islice(self._records, rows)

    def _all(self) -> Iterator[Record]:
        from infer.sources import iter_records, read_list

        work = self._work
        return iter_records(chain(work.inputs, *map(read_list, work.lists)), column=work.column)


class MapClassifier:
    """:class:`Classifier` as Ray Data calls it, a row at a time."""

    def __init__(self, work: Work) -> None:
        self._classifier = Classifier(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Columns of :class:`infer.classify.ray.parts.Slice` in, of :class:`Done` out."""
        from dataclasses import asdict

        from infer.classify.ray.parts import Slice

        one = Slice(int(row["number"]), int(row["count"]), str(row["names_sha256"]))
        return asdict(self._classifier.classify(one))
