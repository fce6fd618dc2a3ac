"""Labelled images, for measuring accuracy and for calibration.

Layouts, told apart by themselves, in this order:

* a ground-truth file was given: see :mod:`infer.datasets.ground_truth`;
* WebDataset tar files: ``key.jpg`` beside ``key.cls``, which holds an index, a WordNet id or a class name. Further
  images of a sample (``key.seg.png``) are not used;
* class folders, as ``torchvision.datasets.ImageFolder`` has them, in a folder or a tar file, one level down or below a
  common folder (``val/n01440764/x.JPEG``); or one folder or tar file for each class, named one by one. The folders are
  called by WordNet id, by class name (``ankle_boot`` is ``Ankle boot``) or by index, all of them the same way;
* the flat ILSVRC2012 validation set, files called ``ILSVRC2012_val_00000001.JPEG``, with the labels shipped here, for
  models whose classes are ImageNet-1k.

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
from infer.datasets.class_names import SCHEMES, ClassNames
from infer.datasets.ground_truth import first_five, read_ground_truth
from infer.datasets.imagenet import VALIDATION_IMAGES, imagenet1k, validation_number, validation_targets
from infer.errors import InputError
from infer.pipeline.host import Batch, load_batches
from infer.sources import TAR_SUFFIXES, Record, iter_records

_MAX_DEPTH = 8


@dataclass(frozen=True, eq=False)
class LabelledDataset:
    """Images and their classes.

    Attributes:
        records: the images, N of them, in the order of :func:`infer.sources.iter_records`.
        targets: int64 ``[N]``, indices into the model's labels.
        layout: how the classes were found, for people.
        unreadable: what was meant as part of the set and cannot be read (a damaged tar file); not among ``records``.
    """

    records: tuple[Record, ...]
    targets: NDArray[np.int64]
    layout: str
    unreadable: tuple[Record, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> list[str]:
        """The name of each image."""
        return [record.name for record in self.records]

    def sample(self, count: int, seed: int = 0) -> LabelledDataset:
        """At most ``count`` images, as many of each class as possible; see :func:`balanced_sample`."""
        chosen = balanced_sample([r.member for r in self.records], self.targets.tolist(), count, seed)
        return replace(self, records=tuple(self.records[i] for i in chosen), targets=self.targets[chosen])

    def validation_differences(self, classes: ClassNames) -> int | None:
        """How many classes are not those that ILSVRC2012 gives its validation set; None for other images.

        They are of that set when all are called ``ILSVRC2012_val_<number>``, or when they are as many, with as many
        of each class.
        """
        index = classes.imagenet_indices()
        if index is None:
            return None
        try:
            numbers = [validation_number(PurePosixPath(record.member).stem) for record in self.records]
        except InputError:  # a number that the set does not have
            return None
        known = [number for number in numbers if number is not None]
        if len(known) == len(numbers):
            expected = np.array(index)[validation_targets()[np.array(known) - 1]]
            return int((expected != self.targets).sum())
        sizes = np.bincount(self.targets, minlength=len(classes))[index]
        whole = len(self) == VALIDATION_IMAGES and (sizes == VALIDATION_IMAGES // len(index)).all()
        return 0 if whole else None

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
) -> LabelledDataset:
    """Find the images at ``paths`` and the class of each. Nothing is decoded yet.

    Args:
        paths: as for :func:`infer.sources.iter_records`.
        labels: class names in the order of the model's outputs.
        wnids: their WordNet ids; None takes those of ImageNet-1k where ``labels`` are its classes.
        ground_truth: a file with the classes; None finds them from the layout.
        limit: keep at most so many images, class-balanced, chosen by ``seed``.
        seed: of the choice.

    Raises:
        InputError: no image, an unknown layout, unknown class names, images without a class, an unusable
            ground-truth file, or a limit below 1.
    """
    classes = ClassNames(labels, wnids)
    records: list[Record] = []
    unreadable: list[Record] = []
    samples: dict[tuple[Path, str], str] = {}  # WebDataset: key to the text of its .cls
    for record in iter_records(paths, also=(".cls",)):
        if record.defect is not None:
            unreadable.append(record)
        elif record.member.lower().endswith(".cls"):
            samples[record.source, record.member[:-4]] = record.load().decode("utf-8", "replace").strip()
        else:
            records.append(record)
    if not records:
        raise InputError(f"no image can be read: {unreadable[0].name}: {unreadable[0].defect}")
    if ground_truth is not None:
        found = records, read_ground_truth(Path(ground_truth), records, classes), "ground-truth file"
    elif samples:
        found = _webdataset(records, samples, classes)
    else:
        found = records, *(_class_folders(records, classes) or _validation_set(records, classes))
    dataset = LabelledDataset(tuple(found[0]), found[1], found[2], tuple(unreadable))
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


def _webdataset(
    records: list[Record], samples: dict[tuple[Path, str], str], classes: ClassNames
) -> tuple[list[Record], NDArray[np.int64], str]:
    kept: list[Record] = []
    targets: list[int] = []
    bare: list[str] = []
    for record in records:
        key = record.source, str(PurePosixPath(record.member).with_suffix(""))
        folder, _, file = record.member.rpartition("/")
        sample = record.source, f"{folder}/{file.split('.')[0]}" if folder else file.split(".")[0]
        text = samples.get(key)
        if text is None and sample not in samples:
            bare.append(record.name)
        if text is None:
            continue
        target = classes.find(text, "index", "wnid", "name")
        if target is None:
            raise InputError(f"{record.name}: unknown class {text!r} in its .cls, expected {classes.examples()}")
        kept.append(record)
        targets.append(target)
    if bare or not kept:
        raise InputError(
            f"{len(bare)} of {len(records)} images have no .cls beside them in the tar file ({first_five(bare)})"
        )
    return kept, np.array(targets, np.int64), "WebDataset"


def _class_folders(records: list[Record], classes: ClassNames) -> tuple[NDArray[np.int64], str] | None:
    """Classes by folder; None when these do not look like class folders at all."""
    folders = [_folders(record) for record in records]
    depth_end = min(_MAX_DEPTH, *(len(parts) for parts in folders))
    best: tuple[int, set[str], set[str]] = (0, set(), set())
    for depth in [*range(1, depth_end), 0]:  # the folder that was named itself comes last
        names = {parts[depth] for parts in folders}
        for scheme in SCHEMES:
            index = {name: classes.find(name, scheme) for name in names}
            unknown = {name for name, found in index.items() if found is None}
            if not depth and scheme == "index" and len(names) == 1:
                continue  # a folder that happens to be called 0
            if not unknown:
                targets = np.array([index[parts[depth]] for parts in folders], np.int64)
                return targets, f"class folders by {scheme}"
            if len(names) - len(unknown) > best[0]:
                best = len(names) - len(unknown), unknown, names
    if best[0] == 0:
        return None
    raise InputError(
        f"{len(best[1])} of {len(best[2])} class folders are not classes of this model "
        f"({first_five(sorted(best[1]))}); expected names like {classes.examples()}"
    )


def _folders(record: Record) -> tuple[str, ...]:
    """The folders around an image: what was named on the command line (a tar file without suffix), then those below."""
    name = record.source.absolute().name
    suffix = next((suffix for suffix in TAR_SUFFIXES if name.lower().endswith(suffix)), "")
    return (name[: len(name) - len(suffix)], *record.member.split("/")[:-1])


def _validation_set(records: list[Record], classes: ClassNames) -> tuple[NDArray[np.int64], str]:
    numbers = [validation_number(PurePosixPath(record.member).stem) for record in records]
    found = [number for number in numbers if number is not None]
    if len(found) < len(records):
        folders = sorted({parts[-1] for parts in map(_folders, records)})
        raise InputError(
            f"no classes found for {len(records)} images such as {records[0].name}: expected a folder or tar file "
            f"with one subfolder for each class, called like {classes.examples()} (found: {first_five(folders)}), a "
            "WebDataset tar file with .cls entries, the ILSVRC2012 validation set, or a ground-truth file"
        )
    targets = validation_targets()[np.array(found) - 1]
    shipped = imagenet1k().wnids
    if classes.wnids == shipped:
        return targets, "ILSVRC2012 validation set"
    index = np.array([-1 if (i := classes.find(wnid, "wnid")) is None else i for wnid in shipped])
    if classes.wnids is None or (index[targets] < 0).any():
        raise InputError(
            f"these are images of the ILSVRC2012 validation set, but the model's {len(classes)} classes are not "
            "ImageNet-1k; give a ground-truth file in the order of the model"
        )
    return index[targets], "ILSVRC2012 validation set"
