"""``python -m infer``: answers for people and machines, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from infer.cli import app
from infer.errors import BundleError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(monkeypatch):
    """Run a command: its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def album(tmp_path):
    """Three readable images, one that is not, and something that is no image."""
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "sub/c.webp"):
        Image.fromarray(rng.integers(0, 256, (50, 40, 3)).astype(np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    (folder / "notes.txt").write_text("not an image")
    return folder


# --- help ------------------------------------------------------------------------------------------------------------


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(f" {name} " in out for name in ("classify", "verify", "info"))


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("classify", ["Name what is on images", "--top", "--json", "--strict", "--allow-untrained"]),
        ("verify", ["exit code (0 good, 3 not good enough)", "--threshold", "--reference", "--limit"]),
        ("info", ["Checks every file's hash"]),
    ],
)
def test_help_of_commands(call, command, texts):
    code, out, _ = call(command, "--help")
    assert code == 0
    for text in texts:
        assert text in " ".join(out.split()), text


# --- classify --------------------------------------------------------------------------------------------------------


def test_classify_names_the_best_classes(call, shipped, labelled):
    photo = next((labelled / "ankle_boot").iterdir())
    code, out, err = call("classify", shipped("fp16"), photo)
    assert code == 0
    name, *classes = out.splitlines()
    assert name == str(photo)
    assert len(classes) == 5
    found = [re.fullmatch(r" +(\d+\.\d\d) %  (.+)", line) for line in classes]
    chances = [float(match[1]) for match in found]
    assert found[0][2] == "ankle boot"
    assert chances == sorted(chances, reverse=True)
    assert 95 < sum(chances) <= 100.05
    assert "1 images classified by" in err
    assert "on openvino" in err


def test_classify_as_json(call, tiny, album):
    code, out, err = call("classify", tiny, album, "--json", "--top", 2)
    rows = {Path(row["name"]).name: row for row in map(json.loads, out.splitlines())}
    assert code == 1  # one could not be read
    assert set(rows) == {"a.png", "b.jpg", "c.webp", "broken.jpg"}
    assert [len(rows[name]["top"]) for name in ("a.png", "b.jpg", "c.webp")] == [2, 2, 2]
    assert set(rows["a.png"]["top"][0]) == {"index", "label", "score"}
    assert "broken.jpg" in rows["broken.jpg"]["error"]
    assert err.count("\n") == 1  # nothing but the error


def test_an_unreadable_image_is_named_and_counted(call, tiny, album):
    code, out, err = call("classify", tiny, album)
    assert code == 1
    assert out.count("class ") == 15
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "broken.jpg" in errors[0]
    assert "3 images classified by" in err
    assert "1 could not be read" in err


def test_nothing_but_unreadable_images(call, tiny, album):
    code, out, err = call("classify", tiny, album / "broken.jpg")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "broken.jpg" in err


def test_strict_stops(call, tiny, album):
    code, _, err = call("classify", tiny, album, "--strict")
    assert code == 2
    assert "broken.jpg" in err
    assert err.count("\n") == 1


def test_tar_files_and_patterns(call, tiny, album, tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(album / "a.png", "deep/a.png")
    code, out, _ = call("classify", tiny, tmp_path / "x.tar.gz", f"{album}/*.png", "--json")
    assert code == 0
    assert [Path(json.loads(line)["name"]).name for line in out.splitlines()] == ["a.png", "a.png"]


def test_classify_gives_the_same_on_another_target(call, tiny, album):
    answers = []
    for target in ("openvino", "onnxruntime"):
        code, out, _ = call("classify", tiny, album / "a.png", "--json", "--target", target, "--threads", 1)
        assert code == 0
        answers.append([r["index"] for r in json.loads(out)["top"]])
    assert answers[0] == answers[1]


def test_untrained(call, untrained, album):
    code, out, err = call("classify", untrained, album / "a.png")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "built from random weights" in err
    code, out, _ = call("classify", untrained, album / "a.png", "--allow-untrained")
    assert code == 0
    assert "class " in out


ERRORS = {
    "no bundle": (lambda tiny, album: ["classify", album, album / "a.png"], 1, "is not a bundle"),
    "no image": (lambda tiny, album: ["classify", tiny, album / "none.jpg"], 2, "no such file or folder"),
    "no images in a folder": (lambda tiny, album: ["classify", tiny, tiny], 2, "no image in this folder"),
    "unknown target": (lambda tiny, album: ["classify", tiny, album / "a.png", "-t", "tpu"], 2, "unknown target 'tpu'"),
    "target not built": (
        lambda tiny, album: ["classify", tiny, album / "a.png", "-t", "tensorrt_rtx"], 1, "tensorrt_rtx",
    ),
    "info of nothing": (lambda tiny, album: ["info", album], 1, "is not a bundle"),
    "verify nothing": (lambda tiny, album: ["verify", tiny, "--data", album / "none"], 2, "no such file or folder"),
    "verify without labels": (lambda tiny, album: ["verify", tiny, "--data", album], 2, "no classes found"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line(call, tiny, album, case):
    arguments, expected, message = ERRORS[case]
    code, out, err = call(*arguments(tiny, album))
    assert (code, out) == (expected, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("top", ["0", "6", "x"])
def test_values_out_of_range_are_usage_errors(call, tiny, album, top):
    code, out, err = call("classify", tiny, album / "a.png", "--top", top)
    assert (code, out) == (2, "")
    assert "--top" in err


def test_debug_shows_the_traceback(call, album):
    with pytest.raises(BundleError):
        call("classify", album, album / "a.png", "--debug")


def test_as_a_process(tiny, album):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "infer", "classify", str(tiny), str(album), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 4
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


# --- info ------------------------------------------------------------------------------------------------------------


def test_info(call, shipped):
    code, out, _ = call("info", shipped("fp16"))
    assert code == 0
    for text in ("iresnet50_fashion, 10 classes, fp16", "uint8 [-1, 64, 64, 3]", "shipped", "runs here", "1 to 128"):
        assert text in out, text


def test_info_as_json(call, untrained):
    code, out, _ = call("info", untrained, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["model"]["trained"] is False
    assert found["unavailable"] == {"openvino": None}


def test_info_says_untrained(call, untrained):
    assert "UNTRAINED" in call("info", untrained)[1]


@pytest.mark.parametrize("name", ["model.onnx", "openvino.bin", "labels.txt"])
def test_info_checks_every_hash(call, own, tiny, name):
    bundle = own(tiny)
    data = bytearray((bundle / name).read_bytes())
    data[0] ^= 1
    (bundle / name).write_bytes(data)
    code, out, err = call("info", bundle)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{name}: expected sha256" in err
