"""Settings of the targets and the way to each."""

from __future__ import annotations

import importlib.util

import pytest

from engine_build import targets
from engine_build.targets import BUILDABLE, BuildSettings, build_target, why_unbuildable
from engine_build.targets import openvino as openvino_target
from infer.bundle import BatchProfile
from infer.errors import BuildError, InputError


@pytest.mark.parametrize("sizes", [(0, 1, 2), (-1, 1, 2), (2, 1, 4), (1, 5, 4)])
def test_batch_sizes(sizes):
    low, best, high = sizes
    with pytest.raises(InputError, match=f"1 <= min <= opt <= max, found {low}, {best}, {high}"):
        BuildSettings(batch=BatchProfile(min=low, opt=best, max=high))


@pytest.mark.parametrize("size", [0, -5])
def test_workspace(size):
    with pytest.raises(InputError, match=f"workspace: expected at least 1 byte, found {size}"):
        BuildSettings(workspace=size)


def test_the_targets_of_the_design():
    assert BUILDABLE == ("tensorrt", "tensorrt_rtx", "openvino")


def test_a_missing_library_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "openvino" else found(name, *a))
    assert why_unbuildable("openvino") == "openvino is not installed; pip install openvino"
    monkeypatch.undo()
    assert why_unbuildable("openvino") is None


def test_build_target_goes_to_the_right_one(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(openvino_target, "build_openvino", lambda *args: calls.append(args) or "openvino plan")
    monkeypatch.setattr(targets, "_build_tensorrt", lambda target, *args: f"{target} plan")
    settings = BuildSettings()
    assert build_target("openvino", tmp_path, "bf16", settings) == "openvino plan"
    assert calls[0][:3] == (tmp_path / "model.onnx", tmp_path, "bf16")
    assert build_target("tensorrt", tmp_path, "fp16", settings) == "tensorrt plan"
    assert build_target("tensorrt_rtx", tmp_path, "fp16", settings) == "tensorrt_rtx plan"


def test_every_setting_reaches_the_plan(monkeypatch, tmp_path):
    from engine_build.targets import tensorrt

    seen = []

    def build_plan(_target, request, *_):
        seen.append(request)
        raise BuildError("enough")

    monkeypatch.setattr(tensorrt, "build_plan", build_plan)
    settings = BuildSettings(
        batch=BatchProfile(min=2, opt=3, max=5),
        workspace=7,
        optimization_level=4,
        tf32=False,
        max_aux_streams=0,
        avg_timing_iterations=6,
    )
    with pytest.raises(BuildError, match="enough"):
        build_target("tensorrt_rtx", tmp_path, "fp16", settings)
    (request,) = seen
    found = (request.workspace, request.optimization_level, request.tf32, request.max_aux_streams)
    assert found == (7, 4, False, 0) and request.avg_timing_iterations == 6
    assert str(request.profile) == "2/3/5"
