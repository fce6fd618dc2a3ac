"""What the commands of the build say fits into terminals of 80, 60 and 40 columns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from terminals import Pipe, Terminal, check_fits

from engine_build.build_report import print_result
from engine_build.doctor.cli import doctor
from engine_build.network.cli import models
from engine_build.source import Steps
from infer.bundle import BatchProfile, Manifest, Plan, read_manifest
from infer.bundle.build_record import Audit, AuditSummary


@pytest.fixture
def shown(monkeypatch):
    def run(width, function, *arguments):
        out = Pipe() if width is None else Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", str(width or 20))
            function(*arguments)
        return out.getvalue() if width is None else out.text

    return run


@pytest.mark.parametrize("width", [80, 60, 40])
def test_models(shown, width, monkeypatch):
    rows = [
        {"model": name, "parameters": 255_597_864, "gmac": 73.35, "input": 224, "classes": 1000, "top1": top1,
         "top5": top1, "weights": "official"}
        for name, top1 in (("iresnet1001", None), ("iresgroupfix101", 78.64), ("iresnet50_fashion", 77.31))
    ]  # fmt: skip
    monkeypatch.setattr("engine_build.network.cli._rows", lambda: rows)
    text = shown(width, models)
    check_fits(text, shown(None, models), width, {"no", "room", "for"})
    heads = text.splitlines()[1].split()
    assert {"model", "top-1", "weights"} <= set(heads)
    assert ("parameters" in heads) == (width >= 60) and ("input" in heads) == (width >= 80)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_doctor(shown, width):
    check_fits(shown(width, doctor), shown(None, doctor), width)


def built(manifest: Manifest) -> Manifest:
    """The manifest with a plan for NVIDIA and an audit, which no machine of the tests can run."""
    summary = AuditSummary(
        layers=60, kernels=111, layer_types={}, layer_precisions={"int8": 104, "fp16": 4, "fp32": 3}, reformats=26,
        mac_nodes=54, mac_precisions={"int8": 54}, engine_bytes=9 << 20, dram_bytes_per_image=3 << 20, batch=32,
    )  # fmt: skip
    plan = Plan(
        target="tensorrt_rtx", files=[], version="1.7.1.116", compute_capabilities=["8.0", "8.6", "8.9", "12.0"],
        audit=Audit(summary=summary, node_precisions={}), notes=["(foreignNode) Converting weight scales to fp32."],
    )  # fmt: skip
    manifest.plans.insert(0, plan)
    manifest.batch = BatchProfile()
    manifest.notes.append("4 nodes stay float32 around their integers: layer3.4.conv3, layer3.5.conv3, layer4.1.conv3")
    manifest.model.trained = False
    return manifest


@pytest.mark.parametrize("width", [80, 60, 40])
def test_the_result_of_a_build(shown, tiny, width):
    manifest = built(read_manifest(tiny))
    steps = Steps()
    steps.seconds |= {"weights": 1.84, "export": 7.1, "calibration": 14.8, "precision": 0.1, "known answers": 0.4}
    arguments = (print_result, Path("/a/folder/of/some/one/engines/iresnet50_fashion-int8"), manifest, steps)
    text, wide = shown(width, *arguments), shown(None, *arguments)
    check_fits(text, wide, width)
    assert "WARNING: tiny has RANDOM weights" in wide and "WARNING: tiny has RANDOM weights" in text
    assert text.splitlines()[0].endswith("engines/iresnet50_fashion-int8")
