"""``python -m infer``: answers for people and machines, exit codes, one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from infer.bundle import read_manifest

ROOT = Path(__file__).parents[2]


# --- help ------------------------------------------------------------------------------------------------------------


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(f" {name} " in out for name in ("classify", "verify", "info"))


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("verify", ["exit code (0 good, 3 not good enough)", "--threshold", "--reference", "--limit"]),
        ("info", ["Checks every file's hash"]),
    ],
)
def test_help_of_commands(call, command, texts):
    code, out, _ = call(command, "--help")
    assert code == 0
    for text in texts:
        assert text in " ".join(out.split()), text


ERRORS = {
    "info of nothing": (lambda tiny, album: ["info", album], 1, "is not a bundle"),
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


# --- verify ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(own, shipped):
    fp16 = own(shipped("fp16"))
    shutil.copytree(shipped("fp32"), fp16.parent / shipped("fp32").name)
    return fp16


def test_verify_passes(call, pair, labelled):
    code, out, err = call("verify", pair, "--data", labelled, "--limit", 40)
    assert (code, err) == (0, "")
    assert "PASSED: top-1 " in out
    assert "agreement with FP32" in out
    assert "(FP32 " in out
    assert len(read_manifest(pair).accuracy) == 1


def test_verify_as_json(call, pair, labelled, tmp_path):
    data = shutil.copytree(labelled, tmp_path / "data")
    (data / "bag/broken.png").write_bytes(b"x")
    code, out, err = call(
        "verify", pair, "--data", data, "--json", "--reference", pair.parent / "iresnet50_fashion-fp32"
    )
    found = json.loads(out)
    assert code == 0
    assert (found["images"], found["passed"], len(found["failures"])) == (80, True, 1)
    assert found["agreement"] > 98
    assert "broken.png" in err
    stored = read_manifest(pair).accuracy[0]
    assert stored == {key: value for key, value in found.items() if key != "failures"}


def test_verify_fails_with_code_3(call, own, shipped, labelled, tmp_path):
    swapped = tmp_path / "data"
    names = sorted(path.name for path in labelled.iterdir())
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        shutil.copytree(labelled / name, swapped / other)  # every label is wrong
    bundle = own(shipped("fp16"))
    code, out, _ = call("verify", bundle, "--data", swapped, "--limit", 20)  # and there is nothing to compare with
    assert code == 3
    assert "FAILED: no FP32 reference" in out
    assert read_manifest(bundle).accuracy[0]["passed"] is False


def test_verify_threshold_decides(call, pair, labelled, monkeypatch):
    from infer import verify

    monkeypatch.setattr(verify, "measure", lambda *_: Figures())
    assert call("verify", pair, "--data", labelled, "--threshold", "0.97")[0] == 0
    code, out, _ = call("verify", pair, "--data", labelled, "--threshold", "0.98")
    assert code == 3
    assert "FAILED: top-1 78.00 % against 78.40 % needed (98.00% of FP32's 80.00 %)" in out


class Figures:
    """A measurement that loses two points."""

    def to_json(self):
        return {
            "images": 100, "labelled": 100, "top1": 78.0, "top5": 99.0, "reference_top1": 80.0, "reference_top5": 99.0,
            "agreement": 95.0, "disagreeing": 5, "max_logit_difference": 1.0, "mean_logit_difference": 0.1,
            "cosine": 0.99, "sqnr_db": 20.0,
        }  # fmt: skip


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
