"""What a build tells: a table for people, a record for machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from infer.bundle import Manifest, Plan
from infer.bundle.build_record import AuditSummary
from infer.names import printable
from infer.tables import Column, print_table, say
from infer.terminal import human_bytes

if TYPE_CHECKING:
    from engine_build.source import Steps


def as_record(folder: Path, manifest: Manifest, steps: Steps) -> dict[str, Any]:
    """The result as JSON values: plans with their audits, times in seconds, notes."""
    return {
        "bundle": str(folder),
        "model": manifest.model.name,
        "precision": manifest.precision,
        "trained": manifest.model.trained,
        "weights": manifest.model.weights,
        "seconds": steps.seconds,
        "float32_nodes": manifest.float32_nodes,
        "notes": manifest.notes,
        "checks": msgspec.to_builtins(manifest.checks),
        "plans": [
            {
                "target": p.target,
                "files": [f.file for f in p.files],
                "version": p.version,
                "seconds": p.seconds,
                "compute_capabilities": p.compute_capabilities,
                "gpu": p.gpu,
                "notes": p.notes,
                "audit": msgspec.to_builtins(p.audit.summary) if p.audit else None,
            }
            for p in manifest.plans
        ],
    }


_ROWS: tuple[tuple[str, Callable[[Plan, AuditSummary], str]], ...] = (
    ("kernels", lambda plan, audit: f"{audit.kernels} ({_mix(audit.layer_precisions)})"),
    ("convolutions, products", lambda plan, audit: _mix(audit.mac_precisions)),
    ("instruction set", lambda plan, audit: audit.instruction_set),
    ("quantised, writing floats", lambda plan, audit: str(audit.widening or "")),
    ("reformats", lambda plan, audit: str(audit.reformats)),
    ("file", lambda plan, audit: human_bytes(sum(entry.size for entry in plan.files))),
    ("scratch, largest batch", lambda plan, audit: _optional_bytes(audit.activation_bytes)),
    ("DRAM an image, estimate", lambda plan, audit: _optional_bytes(audit.dram_bytes_per_image)),
    ("built in", lambda plan, audit: f"{plan.seconds:.1f} s"),
)


def _optional_bytes(size: int | None) -> str:
    return "" if size is None else human_bytes(size)


def print_result(folder: Path, manifest: Manifest, steps: Steps) -> None:
    """Print the plans side by side, then times, notes and warnings."""
    rows = []
    for label, cell in _ROWS:
        cells = [cell(plan, plan.audit.summary) if plan.audit else "" for plan in manifest.plans]
        if any(cells):
            rows.append([label, *cells])
    heads = [Column(f"{plan.target} {plan.version}", left=True, wraps=True) for plan in manifest.plans]
    print_table(printable(str(folder)), [Column("", left=True, wraps=True), *heads], rows)
    print()
    for check in manifest.checks:
        what = f"the {check.precision} graph as written" if check.target == "graph" else check.target
        say(f"check: {what} against the {check.against}: {check}")
    say("times: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.seconds.items()))
    for plan in manifest.plans:
        if plan.compute_capabilities and plan.gpu is None:
            say(f"{plan.target} runs on compute capability {', '.join(plan.compute_capabilities)}")
        for note in plan.notes:
            say(f"note ({plan.target}): {note}")
    for note in manifest.notes:
        say(f"note: {note}")
    if not manifest.model.trained:
        say(
            f"WARNING: {manifest.model.name} has RANDOM weights: good for inspection and benchmarks, its predictions "
            "mean nothing. Pass a checkpoint with WEIGHTS=path (--weights)."
        )


def _mix(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
