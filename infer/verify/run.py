"""Verify a bundle: labelled images through it and through FP32, a verdict, and the result into the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infer.bundle import MANIFEST, Manifest, add_accuracy, read_labels, read_manifest
from infer.bundle.accuracy_record import Accuracy, Figures
from infer.checks.blame import Blame
from infer.datasets import LabelledDataset
from infer.errors import InputError, TargetUnavailableError
from infer.runner import Runner
from infer.shard import Shard
from infer.sources import Skipped
from infer.terminal import progress
from infer.verify.accuracy import record
from infer.verify.cause import IMAGES, find_cause
from infer.verify.csv_rows import CsvRows
from infer.verify.diagnosis import diagnose, lost_precision
from infer.verify.evaluation import Details, Evaluation, ImageRow
from infer.verify.label_order import describe
from infer.verify.measure import measure
from infer.verify.shards import (
    Facts,
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
        found = measure(
            stack, folder, data, Shard(0, 1), written, reference=reference, reference_target=reference_target,
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


def verify_shard(folder: Path, data: Sequence[str], share: Shard, output: Path, **options: Any) -> None:
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
        found = measure(stack, folder, data, share, Kept(), **options)
        device = found.runner.backend.device
        write_shard(output, share, found.facts, device, found.evaluation, rows, found.failures)


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


def _layers(folder: Path, fp32: Runner | None, sample: LabelledDataset, runner: Runner) -> list[TensorError]:
    if fp32 is None:
        raise InputError("comparing layers needs an FP32 bundle; pass --reference BUNDLE")
    with progress("layers", len(sample)) as advance:
        batches = (batch.images for batch, _ in sample.batches(runner.preprocessing, 4))
        return layer_errors(folder, fp32.folder, batches, advance)
