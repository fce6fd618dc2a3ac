"""What a build leaves in the manifest: what each plan really runs, and how its graph was quantised."""

from __future__ import annotations

from typing import Any

import msgspec


class AuditSummary(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The figures of a plan's layers; None where the target does not tell.

    Attributes:
        layers, kernels: how many; kernels work on data.
        layer_types, layer_precisions: kernels by the target's word for them, and by precision.
        reformats: kernels that only copy, transpose or convert.
        widening: kernels that multiply int8 or fp8 and write floating point.
        mac_nodes, mac_precisions: convolutions and matrix products of the graph, and the precision each runs in.
        mac_primitives: OpenVINO's names of the kernels that run them.
        engine_bytes, weight_bytes, activation_bytes, scratch_bytes: sizes in bytes.
        dram_bytes_per_image: estimated traffic at ``batch``.
        batch: the one that the plan is tuned for.
        instruction_set: that CPU kernels are made of.
    """

    layers: int
    kernels: int
    layer_types: dict[str, int]
    layer_precisions: dict[str, int]
    reformats: int
    mac_nodes: int
    mac_precisions: dict[str, int]
    engine_bytes: int
    widening: int | None = None
    mac_primitives: dict[str, int] | None = None
    weight_bytes: int | None = None
    activation_bytes: int | None = None
    scratch_bytes: int | None = None
    dram_bytes_per_image: int | None = None
    batch: int | None = None
    instruction_set: str = ""


class Audit(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a plan really runs.

    Attributes:
        summary: see :class:`AuditSummary`.
        node_precisions: precision of each convolution and matrix product of the graph.
        layers: rows of ``engine_build.targets.audit``; OpenVINO's plans have none.
        format: of ``layers``.
    """

    summary: AuditSummary
    node_precisions: dict[str, str]
    layers: list[Any] | None = None
    format: int = msgspec.field(default_factory=lambda: 1)


class TensorScale(msgspec.Struct):
    """How an activation tensor becomes integers: ``x`` is ``scale`` times the integer plus ``offset``."""

    scale: float
    offset: float


class WeightRounding(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How weights were rounded.

    Attributes:
        rounding: ``second moments`` or ``nearest``.
        images, layers: that the moments are of.
        reason: why to nearest.
    """

    rounding: str
    images: int | None = None
    layers: int | None = None
    reason: str | None = None


class CalibrationRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How a graph was quantised.

    Attributes:
        method, parameters, images, data_sha256, graph_sha256, created: where the scales came from; None where the
            cache does not say.
        tensors: quantised activation tensors of an int8 graph.
        tensors_missing: activation tensors without a scale.
        int8_nodes, int8_additions: layers and residual additions in int8.
        fp8_nodes, fp8_additions: the same in fp8.
        shifted_tensors: how many use the whole int8 range.
        float_nodes: layers in floating point, and why.
        weights: see :class:`WeightRounding`.
        auto: how mixed precision was found; its layout is in docs/auto.md.
    """

    method: str | None = None
    parameters: dict[str, Any] | None = None
    images: int | None = None
    data_sha256: str | None = None
    graph_sha256: str | None = None
    created: str | None = None
    tensors: dict[str, TensorScale] | None = None
    tensors_missing: list[str] | None = None
    int8_nodes: list[str] | None = None
    int8_additions: list[str] | None = None
    fp8_nodes: list[str] | None = None
    fp8_additions: list[str] | None = None
    shifted_tensors: int | None = None
    float_nodes: dict[str, str] | None = None
    weights: WeightRounding | None = None
    auto: dict[str, Any] | None = None
