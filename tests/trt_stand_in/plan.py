"""The plan files of the stand-in: a few lines of JSON that name what to compute."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from trt_stand_in.api import VERSIONS


@dataclasses.dataclass(frozen=True)
class StandInPlan:
    """Contents of a plan.

    Attributes:
        module: which bindings made it.
        version: of those.
        image: height, width, channels.
        num_classes: columns of the logits.
        top_k: columns of scores and classes.
        max_batch: largest batch of the profile.
        min_batch: smallest.
        graph: path of an ONNX graph to compute; None for the emulator's built-in kernel, which hashes rows.
        weights_bytes: device memory of the engine.
        context_bytes: device memory of each execution context.
        scratch_bytes: scratch memory for any batch.
        scratch_per_image: more of it for each image.
        capturable: whether the network can be captured in a CUDA graph.
        host_code: whether it holds a runtime of its own, as version-compatible plans do.
        resizable: whether scratch memory shrinks with the batch: built with RUNTIME_ACTIVATION_RESIZE_10_10.
        aux_streams: streams of its own that a network also runs on: the second half of the rows.
        tensors: names and types of inputs (first) and outputs.
    """

    module: str
    version: str
    image: tuple[int, int, int] = (8, 8, 3)
    num_classes: int = 10
    top_k: int = 3
    max_batch: int = 8
    min_batch: int = 1
    graph: str | None = None
    weights_bytes: int = 4096
    context_bytes: int = 512
    scratch_bytes: int = 1000
    scratch_per_image: int = 100
    capturable: bool = True
    host_code: bool = False
    resizable: bool = True
    aux_streams: int = 0
    tensors: tuple[tuple[str, str], ...] = (
        ("images", "UINT8"),
        ("logits", "FLOAT"),
        ("scores", "FLOAT"),
        ("classes", "INT32"),
    )


def write_plan(path: Path, key: str, **options: object) -> StandInPlan:
    """Write a plan of the version ``key`` (see :data:`~trt_stand_in.api.VERSIONS`)."""
    module, version = VERSIONS[key]
    plan = StandInPlan(module, version, **options)  # type: ignore[arg-type]
    path.write_text(json.dumps(dataclasses.asdict(plan)))
    return plan


def read_plan(data: bytes) -> StandInPlan:
    """Raises ValueError for anything else than a plan."""
    fields = json.loads(data)
    fields["image"] = tuple(fields["image"])
    fields["tensors"] = tuple((name, dtype) for name, dtype in fields["tensors"])
    return StandInPlan(**fields)
