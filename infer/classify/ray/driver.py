"""The one process that knows the whole job: it lists, gives parts away, counts, and says when all is there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import infer
from infer import errors
from infer.bundle import Manifest, find_plan, newest_accuracy, read_manifest
from infer.choices import TENSORRT
from infer.classify.meter import Meter, shown
from infer.classify.ray.actor import Done, MapClassifier, Work
from infer.classify.ray.cluster import Actors, connected, divide
from infer.classify.ray.parts import JobRecord, PartCounts, PartsFolder, Slice, bundle_digest, cut
from infer.errors import AccuracyError, InputError, IResNetError, UntrainedError
from infer.sources import Skipped, iter_records, read_list
from infer.tables import say

if TYPE_CHECKING:
    from infer.choices import Runs

#: Records a part where nothing is said.
PART_ROWS = 2048
#: Ray Data's own bookkeeping of a block costs milliseconds: a job of many parts gets several a block.
_MOST_BLOCKS = 2000


@dataclass(frozen=True)
class RayJob:
    """``classify --ray`` as it was asked for; see the command's options."""

    bundle: Path
    inputs: Sequence[str]
    lists: Sequence[str]
    output: Path
    address: str = "local"
    column: str | None = None
    top: int = 5
    target: Runs | None = None
    threads: int | None = None
    strict: bool = False
    fast: bool = False
    gpu_decode: bool = False
    allow_untrained: bool = False
    require_verified: bool = False
    resume: bool = False
    overwrite: bool = False
    part_rows: int = PART_ROWS


@dataclass(frozen=True)
class Outcome:
    """What a job left.

    Attributes:
        counts: rows of all parts.
        parts: their number; ``there`` of them before this run.
        where: targets and devices that worked.
        meter: times and images of this run.
        skipped: files that were passed over.
    """

    counts: PartCounts
    parts: int
    there: int
    where: list[str]
    meter: Meter
    skipped: Skipped


def run(job: RayJob) -> Outcome:
    """Classify the images into numbered parts.

    Raises:
        InputError: an option, an input or what lies at the output does not fit.
        IResNetError: what an actor reports: a bundle, target or package that a machine lacks, under ``strict`` an
            image that cannot be read.
    """
    folder = PartsFolder(job.output)
    _check(job)
    manifest = read_manifest(job.bundle)
    _check_bundle(job, manifest)
    top = min(job.top, manifest.outputs[1].shape[1])
    meter, skipped = Meter(), Skipped()
    found = None if job.overwrite else folder.read()
    if found is not None and not job.resume:
        folder.begin(found, resume=False, overwrite=False)  # refuses, before anything is started
    with connected(job.address) as ray:
        actors = divide(ray.nodes(), job.threads, gpu=_wants_gpu(job, manifest, ray))
        records = iter_records(chain(job.inputs, *map(read_list, job.lists)), column=job.column, skipped=skipped)
        rows = found.part_rows if found is not None else _rows(job, manifest)
        slices = cut(records, rows)
        record = JobRecord(
            job=_identity(job, manifest, top),
            part_rows=rows,
            images=sum(one.count for one in slices),
            names_sha256=sha256("".join(one.names_sha256 for one in slices).encode()).hexdigest(),
        )
        if folder.begin(record, resume=job.resume, overwrite=job.overwrite):
            counts = folder.counts(slices)
            meter.skip(counts.rows)
            return Outcome(counts, len(slices), len(slices), [], meter, skipped)
        missing = folder.missing(slices)
        meter.total = record.images
        meter.skip(record.images - sum(one.count for one in missing))
        work = Work(
            infer.__version__, str(job.bundle.absolute()), str(folder.path), tuple(map(_absolute, job.inputs)),
            tuple(map(_absolute, job.lists)), job.column, rows, top, job.target,
            job.threads if job.threads or actors.gpus else actors.cpus,
            actors.cpus, job.strict, job.fast, job.gpu_decode,
            bundle_digest(manifest),
        )  # fmt: skip
        try:
            where = _classify(ray, missing, work, actors, meter)
        except BaseException:
            left = len(folder.missing(slices))
            say(
                f"{len(slices) - left} of {len(slices)} parts are whole in {folder.path}; --resume makes the others",
                stream=sys.stderr,
            )
            raise
    counts = folder.counts(slices)
    record.finished = counts
    folder.write(record)
    return Outcome(counts, len(slices), len(slices) - len(missing), where, meter, skipped)


def _check(job: RayJob) -> None:
    if "-" in job.lists:
        raise InputError("--files-from -: every machine reads the list; with --ray name a file")
    if job.resume and job.overwrite:
        raise InputError("--resume goes on with an interrupted run and --overwrite discards it; pass one of them")


def _check_bundle(job: RayJob, manifest: Manifest) -> None:
    if not manifest.model.trained and not job.allow_untrained:
        raise UntrainedError(
            f"{job.bundle} was built from random weights; build it with trained ones (WEIGHTS=path), or pass "
            "--allow-untrained"
        )
    if job.target is not None and job.target != "onnxruntime":
        find_plan(job.bundle, manifest, job.target)
    if job.require_verified:
        targets = [job.target] if job.target else [plan.target for plan in manifest.plans]
        for target in targets:
            found = newest_accuracy(manifest, target)
            if found is None or found.outcome != "passed":
                raise AccuracyError(f"{job.bundle} on {target} has not passed a verification; run: iresnet verify")


def _wants_gpu(job: RayJob, manifest: Manifest, ray: Any) -> bool:
    """Whether an actor gets a GPU: the target needs one, or the bundle has such a plan and the cluster has GPUs."""
    if job.target is not None:
        return job.target in TENSORRT
    return any(plan.target in TENSORRT for plan in manifest.plans) and ray.cluster_resources().get("GPU", 0) >= 1


def _rows(job: RayJob, manifest: Manifest) -> int:
    """Records a part: whole batches, which begin where they begin on one machine."""
    batch = manifest.batch.max
    return -(-max(job.part_rows, 1) // batch) * batch


def _identity(job: RayJob, manifest: Manifest, top: int) -> dict[str, Any]:
    return {
        "bundle": bundle_digest(manifest),
        "target": job.target,
        "inputs": [_absolute(text) for text in job.inputs],
        "lists": [_absolute(text) for text in job.lists],
        "column": job.column,
        "top": top,
        "fast_decode": job.fast,
        "gpu_decode": job.gpu_decode,
    }


def _absolute(text: str) -> str:
    return str(Path(text).absolute())


def _classify(ray: Any, missing: list[Slice], work: Work, actors: Actors, meter: Meter) -> list[str]:
    """Have the parts made; targets and devices that worked.

    Raises:
        IResNetError: as an actor reports it.
    """
    data = ray.data
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    rows = [{"number": one.number, "count": one.count, "names_sha256": one.names_sha256} for one in missing]
    most = min(actors.count, len(rows))
    pool = data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most, max_tasks_in_flight_per_actor=2)
    results = data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map(
        MapClassifier, fn_constructor_args=(work,), compute=pool, num_cpus=actors.cpus, num_gpus=actors.gpus or None
    )
    where: set[str] = set()
    with shown("classify", meter) as changed:
        for block in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in block.to_pylist():
                done = Done(**row)
                if done.error:
                    raise _error(done)
                for line in done.named.splitlines():
                    say(f"error: {line}", stream=sys.stderr)
                where.add(done.where)
                meter.advance(done.rows)
                changed()
    return sorted(where)


def _error(done: Done) -> IResNetError:
    kind = getattr(errors, done.kind, IResNetError)
    return (kind if issubclass(kind, IResNetError) else IResNetError)(done.error)
