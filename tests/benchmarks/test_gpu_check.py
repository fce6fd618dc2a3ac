"""``make gpu-check`` on the emulated driver: every part runs or says why not; one that crashes costs only itself."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.gpu_check.advice import advise
from benchmarks.gpu_check.parts import PARTS, Part, Seen

ROOT = Path(__file__).parents[2]
EMULATED = Path(__file__).with_name("emulated_gpu")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pycuda") is None or shutil.which("g++") is None,
    reason="needs pycuda on the emulated driver: python tests/cuda_emulator/build.py",
)


def tool(folder, name, body):
    """A program on the path."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def bundles(tiny, tmp_path_factory):
    """The tiny model as fp16 and int8, each with a plan for the stand-in that computes its graph."""
    from trt_stand_in.plan import write_plan

    from infer.bundle import Plan, file_entry, read_manifest, write_manifest

    root = tmp_path_factory.mktemp("engines")
    for precision in ("fp16", "int8"):
        folder = Path(shutil.copytree(tiny, root / f"tiny-{precision}"))
        manifest = read_manifest(folder)
        image, k = tuple(manifest.inputs[0].shape[1:]), manifest.outputs[1].shape[1]
        plan = write_plan(
            folder / "tensorrt.plan", "tensorrt-11", image=image, num_classes=manifest.model.num_classes, top_k=k,
            max_batch=16, graph=str(folder / "model.onnx"),
        )  # fmt: skip
        manifest.precision = precision
        entry = Plan(target="tensorrt", files=[file_entry(folder, "tensorrt.plan")], version=plan.version)
        manifest.plans = [*manifest.plans, entry]
        write_manifest(folder, manifest)
    return root


@pytest.fixture(scope="module")
def done(bundles, tmp_path_factory):
    """The whole run, with tools of NVIDIA's that others write: one works, one crashes."""
    tools, output = tmp_path_factory.mktemp("tools"), tmp_path_factory.mktemp("out") / "new"
    tool(tools, "trtexec", 'echo "$@" > "$0.asked"; echo "[I] Throughput: 250.5 qps"')
    tool(tools, "compute-sanitizer", "kill -SEGV $$")
    environment = {
        **os.environ, "PYTHONPATH": str(EMULATED), "EMULATED_GPU": "tensorrt-11", "OMP_NUM_THREADS": "1",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }  # fmt: skip
    only = [name for name, _, _ in PARTS if name != "tests"]  # it would run the tests of the tests
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--bundles", str(bundles), "--output", str(output)]
    process = subprocess.run(
        [*command, "--duration", "0.02", "--only", *only], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False, timeout=400,
    )  # fmt: skip
    report = json.loads((output / "report.json").read_text())
    return process, report, (output / "report.html").read_text(), (tools / "trtexec.asked").read_text()


def test_every_part_runs_or_says_why_not(done):
    process, report, _, _ = done
    parts = {part["name"]: part for part in report["parts"]}
    outcomes = {name: part["outcome"] for name, part in parts.items()}
    assert outcomes == {
        **dict.fromkeys(("machine", "answers", "bench", "slots", "graphs", "spinning", "trtexec"), "ok"),
        "streams": "failed",  # they want a real GPU, and find one that is none
        "sanitizer": "failed", "decode": "not done",
    }, process.stdout + process.stderr  # fmt: skip
    assert all(part["why"] for part in parts.values() if part["outcome"] != "ok")
    assert "SIGSEGV" in parts["sanitizer"]["rows"][0]["summary"]
    assert process.returncode == 1 and report["finished"]
    assert {row["precision"] for row in parts["bench"]["rows"]} == {"fp16", "int8"}
    assert {row["batch"] for row in parts["bench"]["rows"]} == {1, 8}
    assert {row["slots"] for row in parts["slots"]["rows"]} == {"1", "2", "3", "4"}
    assert [row["outcome"] for row in parts["answers"]["rows"]] == ["ok", "ok"]


def test_trtexec_is_asked_for_the_same_batch_and_compared(done):
    _, report, _, asked = done
    rows = next(part["rows"] for part in report["parts"] if part["name"] == "trtexec")
    best = [row for part in report["parts"] if part["name"] == "bench" for row in part["rows"]]
    for row in rows:
        ours = max(one["throughput"] for one in best if one["bundle"] == row["bundle"] and one["batch"] == 8)
        assert row["trtexec"] == pytest.approx(8 * 250.5)
        assert row["share"] == pytest.approx(ours / (8 * 250.5))
    assert ":8x32x32x3 " in asked and "tensorrt.plan" in asked


def test_the_page_shows_all_of_it(done):
    process, report, html, _ = done

    class Page(HTMLParser):
        ids, links = [], []

        def handle_starttag(self, tag, attributes):
            found = dict(attributes)
            self.ids += [found["id"]] if "id" in found else []
            self.links += [found["href"]] if "href" in found else []

    page = Page()
    page.feed(html)
    assert page.links == [f"#{name}" for name in ("worth", *(part["name"] for part in report["parts"]))]
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "http" not in html and "<script" not in html
    assert report["advice"]
    for text in report["advice"]:
        assert text in process.stdout


def test_without_a_gpu_nothing_fails_and_every_part_has_its_reason(tmp_path, bundles):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--bundles", str(bundles), "--output", str(tmp_path)]
    only = ["--only", "streams", "answers", "trtexec"]
    done = subprocess.run([*command, *only], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    report = json.loads((tmp_path / "report.json").read_text())
    if any(part["outcome"] == "ok" for part in report["parts"]):
        pytest.skip("this machine has a GPU")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all("driver" in part["why"] or "not on the path" in part["why"] for part in report["parts"])


def point(**changes):
    row = {
        "bundle": "net-fp16", "precision": "fp16", "target": "tensorrt", "batch": 8, "throughput": 1000.0,
        "latency_p50_ms": 1.0, "share_of_ceiling": None, "ceiling_bound": None, "warnings": [],
    }  # fmt: skip
    return {**row, **changes}


def advice(name, *rows, **changes):
    return " ".join(advise(Seen({name: Part(name, name, rows=list(rows), **changes)})))


def test_what_is_worth_changing_follows_from_the_figures():
    int8 = {"bundle": "net-int8", "precision": "int8"}
    assert "1.05 times fp16" in (text := advice("bench", point(), point(**int8, throughput=1050.0)))
    assert "fp16 is the better bundle" in text
    assert "int8 is worth it" in advice("bench", point(), point(**int8, throughput=2000.0))
    assert "lock the clocks" in advice("bench", point(warnings=["unstable: x"]))
    assert "look at its layers" in advice("bench", point(share_of_ceiling=0.2, ceiling_bound="memory"))
    assert "little is left" in advice("bench", point(share_of_ceiling=0.8, ceiling_bound="memory"))
    three, four = point(slots="3"), point(slots="4", throughput=1100.0)
    assert "GpuOptions(slots=4)" in advice("slots", three, four)
    assert "3 slots are right" in advice("slots", three, {**four, "throughput": 1010.0})
    on, off = point(graphs="on"), point(graphs="off", throughput=1200.0)
    assert "cuda_graphs=False" in advice("graphs", on, off)
    assert "leave them on" in advice("graphs", on, {**off, "throughput": 900.0})
    on, off = point(spinning="on", batch=1, latency_p50_ms=0.8), point(spinning="off", batch=1)
    assert "spin=True" in advice("spinning", on, off)
    assert "not worth a core" in advice("spinning", {**on, "latency_p50_ms": 0.99}, off)
    row = {"bundle": "b", "target": "tensorrt", "batch": 8, "share": 0.9}
    assert "90% of trtexec" in advice("trtexec", row) and advice("trtexec", {**row, "share": 0.97}) == ""
    assert "Look at this before any figure" in advice("tests", outcome="failed", why="1 of 5 tests failed")
