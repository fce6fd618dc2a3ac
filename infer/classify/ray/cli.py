"""``iresnet classify --ray``: the end of the command, where the work is done elsewhere."""

from __future__ import annotations

import sys

import typer

from infer.classify.ray.driver import Outcome, RayJob, run
from infer.errors import ImageError
from infer.tables import say


def classify_on_ray(job: RayJob) -> None:
    """Run it and say what came out; ends with 1 where images could not be read, 2 where none could."""
    outcome = run(job)
    if outcome.skipped.total:
        say(str(outcome.skipped), stream=sys.stderr)
    say(_summary(job, outcome), stream=sys.stderr)
    if outcome.counts.failed:
        raise typer.Exit(1 if outcome.counts.failed < outcome.counts.rows else ImageError.exit_code)


def _summary(job: RayJob, outcome: Outcome) -> str:
    counts, meter = outcome.counts, outcome.meter
    failed = f", {counts.failed} could not be read" if counts.failed else ""
    there = f" ({outcome.there} of them were there)" if outcome.there else ""
    where = f" on {'; '.join(outcome.where)}" if outcome.where else ""
    speed = f"; {meter.fresh} in {meter.seconds:.1f} s, {meter.rate:.1f}/s" if meter.fresh else ""
    return (
        f"{counts.rows - counts.failed} images classified by {job.bundle}{where}{failed}; {outcome.parts} parts in "
        f"{job.output}{there}{speed}"
    )
