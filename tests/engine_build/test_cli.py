"""``python -m engine_build``: help, results for people and machines, and every error on one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import classifier
from typer.testing import CliRunner

from engine_build.cli import app
from engine_build.cli_options import batch_profile, parse_targets
from engine_build.network import zoo
from infer.bundle import read_manifest
from infer.bundle.preprocessing import Preprocessing
from infer.errors import GraphError, InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run a command in an empty folder: its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def tiny_build(tiny_onnx, tmp_path):
    """Arguments of a build that takes a second."""
    return ("build", "--model", "tiny", "--onnx", tiny_onnx, "--crop", 32, "--resize", 32, "--target", "openvino")


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "From an iResNet checkpoint" in out
    assert all(f" {name} " in out for name in ("build", "models", "demo"))


def test_help_of_build_explains_the_options(call):
    code, out, _ = call("build", "--help")
    assert code == 0
    for text in (
        "--precision",
        "--require-weights",
        "fp32|fp16",
        "Example: iresnet build -m iresnet101",
        "--max-batch",
        "--onnx",
    ):
        assert text in out, text


def test_an_unknown_option(call):
    code, _, err = call("build", "--model", "iresnet50", "--precison", "fp16")
    assert code == 2
    assert "--precison" in err


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_table_fits_a_terminal(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call("models")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert set(zoo.MODELS) <= set(rows)  # every name in full
    assert rows["iresnet101"] == ["iresnet101", "44,549,160", "7.840", "224", "1000", "78.64", "94.24", "official"]
    assert rows["iresnet50_fashion"][-1] == "shipped"
    assert rows["iresnet34"][-3:] == ["-", "-", "none"]


def test_models_as_json(call, monkeypatch, tmp_path):
    monkeypatch.setenv("IRESNET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache/weights").mkdir(parents=True)
    (tmp_path / "cache/weights/iresnet152.pth").touch()
    code, out, err = call("models", "--json")
    rows = {row["model"]: row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert rows["iresnet200"]["parameters"] == 64_673_832
    assert rows["iresnet50"]["gmac"] == pytest.approx(4.128, abs=5e-4)
    assert rows["iresnet152"]["weights"] == "cached"
    assert rows["iresnet101"]["weights"] == "official"


# --- build -----------------------------------------------------------------------------------------------------------


def test_build_for_people(call, tiny_build, tmp_path):
    code, out, err = call(*tiny_build, "--precision", "fp32")
    assert code == 0
    folder = tmp_path / "engines/tiny-fp32"  # the default place
    assert read_manifest(folder).precision == "fp32"
    assert "engines/tiny-fp32" in out
    assert "convolutions, products" in out
    assert "2 fp32" in out
    assert "times: load" in out
    assert "graph: " in err  # steps are no result
    assert "RANDOM" not in out


def test_build_as_json(call, tiny_build, tmp_path):
    code, out, _ = call(*tiny_build, "--precision", "fp16", "--output", tmp_path / "x", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["bundle"], result["precision"], result["trained"]) == (str(tmp_path / "x"), "fp16", True)
    assert result["plans"][0]["target"] == "openvino"
    assert result["plans"][0]["audit"]["mac_nodes"] == 2
    assert {"load", "passes", "precision", "openvino"} <= set(result["seconds"])


def test_preprocessing_options_arrive(call, tiny_build, tmp_path):
    code, _, _ = call(
        *tiny_build, "-o", tmp_path / "x", "--mean", "0.5,0.4,0.3", "--std", "1,2,3", "--interpolation", "bicubic",
        "--min-batch", 2, "--opt-batch", 4, "--max-batch", 8,
    )  # fmt: skip
    manifest = read_manifest(tmp_path / "x")
    assert code == 0
    assert manifest.preprocessing == Preprocessing(32, 32, (0.5, 0.4, 0.3), (1, 2, 3), "bicubic")
    assert (manifest.batch.min, manifest.batch.opt, manifest.batch.max) == (2, 4, 8)


def test_untrained_builds_warn_loudly(call, monkeypatch, narrow_row, tmp_path):
    from engine_build.graph import export
    from engine_build.graph.reference import graph_logits

    monkeypatch.setattr(
        export, "export_torch", lambda *_: (classifier(), graph_logits(classifier(), narrow_row.preprocessing))
    )
    code, out, err = call("build", "-m", narrow_row.name, "-t", "openvino", "-o", tmp_path / "x", "--offline")
    assert code == 0
    assert f"WARNING: {narrow_row.name} has RANDOM weights" in out
    assert "UNTRAINED" in err
    assert not read_manifest(tmp_path / "x").model.trained


BAD = {
    "target": (["-m", "iresnet18", "-t", "openvino,tpu"], 2, "--target: expected one of auto, tensorrt,"),
    "auto and more": (["-m", "iresnet18", "-t", "auto,openvino"], 2, "pass it alone"),
    "batch not rising": (["-m", "iresnet18", "--opt-batch", "9", "--max-batch", "8"], 2, "found 1, 9, 8"),
    "no TF32 on a CPU": (["-m", "iresnet18", "--no-tf32"], 2, "no TF32: expected a target of tensorrt"),
    "level on a CPU": (["-m", "iresnet18", "--optimization-level", "5"], 2, "optimization level: expected a target"),
    "streams on a CPU": (["-m", "iresnet18", "--max-aux-streams", "0"], 2, "auxiliary streams: expected a target"),
    "averages on a CPU": (["-m", "iresnet18", "--avg-timing", "4"], 2, "averaged timing: expected a target"),
    "old batch": (["-m", "iresnet18", "--batch", "8"], 2, "--batch is now --max-batch, with --min-batch and"),
    "old images": (["-m", "iresnet18", "--images=8"], 2, "--images is now --limit"),
    "old budget": (["-m", "iresnet18", "--budget-images", "8"], 2, "--budget-images is now --budget-limit"),
    "no such model": (["-m", "resnet50"], 2, "unknown model 'resnet50'; known: iresnet18,"),
    "unknown GPU": (
        ["-m", "iresnet18", "--compute-capability", "9.9", "-t", "tensorrt_rtx"], 2, "builds for 7.5, 8.0"
    ),
    "no GPU": (["-m", "iresnet18", "--compute-capability", "", "-t", "tensorrt_rtx"], 2, "expected a form like 8.6"),
    "hardware": (["-m", "iresnet18", "--hardware-compatible", "-t", "tensorrt_rtx"], 2, "expected the target tensorrt"),
    "no width": (["-m", "iresnet18", "--width", "nan", "--offline"], 2, "width: expected a number, found nan"),
    "negative width": (["-m", "iresnet18", "--width", "-1", "--offline"], 2, "width: expected a number above 0"),
    "seed": (["-m", "iresnet18", "--seed", "-1", "--offline"], 2, "seed: expected a whole number from 0"),
    "mean of two": (["-m", "iresnet18", "--mean", "1,2"], 2, "--mean [1.0, 2.0]: Expected `array` of length 3, got 2"),
    "mean of words": (["-m", "iresnet18", "--mean", "a,b,c"], 2, "mean: expected three numbers such as"),
    "std 0": (["-m", "iresnet18", "--std", "0,1,1"], 2, "--std [0.0, 1.0, 1.0]: Expected `float` > 0.0"),
    "crop": (["-m", "iresnet18", "--crop", "0"], 2, "--crop 0: Expected `int` >= 1"),
    "width": (["-m", "iresnet18", "--width", "0.3", "--offline"], 2, "width 0.3 gives 19.2 channels"),
    "classes": (["-m", "iresnet18", "--num-classes", "0", "--offline"], 2, "classes: expected at least 2, found 0"),
    "weights": (["-m", "iresnet18", "--weights", "none.pth"], 2, "no checkpoint at none.pth"),
    "onnx": (["-m", "mine", "--onnx", "none.onnx"], 2, "no ONNX file at none.onnx"),
    "required": (["-m", "iresnet18", "--require-weights"], 2, "no trained weights for iresnet18"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line_and_leave_nothing(call, tmp_path, case):
    arguments, expected, message = BAD[case]
    code, out, err = call("build", *(["-t", "openvino"] if "-t" not in arguments else []), *arguments)
    assert code == expected
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


#: Refused by the parser, in its own form.
USAGE = [
    ("--precision", "fp17"), ("--method", "best"), ("--residual", "all"), ("--rounding", "up"),
    ("--interpolation", "cubic"), ("--min-batch", "0"), ("--max-batch", "many"), ("--workspace", "-5"),
    ("--workspace", "0"), ("--optimization-level", "6"), ("--limit", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), USAGE)
def test_values_that_are_none_are_refused_before_any_work(call, tmp_path, option, value):
    code, out, err = call("build", "-m", "iresnet18", option, value)
    assert (code, out) == (2, "")
    assert f"Invalid value for '{option}'" in err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_fit(call, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pth")
    code, _, err = call("build", "-m", "iresnet18", "-t", "openvino", "--weights", "w.pth", "--width", 0.0625)
    assert code == 2
    assert "w.pth: expected a state_dict, found 1 tensors of another network: a" in err
    assert err.count("\n") == 1
    assert files(tmp_path) == [tmp_path / "w.pth"]


def test_a_folder_of_something_else_is_refused(call, tiny_build, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    code, _, err = call(*tiny_build, "-o", tmp_path / "mine")
    assert (code, err.count("\n")) == (2, 1)
    assert files(tmp_path) == [tmp_path / "mine/letter.txt"]


def test_debug_shows_the_traceback(call):
    with pytest.raises(GraphError, match="no ONNX file"):
        call("build", "-m", "x", "--onnx", "none.onnx", "-t", "openvino", "--debug")


def test_a_named_target_says_what_is_missing(call, monkeypatch):
    from engine_build import build_bundle as pipeline

    monkeypatch.setattr(pipeline, "why_unbuildable", {"tensorrt": "the Python module tensorrt is not installed"}.get)
    code, _, err = call("build", "-m", "iresnet18", "-t", "tensorrt")
    assert code == 1
    assert err == "error: target tensorrt cannot be built here: the Python module tensorrt is not installed\n"


def test_as_a_process(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "engine_build", "build", "--model", "resnet50"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown model 'resnet50'")
    assert done.stderr.count("\n") == 1


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ((1, None, 128), (1, 32, 128)), ((1, None, 8), (1, 8, 8)), ((1, None, 1), (1, 1, 1)),
        ((40, None, 64), (40, 40, 64)), ((2, 4, 4), (2, 4, 4)),
    ],
)  # fmt: skip
def test_batch(given, sizes):
    profile = batch_profile(*given)
    assert (profile.min, profile.opt, profile.max) == sizes


@pytest.mark.parametrize("given", [(3, 2, 1), (2, 1, 4), (1, 8, 4), (9, None, 8)])
def test_bad_batch(given):
    with pytest.raises(InputError, match="expected --min-batch <= --opt-batch <= --max-batch"):
        batch_profile(*given)


def test_targets():
    assert parse_targets("auto") == ("auto",)
    assert parse_targets("openvino, tensorrt,openvino") == ("openvino", "tensorrt")
    with pytest.raises(InputError, match="found ''"):
        parse_targets("openvino,")


def test_options_reach_the_builder(call, monkeypatch, tiny_build, tmp_path):
    from engine_build import build_bundle as pipeline

    seen = []

    def build_target(_target, _folder, *, settings, **_options):
        seen.append(settings)
        raise GraphError("enough")

    monkeypatch.setattr(pipeline, "build_target", build_target)
    monkeypatch.setattr(pipeline, "check_options", lambda *_: None)
    options = ["--optimization-level", 5, "--no-tf32", "--max-aux-streams", 0, "--avg-timing", 4, "--workspace", 64]
    code, _, err = call(*tiny_build, *options, "-o", tmp_path / "x")
    assert code == 2 and "enough" in err
    (settings,) = seen
    found = (settings.optimization_level, settings.tf32, settings.max_aux_streams, settings.avg_timing_iterations)
    assert found == (5, False, 0, 4) and settings.workspace == 64 << 20
