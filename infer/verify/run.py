"""Verify a bundle: labelled images through it and through FP32, a verdict, and the result into the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infer.backends import REFERENCE, why_unavailable
from infer.bundle import MANIFEST, Manifest, ModelInfo, add_accuracy, read_labels, read_manifest
from infer.bundle.accuracy_record import Accuracy, Figures
from infer.checks.blame import Blame
from infer.datasets import LabelledDataset, open_dataset
from infer.datasets.class_names import ClassNames
from infer.datasets.real_labels import read_real_labels
from infer.errors import InputError, TargetUnavailableError
from infer.names import escape_name, printable
from infer.pipeline.host import Batch
from infer.runner import Runner, open_bundle
from infer.sources import Skipped
from infer.terminal import progress
from infer.verify.accuracy import record
from infer.verify.cause import IMAGES, find_cause
from infer.verify.csv_rows import CsvRows
from infer.verify.diagnosis import diagnose, lost_precision
from infer.verify.evaluation import Details, Evaluation, ImageRow, Labelled, evaluate
from infer.verify.label_order import describe
from infer.verify.shards import (
    Facts,
    Share,
    bundle_identity,
    failures_in_order,
    put_together,
    read_shards,
    rows_in_order,
    write_shard,
)
from infer.verify.tensor_errors import TensorError, layer_errors
from infer.verify.verdict import DEFAULT_THRESHOLD, DEFAULT_UNREADABLE, Labels, Verdict, judge


@dataclass(frozen=True)
class Verification:
    """What came out.

    Attributes:
        accuracy: what the manifest keeps.
        failures: images that could not be read, one line each.
        details: classes, confusions, calibration, and the images that differ most from FP32.
        labels: class names in the order of the model.
        manifest: of the bundle.
        layers: errors of the quantised tensors, worst first; empty unless asked for.
        unrecorded: why the manifest does not have it; None where it does.
        left_out: names of images that lie beside the class folders.
        skipped: files that are no images by their names.
        csv_error: why the rows were not written; None where they were, or nobody wanted them.
    """

    accuracy: Accuracy
    failures: list[str]
    details: Details
    labels: list[str]
    manifest: Manifest
    layers: list[TensorError] = field(default_factory=list)
    unrecorded: str | None = None
    left_out: list[str] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    csv_error: OSError | None = None


def verify_bundle(
    folder: Path,
    data: Sequence[str],
    *,
    reference: Path | None = None,
    reference_target: str | None = None,
    target: str | None = None,
    ground_truth: Path | None = None,
    real: Path | None = None,
    csv_file: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    threshold: float = DEFAULT_THRESHOLD,
    max_unreadable: float = DEFAULT_UNREADABLE,
    strict: bool = False,
    allow_untrained: bool = False,
    threads: int | None = None,
    layer_images: int = 0,
    fast_decode: bool = False,
) -> Verification:
    """Measure ``folder`` on ``data`` and store the result in its manifest.

    Args:
        folder: the bundle.
        data: folders or tar files with labelled images (see :func:`infer.datasets.open_dataset`).
        reference: FP32 bundle of the same weights; None takes the sibling ``<model>-fp32``, for an fp32 bundle itself.
        reference_target: what runs the reference; None for ONNX Runtime where it is installed, an engine independent
            of every plan, else the fastest.
        target: what runs the bundle; None for the fastest.
        ground_truth: classes of a flat folder.
        real: reassessed labels of the ILSVRC2012 validation set, see :mod:`infer.datasets.real_labels`.
        csv_file: where to write a row for each image, see :class:`infer.verify.csv_rows.CsvRows`; whole or not at
            all, and without it the verdict still comes.
        limit, seed: use a class-balanced sample.
        threshold, max_unreadable: see :func:`infer.verify.verdict.judge`.
        strict: raise at the first image that cannot be read.
        allow_untrained: measure although the weights are random.
        threads: CPU threads of CPU targets.
        layer_images: compare every quantised tensor with FP32 on so many of the images; 0 leaves that out.
        fast_decode: the bundle sees JPEG files decoded at reduced size (:func:`infer.images.jpeg.load_input`), and
            FP32 the exact pixels, so that the figures hold what this costs.

    Raises:
        InputError: no images, no labels, unusable real labels, or a reference with other weights or pre-processing.
        BundleError, TargetUnavailableError, UntrainedError: see :func:`infer.open_bundle`.
    """
    with ExitStack() as stack:
        written = None if csv_file is None else CsvRows(csv_file)
        found = _measure(
            stack, folder, data, Share(0, 1), written, reference=reference, reference_target=reference_target,
            target=target, ground_truth=ground_truth, real=real, limit=limit, seed=seed, threshold=threshold,
            max_unreadable=max_unreadable, strict=strict, allow_untrained=allow_untrained, threads=threads,
            fast_decode=fast_decode,
        )  # fmt: skip
        runner, fp32, figures = found.runner, found.fp32, found.evaluation.figures()
        failures = [*found.facts.unreadable, *(text for _, text in found.failures)]
        if figures.images == 0:
            raise InputError(f"not one of {found.facts.images} images could be read; the first: {failures[0]}")
        verdict = _verdict(found.evaluation, found.facts, len(failures), runner.labels)
        cause = None
        if fp32 is not None and (lost_precision(figures) or _disagrees(verdict, figures, threshold)):
            cause = _cause(runner, fp32, found.dataset.sample(IMAGES, seed))
        layers = []
        if layer_images:
            layers = _layers(folder, fp32, found.dataset.sample(layer_images, seed), runner)
        return _conclude(
            folder, runner.manifest, runner.labels, runner.backend.device, found.evaluation, found.facts, failures,
            cause=cause, layers=layers, csv_error=None if written is None else written.error,
        )  # fmt: skip


def verify_shard(folder: Path, data: Sequence[str], share: Share, output: Path, **options: Any) -> None:
    """Run a share of the images, and write what was counted for :func:`merge_shards`.

    Args:
        folder, data: as of :func:`verify_bundle`.
        share: which images.
        output: JSON file to write, whole or not at all.
        options: the others of :func:`verify_bundle` but ``csv_file`` and ``layer_images``.

    Raises:
        IResNetError: see :func:`verify_bundle`.
    """
    rows: list[tuple[int, ImageRow]] = []

    class Kept:
        @staticmethod
        def write(row: ImageRow, place: int) -> None:
            rows.append((place, row))

    with ExitStack() as stack:
        found = _measure(stack, folder, data, share, Kept(), **options)
        device = found.runner.backend.device
        write_shard(output, share, found.facts, device, found.evaluation, rows, found.failures)


@dataclass(frozen=True)
class _Measured:
    """A pass over images, with what it was made of."""

    runner: Runner
    fp32: Runner | None
    dataset: LabelledDataset
    evaluation: Evaluation
    facts: Facts
    failures: list[tuple[int, str]]


class _Rows(Protocol):
    def write(self, row: ImageRow, place: int) -> None: ...


def _measure(
    stack: ExitStack,
    folder: Path,
    data: Sequence[str],
    share: Share,
    rows: _Rows | None,
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
) -> _Measured:
    """Run the images of a share; what is opened is closed with ``stack``."""
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
    return _Measured(runner, fp32, dataset, evaluation, facts, failures)


def merge_shards(folder: Path, paths: Sequence[Path], csv_file: Path | None = None) -> Verification:
    """Put the shares of a verification together and store the result in the manifest of ``folder``.

    The figures are those of one run over all the images, digit for digit. Which part lost precision is not looked into:
    that takes images.

    Raises:
        InputError: see :func:`infer.verify.shards.read_shards`; or they are of another bundle.
    """
    shards = read_shards(paths)
    facts, manifest = shards[0].facts, read_manifest(folder)
    if facts.bundle != bundle_identity(manifest, facts.target):
        raise InputError(f"{paths[0]} is of another bundle than {folder}; run the shards on this one")
    labels = read_labels(folder, manifest)
    error = None
    if csv_file is not None:
        with CsvRows(csv_file, labels) as written:
            for place, row in rows_in_order(shards):
                written.write(row, place)
        error = written.error
    devices = "; ".join(dict.fromkeys(shard.device for shard in shards))
    found = failures_in_order(shards)
    return _conclude(folder, manifest, labels, devices, put_together(shards, labels), facts, found, csv_error=error)


def _verdict(evaluation: Evaluation, facts: Facts, unreadable: int, labels: Sequence[str]) -> Verdict:
    counts = evaluation.counts(unreadable)
    known = Labels(
        classes=len(labels),
        commonest=int(evaluation.classes.images.max()),
        contradicted=facts.foreign,
        hint=describe(evaluation.classes.reference_pairs(), len(labels), labels),
    )
    return judge(counts, known, facts.threshold, unreadable=facts.max_unreadable, complete=facts.complete)


def _conclude(
    folder: Path,
    manifest: Manifest,
    labels: list[str],
    device: str,
    evaluation: Evaluation,
    facts: Facts,
    failures: list[str],
    *,
    cause: Blame | None = None,
    layers: list[TensorError] | None = None,
    csv_error: OSError | None = None,
) -> Verification:
    """Verdict, diagnosis and record of what was counted."""
    figures = evaluation.figures()
    if figures.images == 0:
        raise InputError(f"not one of {facts.images} images could be read; the first: {failures[0]}")
    counts = evaluation.counts(len(failures))
    verdict = _verdict(evaluation, facts, len(failures), labels)
    found = record(manifest, facts.target, device, counts, figures, verdict, facts.threshold, facts.data, facts.source)
    found.fast_decode = facts.fast_decode
    found.diagnosis = diagnose(
        figures,
        manifest.model,
        manifest.preprocessing,
        precision=manifest.precision,
        validation_set=facts.validation_set,
        foreign_labels=facts.foreign,
        fast_decode=facts.fast_decode,
        cause=cause,
    )
    unrecorded = None
    try:
        add_accuracy(folder, found)
    except OSError as error:  # a bundle that cannot be written; the verdict holds all the same
        unrecorded = f"{folder / MANIFEST} cannot be written ({error.strerror})"
    return Verification(
        found, failures, evaluation.details(), labels, manifest, layers or [], unrecorded, facts.left_out,
        Skipped(facts.skipped), csv_error,
    )  # fmt: skip


def _disagrees(verdict: Verdict, figures: Figures, threshold: float) -> bool:
    """Whether it failed by other answers than FP32's, rather than by labels or images."""
    return verdict.outcome == "failed" and (figures.agreement or 0) < 100 * threshold


def _cause(runner: Runner, fp32: Runner, sample: LabelledDataset) -> Blame | None:
    images = [batch.images for batch, _ in sample.batches(runner.preprocessing, 16)]
    try:
        return find_cause(runner, fp32, np.concatenate(images)) if images else None
    except TargetUnavailableError:  # then the diagnosis says what to look at
        return None


def _labelled(batch: Batch, targets: NDArray[np.int64], exact: Batch | None, share: Share) -> Labelled:
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


def _layers(folder: Path, fp32: Runner | None, sample: LabelledDataset, runner: Runner) -> list[TensorError]:
    if fp32 is None:
        raise InputError("comparing layers needs an FP32 bundle; pass --reference BUNDLE")
    with progress("layers", len(sample)) as advance:
        batches = (batch.images for batch, _ in sample.batches(runner.preprocessing, 4))
        return layer_errors(folder, fp32.folder, batches, advance)


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
