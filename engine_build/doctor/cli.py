"""``iresnet doctor``: one screen about this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from infer.command_line import DebugOption, JsonOption, guarded

if TYPE_CHECKING:
    from engine_build.doctor.report import Report


@guarded
def doctor(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Say what this machine has, which targets run here, and what would add the missing ones.

    The exit code is 1 where no target runs here.
    """
    from engine_build.doctor.report import examine

    report = examine()
    if as_json:
        import msgspec

        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    if not report.runs:
        raise typer.Exit(1)


def _print(report: Report) -> None:
    from pathlib import Path

    from engine_build.doctor.report import writable
    from infer.tables import print_facts, say
    from infer.terminal import human_bytes

    limit = f", limited to {report.isa_limit} by ONEDNN_MAX_CPU_ISA" if report.isa_limit else ""
    instructions = (" ".join(report.instructions) or "none that Linux lists") + limit
    installed = ", ".join(f"{name} {number}" for name, number in report.packages.items() if number)
    state = human_bytes(report.cache_bytes) + ("" if writable(Path(report.cache)) else ", NOT writable")
    gpus = report.gpus or [f"none: {report.no_gpu}"]
    rows = [
        ("iresnet-trt", report.version),
        ("Python", report.python),
        ("system", report.system),
        ("CPU", f"{report.cpu}, {report.cpus} cores for this process"),
        ("instruction sets", instructions),
        *(("GPU" if number == 0 else "", gpu) for number, gpu in enumerate(gpus)),
        ("CUDA of the driver", report.driver or "no driver"),
        *((target.name, _state(target.not_running, target.not_buildable)) for target in report.targets),
        ("JPEG decoder", report.jpeg),
        ("packages", installed),
        ("cache", f"{report.cache}, {state}"),
    ]
    print_facts(None, rows)
    if report.missing:
        print("\nTo be added:")
        print_facts(None, [(f"  {item.what}", item.command) for item in report.missing])
    if not report.runs:
        print()
        say("No target runs here: nothing can be classified on this machine yet.")


def _state(not_running: str | None, not_buildable: str | None) -> str:
    runs = "runs here" if not_running is None else f"does not run here: {not_running}"
    if not_buildable is None:
        return f"{runs}; can be built here"
    return runs if not_running == not_buildable else f"{runs}; not built here: {not_buildable}"
