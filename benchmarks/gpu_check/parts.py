"""The parts of the check. Each gives figures, or says why it could not be done."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.processes import Failed, ask, run, run_python

CHECKS = "tests/infer/backends/cuda"
GPU_TARGETS = ("tensorrt", "tensorrt_rtx")
TRTEXEC = {"tensorrt": "trtexec", "tensorrt_rtx": "tensorrt_rtx"}


class CannotBeDone(Exception):
    """Why a part has nothing to say here; no failure."""


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        bundles: folder of bundles.
        duration: seconds of each measured point.
        limit: seconds that one command may take.
    """

    bundles: Path
    duration: float
    limit: float


@dataclass
class Part:
    """One part of the report.

    Attributes:
        name, title: for machines and for people.
        outcome: ``ok``, ``failed`` or ``not done``.
        why: for the last two.
        rows: figures, a dictionary a line.
        notes: what does not fit a table.
        seconds: it took.
    """

    name: str
    title: str
    outcome: str = "ok"
    why: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Seen:
    """What the parts before have found: the rows of each, by name."""

    parts: dict[str, Part] = field(default_factory=dict)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return self.parts[name].rows if name in self.parts else []


def machine(part: Part, settings: Settings, seen: Seen) -> None:
    """GPUs, driver, packages, tools, and which target runs here."""
    found = ask(
        "import json; from infer.backends.cuda.gpus import driver_version, find_gpus\n"
        "gpus, missing = find_gpus()\n"
        "print(json.dumps([[[g.name, g.compute_capability] for g in gpus], missing, driver_version()]))"
    )
    gpus, missing, driver = found
    part.rows += [
        {"what": f"GPU {i}", "found": f"{name}, compute capability {cc}"} for i, (name, cc) in enumerate(gpus)
    ]
    part.rows.append({"what": "CUDA of the driver", "found": driver or missing})
    for target in GPU_TARGETS:
        part.rows.append({"what": target, "found": missing_for(target) or "runs here"})
    versions = ask(
        "import json; from importlib.metadata import version, PackageNotFoundError\n"
        "def of(name):\n"
        "    try: return version(name)\n"
        "    except PackageNotFoundError: return 'not installed'\n"
        "print(json.dumps({n: of(n) for n in "
        "('iresnet-trt', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'torch', 'cupy-cuda13x', 'nvidia-dali-cuda130')}))"
    )
    part.rows += [{"what": name, "found": version} for name, version in versions.items()]
    for tool in ("nvidia-smi", "compute-sanitizer", *TRTEXEC.values()):
        part.rows.append({"what": tool, "found": shutil.which(tool) or "not on the path"})
    if shutil.which("nvidia-smi"):
        query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,pstate"
        done = run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], 60)
        part.notes.append(f"nvidia-smi, {query}: {done.out.strip() or done.why}")
    if not gpus:
        raise CannotBeDone(missing)


def missing_for(target: str) -> str:
    """Why a target does not run here; empty where it does."""
    code = (
        f"import json; from infer.backends.tensorrt import why_unavailable as w; print(json.dumps(w({target!r}) or ''))"
    )
    return str(ask(code))


def tests(part: Part, settings: Settings, seen: Seen) -> None:
    """``pytest -m gpu``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tests.xml")
        done = run_python(["-m", "pytest", "-m", "gpu", "-n", "0", f"--junit-xml={path}"], settings.limit)
        if not path.is_file():
            raise Failed(done.why)
        cases = list(ET.parse(path).iter("testcase"))
    for case in cases:
        skipped, bad = (
            case.find("skipped"),
            next((case.find(k) for k in ("failure", "error") if case.find(k) is not None), None),
        )
        said = bad if bad is not None else skipped
        part.rows.append({
            "test": f"{case.get('classname')}::{case.get('name')}",
            "outcome": "failed" if bad is not None else "skipped" if skipped is not None else "passed",
            "why": "" if said is None else (said.get("message") or "").splitlines()[0][:200],
        })  # fmt: skip
    outcomes = [row["outcome"] for row in part.rows]
    if "failed" in outcomes:
        raise Failed(f"{outcomes.count('failed')} of {len(outcomes)} tests failed")
    if "passed" not in outcomes:
        raise CannotBeDone(f"all {len(outcomes)} tests were skipped")


def streams(part: Part, settings: Settings, seen: Seen) -> None:
    """Streams, events, DLPack, torch and CuPy on device memory, with the stand-in for TensorRT."""
    done = run_python([f"{CHECKS}/gpu_streams.py"], settings.limit)
    part.rows += list(_lines(done.out))
    if done.code != 0:
        if not part.rows and "Traceback" not in done.err:
            raise CannotBeDone(done.why.removeprefix("exit code 1: "))
        raise Failed(done.why)


def _lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if match := re.match(r"(ok|skipped): (.*)", line):
            yield {"check": match[2], "outcome": match[1]}


def sanitizer(part: Part, settings: Settings, seen: Seen) -> None:
    """The checks of streams under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise CannotBeDone("compute-sanitizer is not on the path; it comes with the CUDA toolkit")
    words = ["results_are", "inputs_are", "graphs_give"]
    script = [f"{CHECKS}/gpu_streams.py", *words]
    for name in ("memcheck", "racecheck"):
        command = [tool, "--tool", name, "--target-processes", "all", "--error-exitcode", "86", sys.executable, *script]
        done = run(command, settings.limit)
        summary = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", done.out + done.err)
        part.rows.append(
            {"tool": name, "outcome": "ok" if done.code == 0 else "failed", "summary": " ".join(summary) or done.why}
        )
    if any(row["outcome"] == "failed" for row in part.rows):
        raise Failed("compute-sanitizer found something")


def bundles_of(settings: Settings) -> list[tuple[Path, str, str]]:
    """Folder, precision and target of every plan for a GPU target that runs here.

    Raises:
        CannotBeDone: there is none.
    """
    usable = {target: missing_for(target) for target in GPU_TARGETS}
    found, other = [], []
    for path in sorted(settings.bundles.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        for plan in manifest.get("plans", ()):
            if plan["target"] in usable:
                entry = (path.parent, str(manifest["precision"]), str(plan["target"]))
                (other if usable[plan["target"]] else found).append(entry)
    if not found:
        reasons = "; ".join(f"{target}: {why}" for target, why in usable.items() if why)
        what = (
            f"{len(other)} plans cannot run here" if other else f"no bundle in {settings.bundles} has a plan for a GPU"
        )
        hint = "" if other else "; build one with: make engine MODEL=iresnet101"
        raise CannotBeDone(f"{what} ({reasons or 'both run here'}){hint}")
    return found


def answers(part: Part, settings: Settings, seen: Seen) -> None:
    """The known answers of each bundle, asked for anew."""
    for folder, precision, target in bundles_of(settings):
        code = (
            "import os; os.environ['IRESNET_SELF_TEST'] = 'always'\n"
            "import json; from infer import open_bundle; from infer.checks.self_test import passed_here\n"
            f"with open_bundle({str(folder)!r}, target={target!r}, allow_untrained=True) as runner:\n"
            "    print(json.dumps([c.to_json() if hasattr(c, 'to_json') else str(c) "
            "for c in passed_here(runner.folder, runner.manifest)]))"
        )
        done = run_python(["-c", code], settings.limit)
        row = {"bundle": folder.name, "precision": precision, "target": target}
        good = done.code == 0
        part.rows.append(
            {**row, "outcome": "ok" if good else "failed", "said": done.out.strip()[-300:] if good else done.why}
        )
    if bad := [row["bundle"] for row in part.rows if row["outcome"] == "failed"]:
        raise Failed(f"{', '.join(bad)}: other answers than the bundle has, or it does not open")


def bench(part: Part, settings: Settings, seen: Seen) -> None:
    """Throughput and latency of every plan, and the share of the roofline's ceiling."""
    for folder, precision, target in bundles_of(settings):
        part.rows += _bench(settings, folder, precision, target, "--batch", "1,8,32", "--repeat", "3")


def _bench(settings: Settings, folder: Path, precision: str, target: str, *more: str) -> list[dict[str, Any]]:
    times = ["--duration", str(settings.duration), "--warm-up", str(min(0.5, settings.duration / 4))]
    command = ["-m", "infer", "bench", str(folder), "--target", target, *times, *more, "--json"]
    done = run_python(command, settings.limit)
    if done.code != 0:
        raise Failed(f"{folder.name}, {target}: {done.why}")
    keys = (
        "batch",
        "in_flight",
        "throughput",
        "latency_p50_ms",
        "latency_p99_ms",
        "share_of_ceiling",
        "ceiling_bound",
        "warnings",
    )
    head = {"bundle": folder.name, "precision": precision, "target": target}
    return [{**head, **{key: point[key] for key in keys}} for point in json.loads(done.out)["points"]]


def _variants(name: str, options: dict[str, tuple[str, ...]], *more: str) -> Callable[[Part, Settings, Seen], None]:
    """A part that measures the first fp16 plan, else the first, of each target with other options of the runner."""

    def measure(part: Part, settings: Settings, seen: Seen) -> None:
        chosen: dict[str, tuple[Path, str, str]] = {}
        for entry in sorted(bundles_of(settings), key=lambda entry: entry[1] != "fp16"):
            chosen.setdefault(entry[2], entry)
        for entry in chosen.values():
            for value, words in options.items():
                part.rows += [{name: value, **row} for row in _bench(settings, *entry, *words, *more, "--repeat", "3")]

    measure.__doc__ = f"The runner with other {name}."
    return measure


slots = _variants("slots", {str(n): ("--slots", str(n)) for n in (1, 2, 3, 4)}, "--batch", "8")
graphs = _variants("graphs", {"on": ("--graphs",), "off": ("--no-graphs",)}, "--batch", "1,8")
spinning = _variants("spinning", {"off": (), "on": ("--spin",)}, "--batch", "1", "--in-flight", "1")


def decode(part: Part, settings: Settings, seen: Seen) -> None:
    """Decoding on the GPU."""
    if "not installed" in str([row for row in seen.rows("machine") if "dali" in row["what"]]):
        raise CannotBeDone("DALI is not installed; pip install 'iresnet-trt[dali]'")
    done = run_python(["benchmarks/gpu_decode.py", "--device", "0"], settings.limit)
    part.notes += done.out.strip().splitlines()
    if done.code != 0:
        raise Failed(done.why)


def trtexec(part: Part, settings: Settings, seen: Seen) -> None:
    """NVIDIA's own tool on the same plans, at batch 8."""
    entries = bundles_of(settings)
    if not any(shutil.which(TRTEXEC[target]) for _, _, target in entries):
        raise CannotBeDone("trtexec is not on the path; it comes with TensorRT's tar file or Debian packages")
    for folder, precision, target in entries:
        tool = shutil.which(TRTEXEC[target])
        if tool is None:
            continue
        manifest = json.loads((folder / "manifest.json").read_text())
        image = manifest["inputs"][0]
        shape = "x".join(["8", *(str(extent) for extent in image["shape"][1:])])
        plan = next(plan for plan in manifest["plans"] if plan["target"] == target)
        file = next(one["file"] for one in plan["files"] if one["file"].endswith(".plan"))
        command = [
            tool, f"--loadEngine={folder / file}", f"--shapes={image['name']}:{shape}", "--useCudaGraph",
            f"--duration={max(1, round(settings.duration))}", "--warmUp=500", "--infStreams=3",
        ]  # fmt: skip
        done = run(command, settings.limit)
        found = re.search(r"Throughput: ([\d.]+) qps", done.out)
        if done.code != 0 or found is None:
            raise Failed(f"{folder.name}: {done.why}")
        rate = 8 * float(found[1])
        head = {"bundle": folder.name, "precision": precision, "target": target, "batch": 8}
        ours = [row["throughput"] for row in seen.rows("bench") if {**row, **head} == row]
        part.rows.append(
            {**head, "trtexec": rate, "ours": max(ours, default=None), "share": max(ours) / rate if ours else None}
        )


PARTS: tuple[tuple[str, str, Callable[[Part, Settings, Seen], None]], ...] = (
    ("machine", "The machine", machine),
    ("tests", "Tests that need a GPU", tests),
    ("streams", "Streams and device memory", streams),
    ("sanitizer", "compute-sanitizer", sanitizer),
    ("answers", "Known answers", answers),
    ("bench", "Throughput, latency, share of the roofline", bench),
    ("slots", "Slots", slots),
    ("graphs", "CUDA graphs", graphs),
    ("spinning", "Spinning", spinning),
    ("decode", "Decoding on the GPU", decode),
    ("trtexec", "Beside trtexec", trtexec),
)
