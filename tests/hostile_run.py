"""Run ``classify`` on hostile pictures in a process of its own, and check its rows; shared by the test and the fuzz."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hostile_images import Case

from infer.names import escape_name, printable

# One CPU: how many pictures are in memory at once depends on their number.
PROGRAM = """
import os, resource, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from infer.cli import app
try:
    app(sys.argv[1:])
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


class Outcome(NamedTuple):
    """Rows by name, peak resident memory in MB, and what is wrong, one line each."""

    rows: dict[str, dict[str, object]]
    peak_mb: float
    wrong: list[str]


def classify_cases(bundle: Path, cases: Sequence[Case], timeout: float) -> Outcome:
    """Write ``cases`` as files, classify them, compare the rows with what the cases must give."""
    with tempfile.TemporaryDirectory() as folder:
        return _classify_files(bundle, cases, Path(folder), timeout)


def _classify_files(bundle: Path, cases: Sequence[Case], folder: Path, timeout: float) -> Outcome:
    listed = folder / "list"
    for case in cases:
        (folder / case.name.replace("\n", "_")).write_bytes(case.data)
    listed.write_text("".join(f"{folder / case.name.replace(chr(10), '_')}\n" for case in cases))
    output = folder / "rows.jsonl"
    command = [sys.executable, "-c", PROGRAM, "classify", bundle, "-f", listed, "-o", output, "--top", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome({}, 0, [f"no end after {timeout} s"])
    wrong = [] if done.returncode in (0, 1, 2) else [f"exit code {done.returncode}: {done.stderr[-500:]}"]
    wrong += ["a traceback: " + done.stderr[-500:]] * ("Traceback" in done.stderr)
    found = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    expected = [escape_name(str(folder / case.name.replace("\n", "_"))) for case in cases]
    if [row["name"] for row in found] != expected:
        wrong.append(f"{len(found)} rows, expected {len(cases)}, each once and in order")
    else:
        wrong += [line for case, row in zip(cases, found, strict=True) if (line := _wrong(case, row))]
    peak = next((int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("peak ")), 0)
    rows = {case.name: row for case, row in zip(cases, found, strict=False)}
    return Outcome(rows, peak / 1024, wrong)


def _wrong(case: Case, row: dict[str, object]) -> str | None:
    error = row.get("error")
    if (error is None) != ("top" in row):
        return f"{case.name!r}: neither a class nor an error, or both: {row}"
    if error is not None and not (
        str(error).startswith(f"{printable(str(row['name']))}: ") and str(error).isprintable()
    ):
        return f"{case.name!r}: the error does not start with the name, on one line: {error}"
    if case.verdict == "good" and error is not None:
        return f"{case.name!r}: is sound, but: {error}"
    if case.verdict == "bad" and error is None:
        return f"{case.name!r}: classified, although it is no picture: {row}"
    return None
