"""Labelled images, for measuring accuracy and for calibration.

Layouts, told apart by themselves, in this order:

* a ground-truth file was given: see :mod:`infer.datasets.ground_truth`;
* Parquet files with a column of classes beside the images, as the Hugging Face hub has them: an index or a name;
* WebDataset tar files, with the class beside each image: see :mod:`infer.datasets.webdataset`;
* class folders, as ``torchvision.datasets.ImageFolder`` has them, in a folder or a tar file, one level down or below a
  common folder (``val/n01440764/x.JPEG``); or one folder or tar file for each class, named one by one. The folders are
  called by WordNet id, by class name (``ankle_boot`` is ``Ankle boot``) or by index, all of them the same way: see
  :mod:`infer.datasets.class_folders`;
* the flat ILSVRC2012 validation set, files called ``ILSVRC2012_val_00000001.JPEG``, with the labels shipped here, for
  models whose classes are ImageNet-1k;
* files with a WordNet id at the end or the beginning of their names: ``n01440764_10026.JPEG``.

A class is always looked up in the model's own list. It is never the position of a folder among the sorted folders,
which is another number as soon as a class is missing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from infer.bundle.preprocessing import Preprocessing
from infer.datasets.class_folders import find_class_folders, folders_of
from infer.datasets.class_names import ClassNames
from infer.datasets.file_names import named_wnid, official_wnid, validation_number
from infer.datasets.ground_truth import first_five, read_ground_truth
from infer.datasets.imagenet import VALIDATION_IMAGES, imagenet1k, validation_targets
from infer.datasets.webdataset import SUFFIXES, Samples, classes_of_samples
from infer.errors import InputError
from infer.pipeline.host import Batch, load_batches
from infer.sources import Record, Skipped, iter_records


@dataclass(frozen=True, eq=False)
class LabelledDataset:
    """Images and their classes.

    Attributes:
        records: the images, N of them, in the order of :func:`infer.sources.iter_records`.
        targets: int64 ``[N]``, indices into the model's labels.
        layout: how the classes were found, for people.
        unreadable: what was meant as part of the set and cannot be read (a damaged tar file); not among ``records``.
        left_out: images beside the class folders, which have no class; not among ``records``.
    """

    records: tuple[Record, ...]
    targets: NDArray[np.int64]
    layout: str
    unreadable: tuple[Record, ...] = ()
    left_out: tuple[Record, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> list[str]:
        """The name of each image."""
        return [record.name for record in self.records]

    def part(self, index: int, count: int) -> LabelledDataset:
        """Images index, index + count, ...; what is beside them stays that of the whole."""
        return replace(self, records=self.records[index::count], targets=self.targets[index::count])

    def digest(self) -> str:
        """SHA-256 of names and classes, in order."""
        found = hashlib.sha256(self.targets.astype("<i8").tobytes())
        for record in self.records:
            data = os.fsencode(record.name)
            found.update(b"%d:%b" % (len(data), data))
        return found.hexdigest()

    def sample(self, count: int, seed: int = 0) -> LabelledDataset:
        """At most ``count`` images, as many of each class as possible; see :func:`balanced_sample`."""
        chosen = balanced_sample([r.member for r in self.records], self.targets.tolist(), count, seed)
        return replace(self, records=tuple(self.records[i] for i in chosen), targets=self.targets[chosen])

    def is_validation_set(self, classes: ClassNames) -> bool:
        """Whether these are images of ILSVRC2012's validation set, all of its classes known to the model.

        They are when all are called ``ILSVRC2012_val_<number>``, or when they are as many, with as many of each class.
        """
        index = classes.imagenet_indices()
        if index is None:
            return False
        try:
            numbers = [validation_number(PurePosixPath(record.member).stem) for record in self.records]
        except InputError:  # a number that the set does not have
            return False
        if None not in numbers:
            return True
        sizes = np.bincount(self.targets, minlength=len(classes))[index]
        return len(self) == VALIDATION_IMAGES and bool((sizes == VALIDATION_IMAGES // len(index)).all())

    def contradicted(self, classes: ClassNames) -> NDArray[np.int64]:
        """int64, the images whose names are ImageNet's own, and whose class is not the one that ImageNet gives them.

        Nothing is known of them where the model's classes are not ImageNet's.
        """
        if not classes.has_wnids:
            return np.empty(0, np.int64)
        stems = (PurePosixPath(record.member).stem for record in self.records)
        official = [official_wnid(stem) for stem in stems]
        rows = [
            row
            for row, (wnid, target) in enumerate(zip(official, self.targets.tolist(), strict=True))
            if wnid is not None and classes.find(wnid, "wnid") != target
        ]
        return np.array(rows, np.int64)

    def batches(
        self,
        spec: Preprocessing,
        batch: int,
        *,
        workers: int | None = None,
        strict: bool = False,
        fast: bool = False,
    ) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """As :func:`infer.pipeline.host.load_batches`, each batch with the int64 ``[n]`` classes of its rows."""
        for loaded in load_batches(self.records, spec, batch, workers=workers, strict=strict, fast=fast):
            yield loaded, self.targets[loaded.indices]


def open_dataset(
    paths: Iterable[str | os.PathLike[str]],
    labels: Sequence[str],
    wnids: Sequence[str] | None = None,
    *,
    ground_truth: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    skipped: Skipped | None = None,
) -> LabelledDataset:
    """Find the images at ``paths`` and the class of each. Nothing is decoded yet.

    Args:
        paths: as for :func:`infer.sources.iter_records`.
        labels: class names in the order of the model's outputs.
        wnids: their WordNet ids; None takes those of ImageNet-1k where ``labels`` are its classes.
        ground_truth: a file with the classes; None finds them from the layout.
        limit: keep at most so many images, class-balanced, chosen by ``seed``.
        seed: of the choice.
        skipped: counts the files that are no images by their names.

    Raises:
        InputError: no image, an unknown layout, or one that can be read in two ways, unknown class names, images
            without a class or with two, an unusable ground-truth file, or a limit below 1.
    """
    classes = ClassNames(labels, wnids)
    records: list[Record] = []
    unreadable: list[Record] = []
    samples = Samples()
    for record in iter_records(paths, also=SUFFIXES, labelled=True, skipped=skipped):
        if record.defect is not None:
            unreadable.append(record)
        elif record.member.lower().endswith(SUFFIXES):
            samples.add(record)
        else:
            records.append(record)
    if not records:
        raise InputError(f"no image can be read: {unreadable[0].name}: {unreadable[0].defect}")
    left_out: list[Record] = []
    if ground_truth is not None:
        found = records, read_ground_truth(Path(ground_truth), records, classes), "ground-truth file"
    elif any(record.label is not None for record in records):
        found = records, _labels_beside(records, classes), "Parquet file with classes"
    elif samples.decide(records, classes):
        found = classes_of_samples(records, samples, classes)
    elif (folders := find_class_folders(records, classes)) is not None:
        found = [records[row] for row in folders.rows], folders.targets, folders.layout
        left_out = folders.left_out
    else:
        found = records, *_by_file_name(records, classes)
    dataset = LabelledDataset(tuple(found[0]), found[1], found[2], tuple(unreadable), tuple(left_out))
    return dataset if limit is None else dataset.sample(limit, seed)


def balanced_sample(names: Sequence[str], groups: Sequence[Hashable], count: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose ``count`` of N items with the groups as even as they allow: int64 indices, rising, at most N.

    The choice depends on ``seed`` and the names alone, not on the order, the machine or the version of a library: each
    item is ranked within its group by a hash of seed and name, and all first-ranked items are taken before any second.

    Raises:
        InputError: ``count`` is below 1.
    """
    if count < 1:
        raise InputError(f"expected to sample at least 1 image, found {count}")
    if count >= len(names):
        return np.arange(len(names), dtype=np.int64)
    keys = [hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest() for name in names]
    taken: dict[Hashable, int] = {}
    ranked: list[tuple[int, bytes, int]] = []
    for index in sorted(range(len(names)), key=lambda i: (keys[i], i)):
        rank = taken[groups[index]] = taken.get(groups[index], -1) + 1
        ranked.append((rank, keys[index], index))
    return np.array(sorted(index for _, _, index in sorted(ranked)[:count]), np.int64)


def _labels_beside(records: list[Record], classes: ClassNames) -> NDArray[np.int64]:
    targets: list[int] = []
    for record in records:
        text = "" if record.label is None or record.label == -1 else str(record.label)
        target = classes.find(text, "index", "wnid", "name") if text else None
        if target is None:
            what = f"unknown class {record.label!r}" if text else "no class"
            raise InputError(f"{record.name}: {what} in the column beside it, expected {classes.examples()}")
        targets.append(target)
    return np.array(targets, np.int64)


def _by_file_name(records: list[Record], classes: ClassNames) -> tuple[NDArray[np.int64], str]:
    """Classes of ImageNet's own files, by number or by WordNet id."""
    stems = [PurePosixPath(record.member).stem for record in records]
    numbers = [validation_number(stem) for stem in stems]
    if None in numbers:
        named = [named_wnid(stem) for stem in stems]
        if None not in named:
            return _of_wnids(
                [wnid for wnid in named if wnid], records, classes
            ), "WordNet ids in the names of the files"
        folders = sorted({parts[-1] for parts in map(folders_of, records)})
        raise InputError(
            f"no classes found for {len(records)} images such as {records[0].name}: expected a folder or tar file "
            f"with one subfolder for each class, called like {classes.examples()} (found: {first_five(folders)}), a "
            "WebDataset tar file with .cls entries, a Parquet file with a column of classes, the ILSVRC2012 validation "
            "set, or a ground-truth file"
        )
    targets = validation_targets()[np.array(numbers, np.int64) - 1]
    layout = "ILSVRC2012 validation set"
    shipped = imagenet1k().wnids
    if classes.wnids == shipped:
        return targets, layout
    if not classes.has_wnids:
        raise InputError(
            f"these are images of the ILSVRC2012 validation set, but the model's {len(classes)} classes are not "
            "ImageNet-1k; give a ground-truth file in the order of the model"
        )
    return _of_wnids([shipped[target] for target in targets], records, classes), layout


def _of_wnids(wnids: list[str], records: list[Record], classes: ClassNames) -> NDArray[np.int64]:
    found = [classes.find(wnid, "wnid") for wnid in wnids]
    unknown = [f"{record.name} ({wnid})" for record, wnid, i in zip(records, wnids, found, strict=True) if i is None]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(records)} images are of classes that this model does not have "
            f"({first_five(unknown)}); leave them out, or give a ground-truth file"
        )
    return np.array(found, np.int64)
