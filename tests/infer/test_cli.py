"""``python -m infer``: answers for people and machines, exit codes, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# --- help ------------------------------------------------------------------------------------------------------------


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(f" {name} " in out for name in ("classify", "verify", "info"))


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        (
            "verify",
            ["the exit code is the verdict: 0 good, 3 not, 4 too few images", "--threshold", "--reference", "--limit"],
        ),
        ("info", ["Checks every file's hash"]),
    ],
)
def test_help_of_commands(call, command, texts):
    code, out, _ = call(command, "--help")
    assert code == 0
    for text in texts:
        assert text in " ".join(out.split()), text


ERRORS = {
    "info of nothing": (lambda tiny, album: ["info", album], 2, "is not a bundle"),
    "verify nothing": (lambda tiny, album: ["verify", tiny, "--data", album / "none"], 2, "no such file or folder"),
    "verify without labels": (lambda tiny, album: ["verify", tiny, "--data", album], 2, "no classes found"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line(call, tiny, album, case):
    arguments, expected, message = ERRORS[case]
    code, out, err = call(*arguments(tiny, album))
    assert (code, out) == (expected, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


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
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{name}: expected sha256" in err
