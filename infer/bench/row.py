"""One point of a benchmark as it is written down: JSON, CSV and the table have these fields."""

from __future__ import annotations

import msgspec
import numpy as np

from infer.bench.measure import Point, variation, warnings_of
from infer.bench.roofline import Ceiling


class PointRow(msgspec.Struct, kw_only=True, frozen=True):
    """Figures of a batch size with a number of batches in flight; None where not measured.

    Attributes:
        batch, in_flight: see :class:`infer.bench.measure.Point`.
        throughput, throughput_runs: images per second: the median, and every run.
        batches, seconds: that were measured.
        latency_mean_ms, latency_p50_ms, latency_p90_ms, latency_p95_ms, latency_p99_ms, latency_min_ms,
            latency_max_ms, latency_cv: from submit to result; the last is the coefficient of variation, percent.
        submit_ms, cpu_ms_per_image: the host's part.
        h2d_ms, compute_ms, d2h_ms, enqueue_ms, compute_cv: stages on a device of its own.
        ceiling, ceiling_bound, share_of_ceiling: of the roofline, where the GPU is known.
        warnings: what makes the figures doubtful.
    """

    batch: int
    in_flight: int
    throughput: float
    throughput_runs: list[float]
    batches: int
    seconds: float
    latency_mean_ms: float
    latency_p50_ms: float
    latency_p90_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    latency_min_ms: float
    latency_max_ms: float
    latency_cv: float
    submit_ms: float
    cpu_ms_per_image: float
    h2d_ms: float | None
    compute_ms: float | None
    d2h_ms: float | None
    enqueue_ms: float | None
    compute_cv: float | None
    ceiling: float | None
    ceiling_bound: str | None
    share_of_ceiling: float | None
    warnings: list[str]


def row_of(point: Point, top: Ceiling | None) -> PointRow:
    """The figures of ``point``; ``top`` is what the hardware allows at its batch size."""
    latencies, stages = point.latencies, point.stages
    p50, p90, p95, p99 = (float(np.percentile(latencies, share)) for share in (50, 90, 95, 99))
    return PointRow(
        batch=point.batch,
        in_flight=point.in_flight,
        throughput=point.throughput,
        throughput_runs=[run.throughput for run in point.runs],
        batches=len(latencies),
        seconds=sum(run.seconds for run in point.runs),
        latency_mean_ms=float(latencies.mean()),
        latency_p50_ms=p50,
        latency_p90_ms=p90,
        latency_p95_ms=p95,
        latency_p99_ms=p99,
        latency_min_ms=float(latencies.min()),
        latency_max_ms=float(latencies.max()),
        latency_cv=variation(latencies),
        submit_ms=point.submit,
        cpu_ms_per_image=point.cpu_per_image,
        h2d_ms=None if stages is None else stages.h2d,
        compute_ms=None if stages is None else stages.compute,
        d2h_ms=None if stages is None else stages.d2h,
        enqueue_ms=None if stages is None else stages.enqueue,
        compute_cv=None if stages is None else stages.compute_cv,
        ceiling=None if top is None else top.rate,
        ceiling_bound=None if top is None else top.bound,
        share_of_ceiling=point.throughput / top.rate if top else None,
        warnings=warnings_of(point),
    )
