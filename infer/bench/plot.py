"""The plot of a benchmark: throughput and p99 latency by batch size, every repeat, the ceiling, what is unstable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer.errors import InputError
from infer.files import replacing

if TYPE_CHECKING:
    from infer.bench.measure import Point
    from infer.bench.report import Report

_UNSTABLE = "#c02626"


def write_plot(report: Report, path: Path) -> None:
    """Draw ``report``; the suffix of ``path`` gives the format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        InputError: matplotlib is not installed, or does not know the suffix.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("a plot needs matplotlib; pip install matplotlib") from error
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    kind = path.suffix[1:].lower()
    if kind not in canvas.get_supported_filetypes():
        raise InputError(f"plot: expected a file name ending in .png, .svg or .pdf, found {path.name}")
    left, right = figure.subplots(1, 2)
    for depth in sorted({point.in_flight for point in report.points}):
        points = [point for point in report.points if point.in_flight == depth]
        _curve(left, points, depth, [p.throughput for p in points], [[r.throughput for r in p.runs] for p in points])
        tails = [[1e3 * float(np.percentile(run.latencies, 99)) for run in point.runs] for point in points]
        _curve(right, points, depth, [float(np.percentile(point.latencies, 99)) for point in points], tails)
    _mark_unstable(report, left, right)
    _ceiling(report, left)
    batches = sorted({point.batch for point in report.points})
    for axes, label in ((left, "images/s"), (right, "p99 latency, ms")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(size) for size in batches])
        axes.set_xlabel("batch")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    subject = report.subject
    untrained = "" if subject["trained"] else ", UNTRAINED"
    figure.suptitle(f"{subject['model']} {subject['precision']}{untrained} on {subject['device']}")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)


def _curve(axes: Any, points: list[Point], depth: int, values: list[float], repeats: list[list[float]]) -> None:
    """The figure of each batch size, joined, and that of every repeat as a dash."""
    (line,) = axes.plot([point.batch for point in points], values, "o-", label=f"{depth} in flight")
    dots = [
        (point.batch, value) for point, runs in zip(points, repeats, strict=True) if len(runs) > 1 for value in runs
    ]
    if dots:
        axes.plot(
            *zip(*dots, strict=True),
            "_",
            color=line.get_color(),
            markersize=11,
            alpha=0.7,
            label=f"{depth} in flight, each repeat",
        )


def _mark_unstable(report: Report, left: Any, right: Any) -> None:
    """A ring around what has a warning of that kind."""
    pairs = zip(report.points, report.rows(), strict=True)
    doubtful = [point for point, row in pairs if any(warning.startswith("unstable") for warning in row.warnings)]
    if not doubtful:
        return
    sizes = [point.batch for point in doubtful]
    style = {"linestyle": "none", "marker": "o", "markersize": 14, "fillstyle": "none", "color": _UNSTABLE}
    left.plot(sizes, [point.throughput for point in doubtful], label="unstable", **style)
    right.plot(sizes, [np.percentile(point.latencies, 99) for point in doubtful], label="unstable", **style)


def _ceiling(report: Report, axes: Any) -> None:
    """What the roofline allows at each batch size, or that nothing is known of it."""
    tops = [(row.batch, row.ceiling) for row in report.rows() if row.ceiling is not None]
    if tops and report.gpu is not None:
        pairs = sorted(set(tops))
        axes.plot(*zip(*pairs, strict=True), "k--", label=f"ceiling of {report.gpu.key}")
    else:
        axes.plot([], [], " ", label="no ceiling: the device is not in the roofline's table")
