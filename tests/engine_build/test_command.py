"""The command ``iresnet``: one door, loaded piece by piece."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from calibration.cli import app as cache_app
from engine_build import __version__
from engine_build.command import COMMANDS, app, load
from infer.cli import app as infer_app

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda"}
PROGRAM = """
import sys
from engine_build.command import app
try:
    app(sys.argv[1:], prog_name="iresnet")
finally:
    print("LOADED", *sorted(sys.modules), file=sys.stderr)
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


def process(*arguments, program=PROGRAM, **environment):
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def modules(done):
    return set(done.stderr.rpartition("LOADED")[2].split())


def test_help_groups_the_commands_and_loads_none():
    done = process("--help")
    assert done.returncode == 0, done.stderr
    for panel in {entry.panel for entry in COMMANDS.values()}:
        assert panel in done.stdout
    for name, entry in COMMANDS.items():
        assert f" {name} " in done.stdout
        assert " ".join(entry.text.split())[:60] in " ".join(done.stdout.split())
    loaded = modules(done)
    assert not loaded & (HEAVY | {entry.module for entry in COMMANDS.values()})


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_loads_nothing_heavy(name):
    done = process(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"iresnet {name}" in done.stdout
    assert not modules(done) & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name):
    command = load(name, COMMANDS[name])
    assert " ".join(command.help.split("\n\n")[0].split()) == COMMANDS[name].text


def test_every_command_of_the_packages_is_in_the_table():
    from engine_build.cli import app as build_app

    behind = {name for own in (build_app, infer_app) for name in typer.main.get_group(own).commands}
    assert {*behind, "cache"} == set(COMMANDS)
    assert set(typer.main.get_group(cache_app).commands) == {"run", "show"}


def test_version(call):
    assert call("--version") == (0, f"iresnet-trt {__version__}\n", "")


def test_without_a_command_the_help_is_shown(call):
    code, out, err = call()
    assert code == 2 and "From a checkpoint to a bundle" in out + err


def test_an_unknown_command(call):
    code, _, err = call("clasify")
    assert code == 2 and "No such command 'clasify'" in err


@pytest.mark.parametrize(
    "arguments",
    [["build", "-m", "iresnet18", "-t", "openvino"], ["calibrate", "-m", "iresnet18"], ["models"], ["demo"]],
)
def test_a_missing_package_is_one_line_that_names_the_extra(arguments):
    hidden = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in HEAVY)
    done = process(*arguments, program=hidden + PROGRAM.replace("finally:", "finally:\n    pass\nif 0:"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: this needs ") and "pip install 'iresnet-trt[build]'" in done.stderr


def test_classify_needs_nothing_that_builds(tiny, tmp_path):
    """A deployment without torch and onnx; ``tiny`` runs on OpenVINO."""
    from PIL import Image

    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    absent = sorted(HEAVY - {"openvino"})
    hidden = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in absent)
    done = process("classify", str(tiny), str(tmp_path / "red.png"), "--json", program=hidden + PROGRAM)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == str(tmp_path / "red.png")


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        (["calibrate", "-m", "iresnet18", "--images", "4"], "--images is now --limit"),
        (["cache", "run", "x", "--images=4"], "--images is now --limit"),
        (["verify", "x", "-d", "y", "--layers", "64"], "--layers is now --layers-limit"),
    ],
)
def test_renamed_options_fail_with_their_new_name(call, arguments, new):
    assert call(*arguments) == (2, "", f"error: {new}\n")


def test_shell_completion_knows_the_commands():
    done = process(program=PROGRAM, _IRESNET_COMPLETE="complete_bash", COMP_WORDS="iresnet c", COMP_CWORD="1")
    assert set(done.stdout.split()) >= {"calibrate", "cache", "classify"}


@pytest.mark.parametrize("module", ["engine_build", "calibration", "infer"])
def test_the_packages_are_doors_too(module):
    command = [sys.executable, "-m", module, "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"python -m {module}" in done.stdout
