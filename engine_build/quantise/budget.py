"""The images that an accuracy budget is measured on, and the loss of a graph on them.

A trial graph is run as it would be shipped: its int8 layers in int8, the rest in fp16 where the engine has fp16. It is
compared with the float32 graph in ONNX Runtime, an engine independent of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.from_images import choose_images
from calibration.request import Request
from engine_build.quantise.int8 import with_images
from engine_build.source import Source
from infer.backends import openvino as openvino_backend
from infer.backends.base import Backend, Outputs
from infer.backends.onnxruntime import OnnxRuntimeBackend
from infer.bundle import GRAPH
from infer.bundle.preprocessing import Preprocessing
from infer.datasets import balanced_sample, open_dataset
from infer.errors import InputError
from infer.pipeline.host import load_batches
from infer.sources import Record
from infer.verify.accuracy import Tally

# Ranking L layers with N images costs about L N / 2 runs of the network. 16 images gave the order that 256 gave on the
# shipped model (docs/auto.md), so deep networks get few.
_RANKING_RUNS = 2048
_RANKING_IMAGES = (16, 64)
_BATCH = 32


@dataclass(frozen=True)
class Budget:
    """What a loss is measured on.

    Attributes:
        images: uint8 ``[N, crop, crop, 3]``.
        targets: true classes int64 ``[N]``, -1 where unknown.
        source: where the images come from, for people.
        notes: what a user should be told.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    source: str
    notes: list[str] = field(default_factory=list)

    @property
    def measure(self) -> str:
        """``top-1`` where every image has a class, else ``agreement``."""
        return "top-1" if (self.targets >= 0).all() else "agreement"


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        kept: layers and additions out of int8.
        drop: loss against FP32, points; negative where it gains.
        agreement: percent of images with the same top-1 as FP32.
        top1: percent, None without labels.
        sqnr_db: of the logits against FP32; None when there is no error.
        fits: within the budget.
    """

    kept: int
    drop: float
    agreement: float
    top1: float | None
    sqnr_db: float | None
    fits: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields, top-1 only where it is known."""
        fields = {name: getattr(self, name) for name in ("kept", "drop", "agreement", "sqnr_db", "fits")}
        return fields if self.top1 is None else {**fields, "top1": self.top1}


def split_images(
    source: Source,
    request: Request,
    data: Sequence[str],
    limit: int,
    labels: tuple[Sequence[str], Sequence[str] | None],
    layers: int,
    say: Callable[[str], None],
) -> tuple[NDArray[np.uint8], Budget]:
    """Images that rank layers, uint8 ``[R, crop, crop, 3]``, and others that measure.

    Args:
        source: the network.
        request: its calibration; ``data`` empty takes the images shipped with the model.
        data: images to measure on; empty takes calibration images that do not rank.
        limit: at most so many of ``data``.
        labels: class names and WordNet ids.
        layers: how many are to be ranked.
        say: told why ``data`` has no labels.

    Raises:
        InputError: no images, or none that can be read.
    """
    records = list(choose_images(with_images(source, request)))
    if len(records) < 2:
        raise InputError(f"auto needs at least 2 calibration images, found {len(records)}; 500 are enough (--data)")
    folders = [(record.source, str(PurePosixPath(record.member).parent)) for record in records]
    members = [record.member for record in records]
    least, most = _RANKING_IMAGES
    count = min(max(least, min(most, _RANKING_RUNS // max(layers, 1))), len(records) // 2)
    ranking = set(balanced_sample(members, folders, count, request.seed).tolist())
    images, _ = _load([record for at, record in enumerate(records) if at in ranking], source.spec)
    if data:
        return images, _open_budget(source, data, limit, labels, request.seed, say)
    others, failed = _load([record for at, record in enumerate(records) if at not in ranking], source.spec)
    return images, Budget(others, np.full(len(others), -1, np.int64), "the calibration set", _unread(failed))


def _open_budget(
    source: Source,
    data: Sequence[str],
    limit: int,
    labels: tuple[Sequence[str], Sequence[str] | None],
    seed: int,
    say: Callable[[str], None],
) -> Budget:
    name = ", ".join(Path(path).name for path in data)
    try:
        dataset = open_dataset(data, *labels, limit=limit, seed=seed)
        records, targets = list(dataset.records), dataset.targets
        notes = []
    except InputError as error:
        records = list(choose_images(Request(tuple(data), limit=limit, seed=seed)))
        targets = np.full(len(records), -1, np.int64)
        notes = [f"auto: {name} has no usable labels, agreement with FP32 is measured instead ({error})"]
        say(notes[0])
    images, failed = _load(records, source.spec)
    good = np.setdiff1d(np.arange(len(records)), [at for at, _ in failed])
    return Budget(images, targets[good], name, notes + _unread(failed))


def _load(records: list[Record], spec: Preprocessing) -> tuple[NDArray[np.uint8], list[tuple[int, str]]]:
    """The images of ``records`` in order, and the places and defects of those that cannot be read."""
    parts, failed = [], []
    for batch in load_batches(records, spec, _BATCH):
        parts.append(batch.images)
        failed += [(failure.index, str(failure.error)) for failure in batch.failures]
    if len(failed) == len(records):
        raise InputError(f"not one of {len(records)} images could be read; the first: {failed[0][1]}")
    return np.concatenate(parts), failed


def _unread(failed: list[tuple[int, str]]) -> list[str]:
    return [f"auto: {len(failed)} images could not be read; the first: {failed[0][1]}"] if failed else []


class LossMeter:
    """Measures graphs on a budget's images. A context manager.

    Attributes:
        engine: what runs the graphs, for people.
    """

    def __init__(self, graph: onnx.ModelProto, budget: Budget) -> None:
        """Compute what FP32 says.

        Args:
            graph: float32 graph with the bundle's inputs and outputs.
            budget: see there.
        """
        self._budget = budget
        self._folder = tempfile.TemporaryDirectory(prefix="auto-")
        self.engine = _engine_name()
        try:
            self._expected = self._outputs(graph, None)
        except BaseException:
            self._folder.cleanup()
            raise

    def measure(self, graph: onnx.ModelProto, precision: str, kept: int, float32_nodes: Collection[str] = ()) -> Trial:
        """What ``graph`` loses.

        Args:
            graph: typed as it would be shipped.
            precision: ``auto`` for a graph with Q/DQ, else that of its floats.
            kept: layers and additions out of int8.
            float32_nodes: nodes whose floats must be float32.
        """
        tally = Tally()
        tally.add(self._outputs(graph, precision, float32_nodes), self._budget.targets, self._expected)
        figures = tally.figures()
        labelled = self._budget.measure == "top-1"
        lost = tally.reference_top1 - tally.top1 if labelled else tally.images - tally.agreeing
        # A graph that gives NaN or infinity is of no use, whatever it says of the other images.
        drop = 100.0 if tally.not_finite else 100 * lost / tally.images
        assert figures.agreement is not None
        sqnr = figures.sqnr_db if isinstance(figures.sqnr_db, float) else None
        return Trial(kept, drop, figures.agreement, figures.top1, sqnr)

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.cleanup()

    def __enter__(self) -> LossMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _outputs(self, graph: onnx.ModelProto, precision: str | None, float32_nodes: Collection[str] = ()) -> Outputs:
        path = Path(self._folder.name) / GRAPH
        onnx.save(graph, path)
        backend = OnnxRuntimeBackend(path) if precision is None else _open(path, precision, float32_nodes)
        try:
            step = backend.max_batch
            images = self._budget.images
            parts = [backend.submit(images[at : at + step]) for at in range(0, len(images), step)]
            results = [part.result() for part in parts]
        finally:
            backend.close()
        return Outputs(*(np.concatenate(arrays) for arrays in zip(*results, strict=True)))


def _open(path: Path, precision: str, float32_nodes: Collection[str]) -> Backend:
    if openvino_backend.why_unavailable() is not None:
        return OnnxRuntimeBackend(path)
    from engine_build.targets.openvino import inference_precision

    hint, _ = inference_precision(openvino_backend.make_core(), precision, float32_nodes)
    return openvino_backend.OpenVINOBackend(path, {"INFERENCE_PRECISION_HINT": hint})


def _engine_name() -> str:
    from importlib.metadata import version

    name = "onnxruntime" if openvino_backend.why_unavailable() is not None else "openvino"
    return f"{name} {version(name)}"
