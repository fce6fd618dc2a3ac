"""What a benchmark says: JSON, CSV and a plot; the text for people is in :mod:`infer.bench.table`."""

from __future__ import annotations

import csv
import io
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from infer.bench.measure import Options, Point
from infer.bench.roofline import Ceiling, GpuPeaks, Work, ceiling
from infer.bench.row import PointRow, row_of
from infer.bundle import now
from infer.files import write_bytes

if TYPE_CHECKING:
    from infer.runner import Runner


@dataclass(frozen=True)
class Report:
    """A finished benchmark.

    Attributes:
        subject: bundle, model, precision, target, device and whether it is trained.
        flags: how it was measured, name to value.
        environment: machine and versions.
        options: what was asked for.
        points: the measurements.
        gpu: peak figures of the GPU that ran; None for a CPU or an unknown GPU.
        work: cost of an image; None where nothing is known.
        ceilings: of the GPUs that were asked for.
        notes: of the backend and the roofline.
    """

    subject: dict[str, Any]
    flags: dict[str, str]
    environment: dict[str, Any]
    options: Options
    points: list[Point]
    gpu: GpuPeaks | None = None
    work: Work | None = None
    ceilings: list[Ceiling] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[PointRow]:
        """The figures of each point."""
        return [row_of(point, self._ceiling(point)) for point in self.points]

    def _ceiling(self, point: Point) -> Ceiling | None:
        if self.gpu is None or self.work is None:
            return None
        return ceiling(self.work, self.gpu, point.batch)

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for :func:`json.dump`."""
        options = self.options
        return {
            "format": 1,
            **self.subject,
            "measured": self.environment["measured"],
            "flags": self.flags,
            "environment": self.environment,
            "options": {
                "duration": options.duration,
                "iterations": options.iterations,
                "warm_up": options.warm_up,
                "repeat": options.repeat,
                "seed": options.seed,
            },
            "points": msgspec.to_builtins(self.rows()),
            "work": self.work and asdict(self.work),
            "roofline": [top.to_json() for top in self.ceilings],
            "notes": self.notes,
        }

    def write_csv(self, path: Path) -> None:
        """One line a point, with what identifies the run in front; written in one step."""
        text = io.StringIO()
        head = {key: self.subject[key] for key in ("model", "precision", "trained", "target", "device")}
        rows = [{**head, **msgspec.structs.asdict(row)} for row in self.rows()]
        for row in rows:
            row["throughput_runs"] = " ".join(f"{rate:.2f}" for rate in row["throughput_runs"])
            row["warnings"] = "; ".join(row["warnings"])
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(path, text.getvalue().encode())

    def write_plot(self, path: Path) -> None:
        """See :func:`infer.bench.plot.write_plot`."""
        from infer.bench.plot import write_plot

        write_plot(self, path)


def subject_of(runner: Runner) -> dict[str, Any]:
    """What was measured."""
    model = runner.manifest.model
    return {
        "bundle": str(runner.folder),
        "model": model.name,
        "precision": runner.manifest.precision,
        "trained": model.trained,
        "target": runner.target,
        "device": runner.backend.device,
    }


def flags_of(runner: Runner) -> dict[str, str]:
    """How the time is taken; a backend adds its own with an attribute ``flags``."""
    gpu = runner.backend.on_device is not None
    return {
        "timed": "uint8 batch in host memory to results in host memory; no decoding, no pre-processing",
        "transfers": "included, and the copy into pinned memory" if gpu else "none, the device is the CPU",
        "inputs": "synthetic, made beforehand",
        **runner.backend.flags,
    }


def environment_of(runner: Runner) -> dict[str, Any]:
    """Machine and versions, with the load before the measurement."""
    plans = [plan for plan in runner.manifest.plans if plan.target == runner.target]
    return {
        "measured": now(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "plan_version": plans[0].version if plans else None,
    }
