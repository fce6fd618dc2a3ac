"""``python -m infer verify``: tables, JSON, CSV, the report, and the verdict as the exit code."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from report_data import verification
from terminals import Pipe, Terminal, check_fits

from infer.bundle import read_labels, read_manifest
from infer.bundle.accuracy_record import Counts
from infer.errors import InputError
from infer.verify.cli import _say, check_output
from infer.verify.evaluation import Evaluation
from infer.verify.tensor_errors import TensorError


@pytest.fixture
def pair(own, shipped):
    fp16 = own(shipped("fp16"))
    shutil.copytree(shipped("fp32"), fp16.parent / shipped("fp32").name)
    return fp16


def test_verify_passes(call, pair, labelled):
    code, out, err = call("verify", pair, "--data", labelled, "--limit", 40, "--threshold", "0.8")
    assert (code, err) == (0, "")
    assert "PASSED: top-1 " in out
    assert "agreement with FP32" in out
    assert "(FP32 " in out
    assert "top-1, 95 % interval" in out
    assert "calibration error" in out
    assert "Diagnosis" not in out  # nothing is published for these weights
    assert len(read_manifest(pair).accuracy) == 1


def test_verify_as_json(call, pair, labelled, tmp_path):
    data = shutil.copytree(labelled, tmp_path / "data")
    (data / "bag/broken.png").write_bytes(b"x")
    code, out, err = call(
        "verify", pair, "--data", data, "--json", "--reference", pair.parent / "iresnet50_fashion-fp32",
        "--max-unreadable", 0.02, "--threshold", 0.8,
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert (found["images"], found["outcome"], len(found["failures"])) == (80, "passed", 1)
    assert found["agreement"] > 98
    assert "broken.png" in err
    stored = json.loads(msgspec.json.encode(read_manifest(pair).accuracy[0].to_json()))
    assert stored == {
        key: value for key, value in found.items() if key not in ("failures", "left_out", "skipped", "evaluation")
    }
    assert [row["images"] for row in found["evaluation"]["classes"]] == [8] * 10
    assert sum(b["images"] for b in found["evaluation"]["reliability"]) == 80
    assert len(found["evaluation"]["differing"]) == 24


def test_verify_fails_with_code_3(call, own, shipped, labelled, tmp_path):
    swapped = tmp_path / "data"
    names = sorted(path.name for path in labelled.iterdir())
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        shutil.copytree(labelled / name, swapped / other)  # every label is wrong
    bundle = own(shipped("fp16"))
    code, out, _ = call("verify", bundle, "--data", swapped, "--limit", 20)  # and there is nothing to compare with
    assert code == 3
    assert "FAILED: no FP32 reference" in out
    assert read_manifest(bundle).accuracy[0].outcome == "failed"


@pytest.mark.parametrize(
    ("threshold", "code", "word"), [("0.90", 0, "PASSED"), ("0.99", 3, "FAILED"), ("0.975", 4, "INCONCLUSIVE")]
)
def test_the_verdict_is_the_exit_code(call, pair, labelled, monkeypatch, threshold, code, word):
    """Two points of 80 are lost, on 4,000 images."""
    counts = Counts(
        images=4000, labelled=4000, top1=3120, top5=3960, reference_images=4000, reference_top1=3200,
        reference_top5=3960, lost=120, gained=40, agreeing=3800,
    )  # fmt: skip
    monkeypatch.setattr(Evaluation, "counts", lambda *_: counts)
    found, out, _ = call("verify", pair, "--data", labelled, "--threshold", threshold)
    assert found == code
    assert f"{word}: top-1 78.00 %, FP32 80.00 %: the loss lies between 1.4" in out
    assert read_manifest(pair).accuracy[0].outcome == word.lower()


def test_few_images_are_not_enough(call, pair, labelled):
    code, out, _ = call("verify", pair, "--data", labelled, "--limit", 40)
    assert code == 4
    assert "INCONCLUSIVE: top-1" in out and "images would decide it" in out


def test_labels_that_count_from_one_never_pass(call, pair, labelled, tmp_path):
    truth = tmp_path / "truth.txt"
    names = sorted(path.name for path in labelled.iterdir())
    order = [label.replace(" ", "_") for label in read_labels(pair, read_manifest(pair))]
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = []
    for name in names:
        for number, path in enumerate(sorted((labelled / name).iterdir())):
            shutil.copy(path, flat / f"{name}{number}.png")
            lines.append(f"{name}{number}.png {(order.index(name) + 1) % 10}")
    truth.write_text("\n".join(lines))
    code, out, _ = call("verify", pair, "--data", flat, "--ground-truth", truth, "--threshold", "0")
    assert code == 3
    assert "FAILED: FP32 itself has" in out and "the labels count from 1" in out


def test_a_bundle_that_cannot_be_written_has_its_verdict_all_the_same(call, pair, labelled, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("infer.verify.run.add_accuracy", refuse)
    code, out, err = call("verify", pair, "--data", labelled, "--limit", 40, "--threshold", "0.8")
    assert code == 0 and "PASSED" in out
    assert err == f"not recorded: {pair / 'manifest.json'} cannot be written (Permission denied)\n"


def test_unreadable_images_fail_the_verdict(call, pair, labelled, tmp_path):
    data = shutil.copytree(labelled, tmp_path / "data")
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        if number % 20:
            path.write_bytes(b"no picture")
    code, out, _ = call("verify", pair, "--data", data)
    assert code == 3
    assert "FAILED: 76 of 80 images could not be read, at most 1.00 % may be\n" in out


def test_verify_writes_csv_and_report(call, pair, labelled, tmp_path):
    report, table = tmp_path / "out/report.html", tmp_path / "out/rows.csv"
    code, out, _ = call("verify", pair, "--data", labelled, "--limit", 40, "--report", report, "--csv", table)
    assert code == 4
    assert f"written: {report}" in out and f"written: {table}" in out
    assert "iresnet50_fashion fp16 on openvino" in report.read_text()
    rows = list(csv.DictReader(table.open(newline="")))
    record = read_manifest(pair).accuracy[0].to_json()
    assert len(rows) == 40
    assert list(rows[0]) == [
        "name", "true", "predicted", "score", "reference", "reference_score", "agrees", "divergence",
        "true_label", "predicted_label", "reference_label",
    ]  # fmt: skip
    assert 100 * np.mean([row["true"] == row["predicted"] for row in rows]) == record["top1"]
    assert 100 * np.mean([row["true"] == row["reference"] for row in rows]) == record["reference_top1"]
    assert sum(row["agrees"] == "False" for row in rows) == record["disagreeing"]
    for row in rows:
        assert row["true_label"].replace(" ", "_") == row["name"].split("/")[-2]
        assert 0 < float(row["score"]) <= 1
    assert sorted(path.name for path in report.parent.iterdir()) == ["report.html", "rows.csv"]


def test_nothing_partial_is_left(call, pair, labelled, tmp_path):
    data = shutil.copytree(labelled, tmp_path / "data")
    next((data / "bag").iterdir()).write_bytes(b"no picture")
    code, _, err = call(
        "verify", pair, "--data", data, "--strict", "--csv", tmp_path / "out/x.csv", "--report", tmp_path / "out/x.html"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert list((tmp_path / "out").iterdir()) == []


def test_outputs_are_checked_before_the_images_are_run(call, pair, tmp_path):
    for option in ("--report", "--csv"):
        code, out, err = call("verify", pair, "--data", tmp_path / "no data", option, tmp_path)
        assert (code, out) == (2, "")
        assert f"{option}: {tmp_path} is a folder" in err
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"--csv: .*/file/x.csv cannot be written"):
        check_output("--csv", tmp_path / "file/x.csv")
    check_output("--csv", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        check_output("--csv", tmp_path / "x.csv")


def test_real_labels_need_imagenet(call, pair, labelled, tmp_path):
    (tmp_path / "real.json").write_text("[[1]]")
    code, out, err = call("verify", pair, "--data", labelled, "--real", tmp_path / "real.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "leave out --real for other images" in err


@pytest.mark.parametrize("width", [80, 60, 40])
def test_the_text_fits_a_terminal(monkeypatch, width):
    errors = [TensorError(f"layer{n}.0.bn1.running/output_{n}", 30.0 + n, 0.0123, 0.001) for n in range(30)]
    found = replace(verification(), layers=errors)
    texts = {}
    for columns in (width, None):
        out = Pipe() if columns is None else Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", str(columns))
            _say(Path("/a/long/way/to/engines/iresnet50-int8"), found, as_json=False, layers=True)
        texts[columns] = out.getvalue() if columns is None else out.text
    check_fits(texts[width], texts[None], width, {"no", "room", "for"})
    assert "PASSED: good enough" in texts[width] and "SQNR dB" in texts[width]
