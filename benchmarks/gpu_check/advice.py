"""What the figures say is worth changing. Every rule is written with its threshold, and gives the figures it saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from benchmarks.gpu_check.parts import Seen

Rows = list[dict[str, Any]]
MATTERS = 0.03
"""Differences below 3 % are not worth a change: repeats differ by as much."""


def advise(seen: Seen) -> list[str]:
    """Sentences, the most serious first."""
    found = [*_failures(seen), *_unstable(seen), *_precision(seen), *_slots(seen), *_graphs(seen), *_spinning(seen)]
    return [*found, *_ceiling(seen), *_trtexec(seen)]


def _failures(seen: Seen) -> Iterator[str]:
    for part in seen.parts.values():
        if part.outcome == "failed":
            yield f"{part.title} failed: {part.why}. Look at this before any figure."


def _unstable(seen: Seen) -> Iterator[str]:
    doubtful = [row for row in seen.rows("bench") if any(text.startswith("unstable") for text in row["warnings"])]
    if doubtful:
        yield (
            f"{len(doubtful)} of {len(seen.rows('bench'))} measured points are unstable: lock the clocks "
            "(nvidia-smi -lgc, below the maximum) and run this again before you believe the rest."
        )


def _best(rows: Iterable[dict[str, Any]], batch: int | None = None) -> dict[str, Any] | None:
    return max((row for row in rows if batch in (None, row["batch"])), key=lambda row: row["throughput"], default=None)


def _by(rows: Rows, *keys: str) -> Iterator[tuple[tuple[Any, ...], Rows]]:
    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[one] for one in keys)

    for value, group in groupby(sorted(rows, key=key), key):
        yield value, list(group)


def _precision(seen: Seen) -> Iterator[str]:
    """int8 must be at least 1.1 times fp16 to be worth its lost accuracy."""
    for (target,), rows in _by(seen.rows("bench"), "target"):
        for (model,), same in _by([{**row, "model": row["bundle"].rsplit("-", 1)[0]} for row in rows], "model"):
            half, whole = (_best(row for row in same if row["precision"] == one) for one in ("fp16", "int8"))
            if half is None or whole is None:
                continue
            ratio = whole["throughput"] / half["throughput"]
            rates = f"{whole['throughput']:.0f} and {half['throughput']:.0f} images/s"
            figures = f"{model} on {target}: int8 is {ratio:.2f} times fp16 ({rates})"
            if ratio < 1.1:
                yield f"{figures}. Below 1.1 fp16 is the better bundle; try --residual identity: it moves less."
            else:
                yield f"{figures}. int8 is worth it where verify passes."


def _slots(seen: Seen) -> Iterator[str]:
    """Another number of slots than 3 must gain 3 %."""
    for (target,), rows in _by(seen.rows("slots"), "target"):
        best, usual = _best(rows), _best(row for row in rows if row["slots"] == "3")
        if best is None or usual is None:
            continue
        if (gain := best["throughput"] / usual["throughput"] - 1) > MATTERS:
            yield f"{target}: {best['slots']} slots are {gain:.1%} faster than 3: GpuOptions(slots={best['slots']})."
        else:
            yield f"{target}: 3 slots are right (the best, {best['slots']}, gains {gain:.1%})."


def _graphs(seen: Seen) -> Iterator[str]:
    """Graphs must not cost 3 % at any batch size."""
    for (target, batch), rows in _by(seen.rows("graphs"), "target", "batch"):
        on, off = (_best(row for row in rows if row["graphs"] == value) for value in ("on", "off"))
        if on is None or off is None:
            continue
        gain = on["throughput"] / off["throughput"] - 1
        word = "leave them on" if gain > -MATTERS else "GpuOptions(cuda_graphs=False), bench --no-graphs"
        yield f"{target}, batch {batch}: CUDA graphs change the throughput by {gain:+.1%}: {word}."


def _spinning(seen: Seen) -> Iterator[str]:
    """Spinning must save 5 % of the median latency at batch 1 to be worth a core."""
    for (target,), rows in _by(seen.rows("spinning"), "target"):
        on, off = (next((row for row in rows if row["spinning"] == value), None) for value in ("on", "off"))
        if on is None or off is None:
            continue
        saved = 1 - on["latency_p50_ms"] / off["latency_p50_ms"]
        word = "worth a core where latency counts: GpuOptions(spin=True)" if saved > 0.05 else "not worth a core"
        yield f"{target}, batch 1: spinning saves {saved:.1%} of {off['latency_p50_ms']:.3f} ms: {word}."


def _ceiling(seen: Seen) -> Iterator[str]:
    """Below 40 % of the ceiling at the best batch size, the kernels are what to look at."""
    known = [row for row in seen.rows("bench") if row["share_of_ceiling"] is not None]
    for (bundle, target), rows in _by(known, "bundle", "target"):
        best = _best(rows)
        assert best is not None
        share = best["share_of_ceiling"]
        word = "look at its layers (trtexec --dumpProfile)" if share < 0.4 else "little is left"
        where = f"the ceiling ({best['ceiling_bound']}) at batch {best['batch']}"
        yield f"{bundle} on {target} reaches {share:.0%} of {where}: {word}."


def _trtexec(seen: Seen) -> Iterator[str]:
    """Below 95 % of trtexec on the same plan, the host costs something."""
    for row in seen.rows("trtexec"):
        if row["share"] is not None and row["share"] < 0.95:
            yield (
                f"{row['bundle']} on {row['target']}: {row['share']:.0%} of trtexec at batch {row['batch']}. "
                "Both copy in and out, so the host is what to profile."
            )
