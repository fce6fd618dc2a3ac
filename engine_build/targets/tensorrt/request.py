"""What a TensorRT build is asked for and what it gives back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine_build.targets.audit import PlanAudit
from infer.backends.cuda.gpus import Gpu
from infer.bundle import BatchProfile
from infer.errors import InputError

_CAPABILITY = re.compile(r"(?:sm_?)?(\d+?)\.?(\d)", re.IGNORECASE)


@dataclass(frozen=True)
class PlanRequest:
    """One plan to build.

    Attributes:
        graph: strongly typed ONNX file: any inputs, of which only the first dimension may be dynamic, the batch.
        plan: where the plan goes. Written under a temporary name, then renamed; on failure nothing is left.
        profile: batch sizes.
        workspace: bytes of device memory a single layer may use while it is tried, None for all there is.
        timing_cache: file of kernel timings kept between builds, read if it fits and written afterwards. It makes
            the next build on the same GPU faster. TensorRT-RTX times nothing when it builds and ignores it.
        compute_capabilities: GPUs of a TensorRT-RTX plan: ``("8.6", "8.9")``, ``("current",)``. None takes every one
            that multiplies in the data types of the graph.
        version_compatible: the plan also loads in later TensorRT versions of the same major version.
        hardware_compatible: the plan also runs on other GPUs from compute capability 8.0. Not with TensorRT-RTX,
            whose plans are portable by their list of compute capabilities.
        tf32: fp32 layers may multiply in TF32 (10 bits of mantissa) on GPUs that have it, TensorRT's default.
        optimization_level: 0 to 5, more builds longer for a faster plan; None for the default, 3.
        max_aux_streams: streams beside the caller's that the plan may use; None lets TensorRT choose. 0 saves
            activation memory.
        avg_timing_iterations: runs averaged to time one kernel; None for the default, 1.

    Raises:
        InputError: a value out of range.
    """

    graph: Path
    plan: Path
    profile: BatchProfile
    workspace: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    tf32: bool = True
    optimization_level: int | None = None
    max_aux_streams: int | None = None
    avg_timing_iterations: int | None = None

    def __post_init__(self) -> None:
        batch = self.profile
        if not 1 <= batch.min <= batch.opt <= batch.max:
            raise InputError(f"batch profile: expected 1 <= min <= opt <= max, found {batch}; for example 1/8/32")
        # The builder clamps or ignores values out of range without a word.
        for label, value, low, high in (
            ("workspace", self.workspace, 1, 2**63 - 1),
            ("optimization level", self.optimization_level, 0, 5),
            ("auxiliary streams", self.max_aux_streams, 0, None),
            ("averaged timing iterations", self.avg_timing_iterations, 1, None),
        ):
            if value is not None and (value < low or (high is not None and value > high)):
                allowed = f"{low} to {high}" if high is not None else f"at least {low}"
                raise InputError(f"{label}: expected {allowed}, found {value}")


@dataclass(frozen=True)
class BuiltPlan:
    """A finished plan.

    Attributes:
        file: the plan, as TensorRT serialised it.
        sha256: of the file, hexadecimal. Two builds of one graph differ in some bytes.
        version: of TensorRT, ``1.7.1.116``.
        gpu: the GPU that the plan was built on and for; None with TensorRT-RTX.
        compute_capabilities: ``("8.6", "8.9")``: the one of ``gpu``, or those of a TensorRT-RTX plan.
        seconds: wall time of parsing, building and writing.
        notes: what the user should know: warnings of the builder, options without effect.
    """

    target: str
    file: Path
    size_bytes: int
    sha256: str
    version: str
    gpu: Gpu | None
    compute_capabilities: tuple[str, ...]
    seconds: float
    audit: PlanAudit
    notes: tuple[str, ...]


def parse_capability(text: str) -> str:
    """``8.6``, ``86``, ``sm86`` or ``SM_86`` as ``8.6``; ``current``, the GPU of this machine, stays.

    Raises:
        InputError: ``text`` is none of these.
    """
    if text.lower() == "current":
        return "current"
    match = _CAPABILITY.fullmatch(text.strip())
    if match is None:
        raise InputError(f"compute capability: expected a form like 8.6 or sm86, or current, found {text!r}")
    return f"{match.group(1)}.{match.group(2)}"
