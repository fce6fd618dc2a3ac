"""``iresnet doctor`` against what the machine and the packages say themselves."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine_build.cli import app
from engine_build.doctor import report as module
from engine_build.doctor.report import examine, writable
from infer.backends.cuda.gpus import Gpu


@pytest.fixture
def doctor(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")

    def run(*options):
        result = CliRunner().invoke(app, ["doctor", *options])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    return run


def test_one_screen(doctor):
    code, out = doctor()
    assert code == 0
    assert len(out.splitlines()) < 40
    for text in ("Python", "CPU", "instruction sets", "GPU", "tensorrt_rtx", "openvino", "JPEG decoder", "cache"):
        assert text in out
    assert f"openvino {version('openvino')}" in " ".join(out.split())


def test_json_is_what_the_machine_says(doctor, monkeypatch, tmp_path):
    monkeypatch.setenv("IRESNET_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/x.pth").write_bytes(b"12345")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found = json.loads(doctor("--json")[1])
    assert found["cpus"] == len(os.sched_getaffinity(0))
    flags = Path("/proc/cpuinfo").read_text().split("flags")[1].split("\n")[0].split()
    assert ("avx2" in found["instructions"]) == ("avx2" in flags)
    assert ("avx512_vnni" in found["instructions"]) == ("avx512_vnni" in flags)
    assert found["isa_limit"] == "AVX2"
    assert (found["cache"], found["cache_bytes"]) == (str(tmp_path), 5)
    assert found["packages"]["torch"] == version("torch")
    states = {target["name"]: target for target in found["targets"]}
    assert states["openvino"] == {"name": "openvino", "not_running": None, "not_buildable": None}
    assert set(states) == {"tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"}


def test_what_is_missing_comes_with_its_command(monkeypatch):
    here = module._version
    monkeypatch.setattr(module, "_version", lambda name: None if name in ("torch", "pycuda") else here(name))
    commands = {item.command: item.what for item in examine().missing}
    assert commands["pip install 'iresnet-trt[build]'"].startswith("torch")
    assert "pip install 'iresnet-trt[gpu]'" not in commands  # there is no GPU to use it
    monkeypatch.setattr(module, "find_gpus", lambda: ([Gpu("NVIDIA L4", "8.9")], ""))
    found = examine()
    assert found.gpus == ["NVIDIA L4, compute capability 8.9"]
    assert "pycuda" in {item.command: item.what for item in found.missing}["pip install 'iresnet-trt[gpu]'"]


def test_slow_jpeg_decoding_is_named(monkeypatch):
    monkeypatch.setattr(module, "decoder_name", lambda: "pillow")
    monkeypatch.setattr(module, "missing_decoders", lambda: {"native": "compile it"})
    assert ("JPEG decoder native", "compile it") in [(item.what, item.command) for item in examine().missing]


def test_no_target_is_exit_code_1(doctor, monkeypatch):
    monkeypatch.setattr(module, "why_unavailable", lambda name: "not installed")
    code, out = doctor()
    assert code == 1
    assert "No target runs here" in out


def test_writable(tmp_path, monkeypatch):
    assert writable(tmp_path / "not/there/yet")
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    assert not writable(tmp_path / "not/there/yet")
    assert asked == [tmp_path]
