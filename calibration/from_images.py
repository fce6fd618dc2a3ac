"""Images in files to a calibration cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.cache import CalibrationCache
from calibration.choices import METHODS
from calibration.provenance import Provenance
from calibration.request import Request
from calibration.statistics import Statistics
from calibration.streaming import collect
from calibration.tensors import activation_steps, activation_tensors
from calibration.thresholds import check_method
from infer.bundle import now
from infer.bundle.preprocessing import Preprocessing
from infer.datasets import balanced_sample
from infer.errors import InputError
from infer.pipeline.host import load_batches
from infer.sources import Record, iter_records

_BATCH = 32


@dataclass(frozen=True)
class Calibrated:
    """A cache and how it came about.

    Attributes:
        cache: the scales with their provenance.
        statistics: of the pass, for other methods.
        failures: images that could not be read, one line each.
    """

    cache: CalibrationCache
    statistics: Statistics
    failures: list[str]


def graph_sha256(graph: onnx.ModelProto) -> str:
    """SHA-256 of a graph's bytes: that of ``model.onnx`` in an fp32 bundle."""
    return hashlib.sha256(graph.SerializeToString()).hexdigest()


def calibrate(
    graph: onnx.ModelProto,
    spec: Preprocessing,
    request: Request,
    *,
    tool: str,
    network_revision: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibrated:
    """Run images through a float graph, once, and choose the scales of every tensor that int8 needs.

    Args:
        graph: float32 graph with uint8 input ``[N, crop, crop, 3]``.
        spec: the model's pre-processing.
        request: images and method.
        tool: name and version for the provenance.
        network_revision: of the graph, for the provenance; None where it is not one of ours.
        progress: called with the number of images done, after each.

    Raises:
        InputError: no images, none that can be read, or an unknown method.
        GraphError: see :func:`calibration.streaming.collect`.
    """
    check_method(request.method, request.parameters)
    records = choose_images(request)
    failures: list[str] = []

    def batches() -> Iterator[NDArray[np.uint8]]:
        for batch in load_batches(records, spec, _BATCH):
            failures.extend(str(failure.error) for failure in batch.failures)
            yield batch.images
        if len(failures) == len(records):
            raise InputError(f"not one of {len(records)} calibration images could be read; the first: {failures[0]}")

    steps = activation_steps(graph)
    statistics = collect(graph, batches(), activation_tensors(graph), progress=progress)
    others: dict[str, dict[str, float]] = {
        name: statistics.amax(name, steps) for name in METHODS if name != request.method
    }
    provenance = Provenance(
        graph_sha256=graph_sha256(graph),
        data_sha256=statistics.data_hash,
        images=statistics.images,
        method=request.method,
        parameters=dict(request.parameters),
        created=now(),
        tool=tool,
        preprocessing=spec.to_json(),
        amax=others,
        network_revision=network_revision,
    )
    scales = statistics.scales(request.method, steps, **request.parameters)
    return Calibrated(CalibrationCache(scales, provenance=provenance), statistics, failures)


def choose_images(request: Request) -> Sequence[Record]:
    """The images of ``request``: a seeded sample with the folders (classes) as even as they allow.

    Raises:
        InputError: there is none.
    """
    records = list(iter_records(request.data))
    members = [record.member for record in records]
    folders = [(record.source, str(PurePosixPath(record.member).parent)) for record in records]
    return [records[i] for i in balanced_sample(members, folders, request.limit, request.seed)]
