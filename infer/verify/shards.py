"""A share of a verification, as a file; and all of them put together: counts and exact sums, nothing is averaged.

Shard ``i/n`` has images i, i + n, ... of the data set. Every shard lists the whole set, and says what it found there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from infer.bundle import Manifest
from infer.datasets.real_labels import RealLabels
from infer.errors import InputError
from infer.files import write_bytes
from infer.shard import Shard
from infer.verify.accuracy import Tally
from infer.verify.deviations import Deviation
from infer.verify.evaluation import Evaluation, ImageRow
from infer.verify.exact_sum import ExactSum
from infer.verify.reliability import Reliability

FORMAT = 1
_SUMS = ("absolute", "signal", "noise", "cosine")


class Facts(msgspec.Struct, kw_only=True):
    """What is known of the whole verification, the same for each shard.

    Attributes:
        bundle: what decides the answers of the bundle, see :func:`bundle_identity`; ``reference`` of the FP32 one.
        target, data, source: as the record of the accuracy has them.
        images: of the data set, unread ones of the listing left out; ``names_sha256`` of their names and classes.
        validation_set, foreign: what the labels are, see :func:`infer.verify.diagnosis.diagnose`.
        left_out, skipped, unreadable: of the listing.
        threshold, max_unreadable, complete, fast_decode: as asked for.
    """

    bundle: str
    reference: str | None
    target: str
    data: str
    source: str | None
    images: int
    names_sha256: str
    validation_set: bool
    foreign: int
    left_out: list[str]
    skipped: dict[str, int]
    unreadable: list[str]
    threshold: float
    max_unreadable: float
    complete: bool
    fast_decode: bool


class ClassCounts(msgspec.Struct):
    """Of :class:`infer.verify.class_table.ClassTable`."""

    images: list[int]
    hits: list[int]
    reference_hits: list[int]
    agreeing: list[int]
    confused: list[tuple[int, int, int]]
    reference_confused: list[tuple[int, int, int]]


class Bins(msgspec.Struct):
    """Of :class:`infer.verify.reliability.Reliability`; sums as hexadecimal numbers."""

    images: list[int]
    correct: list[int]
    sums: list[str]


class Farthest(msgspec.Struct):
    """An image that differs much from FP32, and its place in the set."""

    place: int
    fields: dict[str, Any]
    thumbnail: bytes
    #: None where it is infinite, which JSON does not have.
    divergence: float | None


class VerifyShard(msgspec.Struct, kw_only=True):
    """One finished share."""

    format: int
    version: str
    share: Shard
    facts: Facts
    device: str
    tally: dict[str, int]
    max_difference: float
    sums: dict[str, str]
    classes: ClassCounts
    reliability: Bins
    reference_reliability: Bins
    histogram: list[list[int]]
    farthest: list[Farthest]
    real: tuple[int, int, int] | None
    rows: list[tuple[int, tuple[Any, ...]]]
    failures: list[tuple[int, str]]


# As in infer.bundle: msgspec 0.22 crashes when several threads are the first to decode a type.
_SHARD = msgspec.json.Decoder(VerifyShard)


def bundle_identity(manifest: Manifest, target: str) -> str:
    """Hashes of what decides the answers of a bundle on a target."""
    plans = [entry.sha256 for plan in manifest.plans if plan.target == target for entry in plan.files]
    return ",".join([manifest.graph.sha256, manifest.labels.sha256, *plans])


def write_shard(
    path: Path,
    share: Shard,
    facts: Facts,
    device: str,
    evaluation: Evaluation,
    rows: list[tuple[int, ImageRow]],
    failures: list[tuple[int, str]],
) -> None:
    """Write a share; whole or not at all.

    Args:
        path: the file.
        share: which one it is.
        facts: of the whole.
        device: that ran it, for people.
        evaluation: of its images.
        rows: of its images, with their places in the set.
        failures: what could not be read, likewise.
    """
    import infer

    tally, classes, real = evaluation.tally, evaluation.classes, evaluation.real
    shard = VerifyShard(
        format=FORMAT,
        version=infer.__version__,
        share=share,
        facts=facts,
        device=device,
        tally={name: value for name, value in asdict(tally).items() if isinstance(value, int)},
        max_difference=tally.max_difference,
        sums={name: str(getattr(tally, name)) for name in _SUMS},
        classes=ClassCounts(
            *(getattr(classes, name).tolist() for name in ("images", "hits", "reference_hits", "agreeing")),
            *([(*pair, count) for pair, count in sorted(counter.items())] for counter in classes.confused),
        ),
        reliability=_bins(evaluation.reliability),
        reference_reliability=_bins(evaluation.reference_reliability),
        histogram=evaluation.deviations.histogram.tolist(),
        farthest=[_farthest(place, item) for place, item in evaluation.deviations.placed()],
        real=None if real is None else (real.images, real.hits, real.reference_hits),
        rows=[(place, tuple(row)) for place, row in rows],
        failures=failures,
    )
    write_bytes(path, msgspec.json.encode(shard) + b"\n")


def _bins(found: Reliability) -> Bins:
    return Bins(found.images.tolist(), found.correct.tolist(), [str(one) for one in found.sums])


def _farthest(place: int, item: Deviation) -> Farthest:
    fields = {name: value for name, value in asdict(item).items() if name not in ("thumbnail", "divergence")}
    finite = item.divergence if np.isfinite(item.divergence) else None
    return Farthest(place, fields, item.thumbnail, finite)


def read_shards(paths: Sequence[Path]) -> list[VerifyShard]:
    """All shares of one verification, by number.

    Raises:
        InputError: one is missing, twice, damaged, of another version of this package or of another verification.
    """
    import infer

    found: dict[int, tuple[Path, VerifyShard]] = {}
    for path in paths:
        try:
            shard = _SHARD.decode(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: no shard of verify ({error}); run it again") from error
        if (shard.format, shard.version) != (FORMAT, infer.__version__):
            raise InputError(f"{path}: written by version {shard.version}, this is {infer.__version__}; run it again")
        first_path, first = next(iter(found.values()), (path, shard))
        if shard.share.count != first.share.count:
            raise InputError(f"{path} is shard {shard.share}, but {first_path} is one of {first.share.count}")
        if shard.share.index in found:
            raise InputError(f"shard {shard.share} is there twice: {found[shard.share.index][0]} and {path}")
        ours, theirs = msgspec.to_builtins(shard.facts), msgspec.to_builtins(first.facts)
        for name in ours:
            if ours[name] != theirs[name]:
                raise InputError(f"{path} and {first_path} are of different verifications: {name} differs")
        found[shard.share.index] = path, shard
    count = next(iter(found.values()))[1].share.count
    missing = [f"{index}/{count}" for index in range(count) if index not in found]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise InputError(f"{len(missing)} of {count} shards missing: {', '.join(missing[:10])}{more}; pass all of them")
    shards = [found[index][1] for index in range(count)]
    seen = sum(shard.tally["images"] + len(shard.failures) for shard in shards)
    if seen != shards[0].facts.images:
        raise InputError(f"the shards have {seen} images, the data set {shards[0].facts.images}; run them again")
    return shards


def put_together(shards: Sequence[VerifyShard], labels: Sequence[str]) -> Evaluation:
    """What one run over all the images would have counted."""
    compared = any(shard.tally["reference_images"] for shard in shards)
    real = RealLabels([]) if any(shard.real is not None for shard in shards) else None
    whole = Evaluation(labels, real)
    for shard in shards:
        _add_tally(whole.tally, shard)
        for name in ("images", "hits", "reference_hits", "agreeing"):
            getattr(whole.classes, name).__iadd__(np.array(getattr(shard.classes, name), np.int64))
        pairs = (shard.classes.confused, shard.classes.reference_confused)
        for counter, found in zip(whole.classes.confused, pairs, strict=True):
            counter.update({(true, predicted): count for true, predicted, count in found})
        whole.classes.compared |= compared
        for reliability, bins in (
            (whole.reliability, shard.reliability),
            (whole.reference_reliability, shard.reference_reliability),
        ):
            reliability.images += np.array(bins.images, np.int64)
            reliability.correct += np.array(bins.correct, np.int64)
            for total, text in zip(reliability.sums, bins.sums, strict=True):
                total.merge(ExactSum(text))
        whole.deviations.histogram += np.array(shard.histogram, np.int64)
        for one in shard.farthest:
            distance = float("inf") if one.divergence is None else one.divergence
            item = Deviation(**one.fields, divergence=distance, thumbnail=one.thumbnail)
            whole.deviations.keep(item.flipped, distance, one.place, partial(_itself, item))
        if real is not None and shard.real is not None:
            real.restore(*shard.real, compared=compared)
    return whole


def _itself(item: Deviation) -> Deviation:
    return item


def _add_tally(tally: Tally, shard: VerifyShard) -> None:
    for name, value in shard.tally.items():
        setattr(tally, name, getattr(tally, name) + value)
    tally.max_difference = max(tally.max_difference, shard.max_difference)
    for name, text in shard.sums.items():
        getattr(tally, name).merge(ExactSum(text))


def rows_in_order(shards: Sequence[VerifyShard]) -> list[tuple[int, ImageRow]]:
    """The row of every image with its place, in the order of the set."""
    placed = sorted((entry for shard in shards for entry in shard.rows), key=lambda entry: entry[0])
    return [(place, ImageRow(*row)) for place, row in placed]


def failures_in_order(shards: Sequence[VerifyShard]) -> list[str]:
    """What could not be read: first of the listing, then image by image."""
    placed = sorted(failure for shard in shards for failure in shard.failures)
    return [*shards[0].facts.unreadable, *(text for _, text in placed)]
