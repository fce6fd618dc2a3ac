"""One pass of labelled images through a bundle and FP32: all of them, or the share of a shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infer.backends import REFERENCE, why_unavailable
from infer.bundle import ModelInfo, read_manifest
from infer.datasets import LabelledDataset, open_dataset
from infer.datasets.class_names import ClassNames
from infer.datasets.real_labels import read_real_labels
from infer.errors import InputError
from infer.names import escape_name, printable
from infer.pipeline.host import Batch
from infer.runner import Runner, open_bundle
from infer.shard import Shard
from infer.sources import Skipped
from infer.terminal import progress
from infer.verify.csv_rows import CsvRows
from infer.verify.evaluation import Evaluation, ImageRow, Labelled, evaluate
from infer.verify.shards import Facts, bundle_identity
from infer.verify.verdict import DEFAULT_THRESHOLD, DEFAULT_UNREADABLE


@dataclass(frozen=True)
class Measured:
    """A pass over images, with what it was made of.

    Attributes:
        runner, fp32: the bundle and the reference, open; ``fp32`` is None where there is none.
        dataset: the images of the share.
        evaluation: what was counted.
        facts: of the whole data set.
        failures: images of the share that could not be read, with their places in the set.
    """

    runner: Runner
    fp32: Runner | None
    dataset: LabelledDataset
    evaluation: Evaluation
    facts: Facts
    failures: list[tuple[int, str]]


class Rows(Protocol):
    """Takes the row of every image."""

    def write(self, row: ImageRow, place: int) -> None:
        """Take one; ``place`` is that of the image in the data set."""
        ...


def measure(
    stack: ExitStack,
    folder: Path,
    data: Sequence[str],
    share: Shard,
    rows: Rows | None,
    *,
    reference: Path | None = None,
    reference_target: str | None = None,
    target: str | None = None,
    ground_truth: Path | None = None,
    real: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    threshold: float = DEFAULT_THRESHOLD,
    max_unreadable: float = DEFAULT_UNREADABLE,
    strict: bool = False,
    allow_untrained: bool = False,
    threads: int | None = None,
    fast_decode: bool = False,
) -> Measured:
    """Run the images of a share; see :func:`infer.verify.run.verify_bundle` for the options.

    Args:
        stack: closes what is opened.
        folder, data: as there.
        share: which images; ``0/1`` for all.
        rows: gets a row for each.
    """
    runner = stack.enter_context(open_bundle(folder, target=target, allow_untrained=allow_untrained, threads=threads))
    runner.require_trained()
    skipped = Skipped()
    whole = open_dataset(
        data,
        runner.labels,
        runner.manifest.wnids,
        ground_truth=ground_truth,
        limit=limit,
        seed=seed,
        skipped=skipped,
    )
    dataset = whole.part(share.index, share.count)
    fp32 = _open_reference(folder, runner, reference, reference_target, threads)
    if fp32 is not None:
        stack.enter_context(fp32)
    classes = ClassNames(runner.labels, runner.manifest.wnids)
    if isinstance(rows, CsvRows):
        rows.labels = runner.labels
        stack.enter_context(rows)
    labels = None if real is None else read_real_labels(real, whole.records, classes)
    evaluation = Evaluation(runner.labels, labels, None if rows is None else rows.write)
    failures: list[tuple[int, str]] = []

    with progress("verify", len(dataset)) as advance:

        def batches() -> Iterator[Labelled]:
            size = runner.backend.max_batch
            exact: Iterator[tuple[Batch, object]] | None = None
            if fast_decode and fp32 is not None:
                exact = dataset.batches(runner.preprocessing, size)
            for batch, targets in dataset.batches(runner.preprocessing, size, strict=strict, fast=fast_decode):
                for failure in batch.failures:
                    place = share.index + share.count * failure.index
                    failures.append((place, printable(str(failure.error))))
                advance(len(batch.records) + len(batch.failures))
                yield _labelled(batch, targets, None if exact is None else next(exact)[0], share)

        evaluate(runner, fp32, batches(), evaluation)
    facts = Facts(
        bundle=bundle_identity(runner.manifest, runner.target),
        reference=None if fp32 is None else bundle_identity(fp32.manifest, fp32.target),
        target=runner.target,
        data=", ".join(Path(p).name for p in data),
        source=None if fp32 is None else f"{fp32.folder.name} on {fp32.target}",
        images=len(whole),
        names_sha256=whole.digest(),
        validation_set=whole.is_validation_set(classes),
        foreign=len(whole.contradicted(classes)),
        left_out=[escape_name(record.name) for record in whole.left_out],
        skipped=skipped.to_json(),
        unreadable=[printable(f"{unread.name}: {unread.defect}") for unread in whole.unreadable],
        threshold=threshold,
        max_unreadable=max_unreadable,
        complete=limit is None,
        fast_decode=fast_decode,
    )
    return Measured(runner, fp32, dataset, evaluation, facts, failures)


def _labelled(batch: Batch, targets: NDArray[np.int64], exact: Batch | None, share: Shard) -> Labelled:
    """Images of one batch; with ``exact``, the same decoded exactly, those that only one way can read left out."""
    places = (share.index + share.count * batch.indices).tolist()
    if exact is None:
        return Labelled(batch.records, batch.images, targets, places=places)
    _, rows, others = np.intersect1d(batch.indices, exact.indices, assume_unique=True, return_indices=True)
    return Labelled(
        [batch.records[row] for row in rows],
        batch.images[rows],
        targets[rows],
        exact.images[others],
        [places[row] for row in rows],
    )


def _identity(model: ModelInfo) -> tuple[object, ...]:
    """What two bundles of one network share. Random weights have no hash: the seed and the model stand for it."""
    return model.weights_sha256 or (model.weights, model.name, model.width), model.num_classes


def _open_reference(
    folder: Path, runner: Runner, reference: Path | None, target: str | None, threads: int | None
) -> Runner | None:
    model = runner.manifest.model
    if reference is None:
        sibling = folder.resolve().parent / f"{model.name}-fp32"
        reference = folder if runner.manifest.precision == "fp32" else sibling
        if not reference.is_dir():
            return None
    manifest = read_manifest(reference)
    if manifest.precision != "fp32":
        raise InputError(f"{reference} is {manifest.precision}; the reference must be an fp32 bundle")
    if _identity(manifest.model) != _identity(model):
        raise InputError(
            f"{reference} was built from other weights ({manifest.model.weights}) than {folder} ({model.weights}); "
            "build both from the same, or pass --reference"
        )
    if manifest.preprocessing != runner.manifest.preprocessing:
        raise InputError(f"{reference} and {folder} differ in pre-processing; build them with the same options")
    if target is None and why_unavailable(REFERENCE) is None:
        target = REFERENCE
    return open_bundle(reference, target=target, allow_untrained=True, threads=threads)
