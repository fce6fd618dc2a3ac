"""``iresnet info``: what a bundle is, which of its plans run here, and how it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infer.command_line import DebugOption, JsonOption, guarded
from infer.errors import KnownAnswersError
from infer.names import printable
from infer.tables import print_facts, say
from infer.terminal import human_bytes

if TYPE_CHECKING:
    from infer.bundle import Manifest
    from infer.checks.self_test import TargetReport


@guarded
def info(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle, such as engines/iresnet101-fp16.")],
    check: Annotated[
        bool, typer.Option("--check", help="Run every plan that runs here on the bundle's known answers, now.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what a bundle is, which of its plans run here, and its measured accuracy. Checks every file's hash.

    With --check the exit code is 1 where a plan computes something else than the graph.
    """
    from infer.backends import TARGETS, why_unavailable
    from infer.bundle import check_files, read_labels, read_manifest
    from infer.checks.self_test import check_plans, passed_here

    manifest = read_manifest(bundle)
    check_files(bundle, [manifest.graph, *(entry for plan in manifest.plans for entry in plan.files)])
    if manifest.known_answers is not None:
        check_files(bundle, [manifest.known_answers.file])
    read_labels(bundle, manifest)
    reports = check_plans(bundle, manifest) if check else []
    runnable = {
        p.target: why_unavailable(p.target) if p.target in TARGETS else "unknown target" for p in manifest.plans
    }
    if as_json:
        import msgspec

        found = {"unavailable": runnable, "passed_here": msgspec.to_builtins(passed_here(bundle, manifest))}
        found |= {"checked": [report.to_json() for report in reports]} if check else {}
        print(json.dumps({**msgspec.to_builtins(manifest), **found}))
    else:
        _print_info(bundle, manifest, runnable)
        _print_checks(reports)
    if any(report.error for report in reports):
        raise typer.Exit(KnownAnswersError.exit_code)


def _print_checks(reports: list[TargetReport]) -> None:
    from infer.checks.passed import describe

    for report in reports:
        if report.unavailable is not None:
            say(f"known answers on {report.target}: not checked, it does not run here")
        for checked in report.checked:
            say(f"known answers on {report.target}: {describe(checked)}, {checked.seconds:.2f} s, {checked.device}")
        if report.error is not None:
            say(f"known answers on {report.target}: FAILED: {report.error}")


def _print_info(bundle: Path, manifest: Manifest, runnable: dict[str, str | None]) -> None:
    from infer.checks.known_answers import TELLING_DB
    from infer.checks.passed import describe
    from infer.checks.self_test import passed_here

    model = manifest.model
    rows: list[tuple[str, str]] = []

    def add(label: str, text: str) -> None:
        rows.append((label, text))

    add("model", f"{model.name}, {model.num_classes} classes, {manifest.precision}")
    add("weights", model.weights + ("" if model.trained else "  UNTRAINED"))
    for tensor in (*manifest.inputs, *manifest.outputs):
        add(tensor.name, f"{tensor.dtype} {tensor.shape}")
    batch = manifest.batch
    add("batch of TensorRT plans", f"{batch.min} to {batch.max}, tuned for {batch.opt}")
    for plan in manifest.plans:
        where = plan.gpu or (
            f"compute capability {', '.join(plan.compute_capabilities)}" if plan.compute_capabilities else ""
        )
        size = human_bytes(sum(entry.size for entry in plan.files))
        state = "runs here" if runnable[plan.target] is None else f"does not run here: {runnable[plan.target]}"
        if plan.audit is not None and plan.audit.summary.instruction_set:
            where = f"built where its kernels were {plan.audit.summary.instruction_set}"
        add(plan.target, f"{size}, version {plan.version}, {where + ', ' if where else ''}{state}")
    for check in manifest.checks:
        add(f"{check.target} at the build", f"against the {check.against}: {check}, {check.engine}")
    if (answers := manifest.known_answers) is None:
        add("known answers", "none: what this bundle computes cannot be checked")
    else:
        tells = f"{answers.floor_db:.1f} dB needed" if answers.floor_db >= TELLING_DB else "cannot tell"
        add("known answers", f"{answers.images} pictures, {tells}, by {answers.engine}")
        for checked in passed_here(bundle, manifest):
            add(f"  on {checked.target}", f"{describe(checked)}, {checked.device}")
    for measured in manifest.accuracy:
        figures = measured.figures
        top1 = "" if figures.top1 is None else f"top-1 {figures.top1:.2f} %, "
        agreement = "" if figures.agreement is None else f"agreement {figures.agreement:.2f} %, "
        word = measured.outcome if measured.outcome == "passed" else measured.outcome.upper()
        add(
            f"accuracy on {measured.target}",
            f"{word}: {top1}{agreement}{measured.counts.images} images of {measured.data}",
        )
    print_facts(printable(str(bundle)), rows)
