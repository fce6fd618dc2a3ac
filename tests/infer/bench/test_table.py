"""The text of a benchmark: what stands where, in which terminal, and each warning once."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from terminals import Pipe, Terminal, check_fits

from infer.bench.measure import Options, Point, Run, StageSummary
from infer.bench.report import Report
from infer.bench.roofline import Work, above, ceiling, find_gpus, known_gpus
from infer.bench.table import print_report, warning_lines

STEADY = np.full(200, 0.01)
WORK = Work(("fp16",), 4.0, 1e7, 5e7, 32, 150528, "tensorrt", ("8.9",))


def point(batch, latencies, in_flight=1, stages=None):
    return Point(batch, in_flight, [Run(batch, 1.0, len(latencies), latencies, latencies / 10, 0.5)], stages)


@pytest.fixture
def report():
    stages = StageSummary(1, 5, 0.5, 0.25, 0.1)
    points = [point(batch, STEADY[:few], stages=stages) for batch, few in ((1, 200), (8, 90), (32, 20))]
    subject = {
        "bundle": "b", "model": "iresnet50_fashion", "precision": "fp16", "trained": False, "target": "tensorrt",
        "device": "GPU 0 (NVIDIA L4, 3 streams)",
    }  # fmt: skip
    flags = {"timed": "uint8 batch in host memory to results in host memory; no decoding, no pre-processing"}
    notes = ["convolutions and products run 53 in int8, 1 in fp16; the compute ceiling takes the fastest for all"]
    [gpu] = find_gpus(["l4"])
    tops = [ceiling(WORK, known) for known in known_gpus()]
    return Report(subject, flags, {"measured": "now"}, Options(), points, gpu, WORK, tops, notes)


def printed(monkeypatch, report, width):
    out = Pipe() if width is None else Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", str(width))
        print_report(report)
    return out.getvalue() if width is None else out.text


def test_everything_fits(monkeypatch, report):
    wide = printed(monkeypatch, report, None)
    said = {"no", "room", "for", "for:"}
    for width in (100, 80, 60, 40):
        text = printed(monkeypatch, report, width)
        check_fits(text, wide, width, said)
        assert text.splitlines()[0].startswith("iresnet50_fashion fp16, UNTRAINED on")
        # Never left out.
        heads = text.splitlines()[1]
        assert all(head in heads for head in ("batch", "in flight", "images/s", "p99")), width
    assert "no room for" not in wide and "\x1b" not in wide


def test_what_goes_first_in_a_narrow_terminal(monkeypatch, report):
    def left_out(width):
        text = printed(monkeypatch, report, width).split("Roofline")[0].split("\n\n")[0]
        _, found, names = text.partition("no room for: ")
        return [name.strip() for name in names.split(",")] if found else []

    assert left_out(140) == []
    assert left_out(80) == ["p95", "D2H", "enqueue"]
    assert left_out(40) == ["mean", "p50", "p90", "p95", "CV %", "H2D", "compute", "D2H", "enqueue", "of ceiling"]


def test_warnings_come_after_the_table_each_kind_once(monkeypatch, report):
    text = printed(monkeypatch, report, None)
    [line] = [line for line in text.splitlines() if line.startswith("warning: ")]
    few = "few batches: p99 of 20 is close to the maximum; raise the duration"
    assert line == f"warning: {few} (2 of 3 points, most at batch 32, 1 in flight)"
    table, rest = text.split("\n\n")[:2]
    assert "images/s" in table and rest == line


def test_kinds_of_warnings():
    shaky, shakier = np.tile([0.01, 0.02], 100), np.tile([0.01, 0.03], 100)
    lines = warning_lines([point(1, shaky), point(8, shakier, in_flight=2)])
    where = "all 2 points, most at batch 8, 2 in flight"
    assert lines == [f"warning: unstable: latency varies by 50 %; is the machine busy? ({where})"]
    [alone] = warning_lines([point(1, shaky), point(8, STEADY)])
    assert alone.endswith("(batch 1, 1 in flight)")
    rising, falling = np.linspace(0.01, 0.0115, 200), np.linspace(0.0115, 0.01, 200)
    [drift] = warning_lines([point(1, rising), point(8, falling)])
    assert "latency rises by 10 %" in drift and "all 2 points" in drift
    assert warning_lines([point(1, STEADY)]) == []


def test_what_was_not_measured_has_no_column(monkeypatch, report):
    assert "H2D" in printed(monkeypatch, report, None)
    plain = Report(report.subject, {}, {}, Options(), [point(1, STEADY)])
    text = printed(monkeypatch, plain, None)
    assert text.splitlines()[1].split()[-2:] == ["CV", "%"] and "Roofline" not in text


def test_the_ceilings_name_peak_accumulate_type_clock_and_paper(monkeypatch, report):
    lines = printed(monkeypatch, report, None).splitlines()
    [basis] = [line for line in lines if line.startswith("RTX-4090") and "TFLOPS" in line]
    paper = "NVIDIA Ada GPU architecture whitepaper v2.02, appendix A"
    assert " ".join(basis.split()) == f"RTX-4090 fp16 330.3 TFLOPS, FP16 accumulation, 2520 MHz; {paper}"
    [top] = [line for line in lines if line.startswith("RTX-4090") and "TFLOPS" not in line]
    assert f"{330.3e12 / 8e9:,.0f}" in top
    [other] = [line for line in lines if line.startswith("H100 ") and "TFLOPS" not in line]
    assert other.endswith("does not run")


def test_a_gpu_that_ran_above_the_clock_of_its_peak_is_said():
    [l4] = find_gpus(["L4"])
    top = ceiling(WORK, l4, 32)
    assert top.bound == "compute"
    assert above(WORK, l4, [(32, 0.9 * top.rate), (1, 1e9)]) == [], "batch 1 is bound by an estimate"
    [note] = above(WORK, l4, [(32, 1.1 * top.rate)])
    assert note == "batch 32 reaches 110 % of the ceiling, which holds at 2040 MHz: this GPU ran faster"
