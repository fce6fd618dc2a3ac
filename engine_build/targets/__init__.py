"""The targets a bundle can be built for, one file a backend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infer.bundle import GRAPH, BatchProfile, Plan, file_entry
from infer.errors import InputError

_MOST = 2**31 - 1  # of a dimension
_MOST_BYTES = 2**63 - 1
BUILDABLE = ("tensorrt", "tensorrt_rtx", "openvino")


@dataclass(frozen=True)
class BuildSettings:
    """Options of the targets; None means the target's own default.

    Attributes:
        batch: smallest, tuned and largest batch of a TensorRT plan.
        workspace: bytes of scratch memory TensorRT may use.
        timing_cache: file kept between TensorRT builds.
        compute_capabilities: GPUs a TensorRT-RTX plan runs on.
        version_compatible, hardware_compatible: TensorRT 10 and 11.
        optimization_level, tf32, max_aux_streams, avg_timing_iterations: see
            :class:`engine_build.targets.tensorrt.request.PlanRequest`.
        progress: show progress bars.
    """

    batch: BatchProfile = field(default_factory=BatchProfile)
    workspace: int | None = None
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    optimization_level: int | None = None
    tf32: bool = True
    max_aux_streams: int | None = None
    avg_timing_iterations: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        batch = self.batch
        if not 1 <= batch.min <= batch.opt <= batch.max:
            raise InputError(f"batch: expected 1 <= min <= opt <= max, found {batch.min}, {batch.opt}, {batch.max}")
        if batch.max > _MOST:
            raise InputError(f"batch: expected at most {_MOST} images, found {batch.max}")
        if self.workspace is not None and self.workspace < 1:
            raise InputError(f"workspace: expected at least 1 byte, found {self.workspace}")
        if self.workspace is not None and self.workspace > _MOST_BYTES:
            raise InputError(f"workspace: expected at most {_MOST_BYTES} bytes, found {self.workspace}")


def why_unbuildable(target: str) -> str | None:
    """None when ``target`` can be built here, else one sentence that says what is missing."""
    if target == "openvino":
        from infer.backends import openvino

        return openvino.why_unavailable()
    from engine_build.targets import tensorrt

    return tensorrt.why_unavailable(target)


def build_target(
    target: str,
    folder: Path,
    precision: str,
    settings: BuildSettings,
    quantised_nodes: Sequence[str] = (),
    float32_nodes: Collection[str] = (),
) -> Plan:
    """Build ``folder/model.onnx`` for ``target``; the files go into ``folder``.

    Args:
        target: one of :data:`BUILDABLE`.
        folder: the bundle under construction.
        precision: of the graph.
        settings: options.
        quantised_nodes: Conv and Gemm nodes that must run in fp8 where that is the ``precision``, else in int8.
        float32_nodes: nodes whose floats must be float32.

    Raises:
        BuildError: the target refuses the graph, or silently runs one of the nodes in another type.
    """
    if target == "openvino":
        from engine_build.targets.openvino import build_openvino

        return build_openvino(folder / GRAPH, folder, precision, quantised_nodes, float32_nodes)
    return _build_tensorrt(target, folder, precision, settings, quantised_nodes, float32_nodes)


def _build_tensorrt(
    target: str,
    folder: Path,
    precision: str,
    settings: BuildSettings,
    quantised_nodes: Sequence[str],
    float32_nodes: Collection[str],
) -> Plan:
    from engine_build.targets.audit import PlanAudit, require_float32, require_precision
    from engine_build.targets.tensorrt import build_plan
    from engine_build.targets.tensorrt.request import PlanRequest

    name = f"{target}.plan"
    request = PlanRequest(
        graph=folder / GRAPH,
        plan=folder / name,
        profile=settings.batch,
        workspace=settings.workspace,
        timing_cache=settings.timing_cache if target == "tensorrt" else None,
        compute_capabilities=settings.compute_capabilities if target == "tensorrt_rtx" else None,
        version_compatible=settings.version_compatible,
        hardware_compatible=settings.hardware_compatible and target == "tensorrt",
        optimization_level=settings.optimization_level,
        tf32=settings.tf32,
        max_aux_streams=settings.max_aux_streams,
        avg_timing_iterations=settings.avg_timing_iterations,
    )

    def gate(audit: PlanAudit) -> None:
        if quantised_nodes:
            require_precision(audit, quantised_nodes, "fp8" if precision == "fp8" else "int8")
        require_float32(audit, float32_nodes)

    built = build_plan(target, request, settings.progress, gate)
    return Plan(
        target=target,
        files=[file_entry(folder, name)],
        version=built.version,
        gpu=None if built.gpu is None else built.gpu.name,
        compute_capabilities=list(built.compute_capabilities),
        version_compatible=settings.version_compatible,
        hardware_compatible=request.hardware_compatible,
        audit=built.audit.record(),
        seconds=built.seconds,
        notes=list(built.notes),
    )
