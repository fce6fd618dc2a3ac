"""What fast decoding costs: the same images decoded exactly and fast, through the same runner."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from infer.datasets import LabelledDataset
from infer.errors import InputError
from infer.runner import Runner


class FastDecodeEffect(NamedTuple):
    """Exact against fast decoding of the same images; percentages of ``images``.

    Attributes:
        images: that could be read both ways.
        changed: how many of them reach the network with other pixels; smaller ones are decoded exactly in both modes.
        mean_levels: mean difference of those pixels in grey levels.
        top1_exact, top1_fast: images whose best class is the true one.
        agreement: images with the same best class both ways.
    """

    images: int
    changed: int
    mean_levels: float
    top1_exact: float
    top1_fast: float
    agreement: float

    def __str__(self) -> str:
        if not self.changed:
            return f"fast decoding changes none of {self.images} images: none is large enough"
        return (
            f"fast decoding: top-1 {self.top1_fast:.2f} % against {self.top1_exact:.2f} % exact "
            f"({self.top1_fast - self.top1_exact:+.2f} points), agreement {self.agreement:.2f} %; "
            f"{self.changed} of {self.images} images differ, by {self.mean_levels:.2f} grey levels on average"
        )

    def to_json(self) -> dict[str, Any]:
        """The fields, for the manifest or ``--json``."""
        return self._asdict()


def measure_fast_decode(runner: Runner, dataset: LabelledDataset, *, workers: int | None = None) -> FastDecodeEffect:
    """Decode ``dataset`` exactly and fast and run both.

    Args:
        runner: an opened bundle.
        dataset: labelled images; a class of -1 counts as wrong in both modes.
        workers: decoding threads; None takes one for each usable CPU.

    Raises:
        InputError: not one image could be read.
    """
    spec, size = runner.preprocessing, runner.backend.max_batch
    images = changed = exact_hits = fast_hits = same = 0
    levels = 0.0
    exact_batches = dataset.batches(spec, size, workers=workers)
    fast_batches = dataset.batches(spec, size, workers=workers, fast=True)
    for (exact, _), (fast, _) in zip(exact_batches, fast_batches, strict=True):
        both = np.intersect1d(exact.indices, fast.indices)
        a = exact.images[np.isin(exact.indices, both)]
        b = fast.images[np.isin(fast.indices, both)]
        off = np.abs(a.astype(np.int16) - b)
        differ = off.any(axis=(1, 2, 3))
        changed += int(differ.sum())
        levels += float(off[differ].mean(axis=(1, 2, 3)).sum())
        best_a, best_b = (runner.infer(inputs).classes[:, 0] for inputs in (a, b))
        targets = dataset.targets[both]
        images += len(both)
        exact_hits += int((best_a == targets).sum())
        fast_hits += int((best_b == targets).sum())
        same += int((best_a == best_b).sum())
    if images == 0:
        raise InputError(f"not one of {len(dataset)} images could be read")
    return FastDecodeEffect(
        images, changed, levels / max(1, changed),
        100 * exact_hits / images, 100 * fast_hits / images, 100 * same / images,
    )  # fmt: skip
