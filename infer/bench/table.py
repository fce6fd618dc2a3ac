"""What a benchmark says to people: the points, what makes them doubtful, how they were measured, the ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infer.bench.measure import Doubt, Point, doubts_of
from infer.bench.report import Report
from infer.bench.roofline import Ceiling
from infer.tables import Column, print_facts, print_table, say

# Key of the row, and the column. What goes first in a narrow terminal is what other columns say nearly as well.
_COLUMNS = (
    ("batch", Column("batch")),
    ("in_flight", Column("in flight")),
    ("throughput", Column("images/s")),
    ("latency_mean_ms", Column("mean", drop=6)),
    ("latency_p50_ms", Column("p50", drop=9)),
    ("latency_p90_ms", Column("p90", drop=5)),
    ("latency_p95_ms", Column("p95", drop=2)),
    ("latency_p99_ms", Column("p99")),
    ("latency_cv", Column("CV %", drop=7)),
    ("h2d_ms", Column("H2D", drop=4)),
    ("compute_ms", Column("compute", drop=8)),
    ("d2h_ms", Column("D2H", drop=3)),
    ("enqueue_ms", Column("enqueue", drop=1)),
    ("share_of_ceiling", Column("of ceiling", drop=10)),
)


def print_report(report: Report) -> None:
    """The table of the points first; each kind of warning once, after it."""
    subject = report.subject
    untrained = "" if subject["trained"] else ", UNTRAINED"
    rows = report.rows()
    chosen = [(key, column) for key, column in _COLUMNS if any(getattr(row, key) is not None for row in rows)]
    print_table(
        f"{subject['model']} {subject['precision']}{untrained} on {subject['target']}, times in ms",
        [column for _, column in chosen],
        [[_cell(key, getattr(row, key)) for key, _ in chosen] for row in rows],
    )
    if warnings := warning_lines(report.points):
        print()
        for line in warnings:
            say(line)
    print()
    print_facts(None, [("device", subject["device"]), *report.flags.items()])
    if report.ceilings:
        print()
        print_ceilings(report.ceilings)
    if report.notes:
        print()
    for note in report.notes:
        say(f"note: {note}")


def warning_lines(points: Sequence[Point]) -> list[str]:
    """Each kind of warning in one line: its worst case, and which points have it."""
    found: dict[str, list[tuple[Doubt, Point]]] = {}
    for point in points:
        for doubt in doubts_of(point):
            found.setdefault(doubt.form, []).append((doubt, point))
    lines = []
    for cases in found.values():
        doubt, point = max(cases, key=lambda case: case[0].size)
        where = f"batch {point.batch}, {point.in_flight} in flight"
        if len(cases) > 1:
            every = f"all {len(points)}" if len(cases) == len(points) else f"{len(cases)} of {len(points)}"
            where = f"{every} points, most at {where}"
        lines.append(f"warning: {doubt} ({where})")
    return lines


def print_ceilings(ceilings: Sequence[Ceiling]) -> None:
    """What other GPUs allow at most, and what each compute ceiling stands on."""
    rows = []
    for top in ceilings:
        rates = [f"{rate:,.0f}" if rate else "unknown" for rate in (top.compute, top.memory, top.transfer)]
        rows.append([top.gpu.key, str(top.batch), *rates, top.bound, "" if top.runs else "does not run"])
    columns = [
        Column("GPU", left=True),
        Column("batch", drop=2),
        Column("compute"),
        Column("memory (estimate)", drop=4),
        Column("transfer", drop=3),
        Column("bound by", left=True),
        Column("plan", left=True, drop=1),
    ]
    if all(top.runs for top in ceilings):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    print_table("Roofline: images/s at most", columns, rows)
    print()
    print_facts("What compute stands on: dense peaks", [(top.gpu.key, top.basis) for top in ceilings])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in ("batch", "in_flight"):
        return str(value)
    if key == "throughput":
        return f"{value:,.1f}"
    if key == "share_of_ceiling":
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if key == "latency_cv" or value >= 100 else f"{value:.3g}"
