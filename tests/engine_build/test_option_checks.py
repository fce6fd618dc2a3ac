"""Options that cannot be used are refused before any work: no graph is loaded, nothing is written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from small_models import SPEC

from calibration.request import Request
from engine_build import build_bundle as pipeline
from engine_build.build_bundle import BuildOptions, build
from engine_build.quantise.auto import AutoOptions
from engine_build.quantise.int8 import Int8Options, find_cache
from engine_build.source import SourceOptions, Steps, load_source
from engine_build.targets import BuildSettings
from infer.bundle import BatchProfile
from infer.errors import InputError

NOWHERE = Path("/no/such/file")


@pytest.fixture
def options(tmp_path, tiny_onnx, monkeypatch):
    def load(*_):
        raise AssertionError("the work began")

    monkeypatch.setattr(pipeline, "load_source", load)
    return BuildOptions(
        model="tiny", onnx=tiny_onnx, precision="fp32", preprocessing=SPEC, targets=("tensorrt_rtx",),
        output=tmp_path / "bundle",
    )  # fmt: skip


def calibrated(**changes):
    return {"precision": "int8", "int8": Int8Options(calibration=replace(Request(()), **changes))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": BuildSettings(compute_capabilities=("9.9",))}, "builds for 7.5, 8.0, .*, found 9.9"),
        ({"settings": BuildSettings(compute_capabilities=("8.9", ""))}, "expected a form like 8.6"),
        ({"settings": BuildSettings(compute_capabilities=())}, "found none"),
        (
            {"settings": BuildSettings(compute_capabilities=("7.5", "8.9")), "precision": "int8"},
            "compute capabilities: int8 needs 8.0 or newer, found 7.5",
        ),
        (
            {"settings": BuildSettings(compute_capabilities=("8.6",)), "precision": "fp8"},
            "compute capabilities: fp8 needs 8.9 or newer, found 8.6",
        ),
        (
            {"settings": BuildSettings(compute_capabilities=("8.9",)), "targets": ("openvino",)},
            "compute capabilities: expected the target tensorrt_rtx, found openvino",
        ),
        ({"settings": BuildSettings(hardware_compatible=True)}, "expected the target tensorrt, found tensorrt_rtx"),
        (
            {"settings": BuildSettings(hardware_compatible=True), "targets": ("auto",)},
            "hardware compatible: expected the target tensorrt, found tensorrt_rtx, openvino",
        ),
        (
            {"settings": BuildSettings(version_compatible=True), "targets": ("openvino",)},
            "version compatible: expected a target of tensorrt, tensorrt_rtx, found openvino",
        ),
        ({"settings": BuildSettings(workspace=1 << 30), "targets": ("openvino",)}, "workspace: expected a target of"),
        ({"targets": ("",)}, "unknown target ''"),
        ({"targets": ("openvino", "auto")}, "unknown target 'auto'"),
        ({"precision": ""}, "unknown precision ''"),
        ({"labels": NOWHERE}, "no label file at /no/such/file"),
        ({"min_sqnr": math.nan}, "min sqnr: expected a number of dB, found nan"),
        ({"width": 0.5}, "width: an ONNX graph has its own, found 0.5"),
        ({"num_classes": 3}, "num_classes: an ONNX graph has its own, found 3"),
        ({"weights": NOWHERE}, "weights: an ONNX graph has its own"),
        ({"width": math.nan, "onnx": None}, "width: expected a number above 0, such as 0.25, found nan"),
        ({"width": math.inf, "onnx": None}, "width: expected a number above 0, such as 0.25, found inf"),
        ({"width": -1.0, "onnx": None}, "width: expected a number above 0, such as 0.25, found -1.0"),
        ({"seed": -1}, "seed: expected a whole number from 0 to .*, found -1"),
        ({"seed": 2**70}, "seed: expected a whole number from 0 to"),
        (calibrated(method="foo"), "unknown calibration method 'foo'"),
        (calibrated(method=""), "unknown calibration method ''"),
        (calibrated(method="percentile", parameters={"percentile": math.nan}), "from 50 to 100, found nan"),
        (calibrated(limit=0), "calibration images: expected at least 1, found 0"),
        (calibrated(data=("/no/such/folder",)), "no image found"),
        (calibrated(data=("",)), "no image found"),
        ({"precision": "fp8", "int8": Int8Options(cache=NOWHERE)}, "no calibration cache at /no/such/file"),
        ({"precision": "auto", "auto": AutoOptions(data=("/no/such/folder",))}, "no image found"),
    ],
)
def test_refused_before_the_work(options, changes, message):
    with pytest.raises(InputError, match=message):
        build(replace(options, **changes))
    assert not options.folder.parent.exists() or not any(options.folder.parent.iterdir())


def test_what_applies_to_one_of_several_targets_is_taken(monkeypatch, options):
    """hardware_compatible with tensorrt and tensorrt_rtx: the one takes it, the other is portable by its list."""
    monkeypatch.setattr(pipeline, "resolve_targets", lambda names: names)
    settings = BuildSettings(hardware_compatible=True, compute_capabilities=("8.9",))
    with pytest.raises(AssertionError, match="the work began"):
        build(replace(options, targets=("tensorrt", "tensorrt_rtx"), settings=settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workspace": 2**63}, "workspace: expected at most"),
        ({"workspace": -1}, "workspace: expected at least 1 byte"),
        ({"batch": BatchProfile(min=1, opt=1, max=2**31)}, "batch: expected at most 2147483647 images"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        BuildSettings(**settings)


def test_layers_to_leave_out_have_to_be_there(tiny_onnx, tmp_path):
    source = load_source(SourceOptions(model="tiny", onnx=tiny_onnx, preprocessing=SPEC), Steps())
    options = Int8Options(exclude=("fc", "layer9.0.conv1"), cache=NOWHERE)
    with pytest.raises(InputError, match=r"exclude: the graph has no node layer9.0.conv1; a bundle's manifest"):
        find_cache(source, options, tmp_path / "cache", "tool", print)
