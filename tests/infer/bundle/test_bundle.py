"""The bundle: what is checked, and that it is checked before any backend sees a file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import msgspec
import pytest

from infer import open_bundle
from infer.backends import onnxruntime, openvino, tensorrt
from infer.bundle import add_accuracy, check_files, file_entry, find_plan, read_labels, read_manifest, write_manifest
from infer.bundle.accuracy_record import Accuracy, Counts, Figures
from infer.errors import BundleError, TargetUnavailableError


@pytest.fixture
def bundle(own, tiny):
    return own(tiny)


def edit(folder, change):
    """Let ``change`` alter the manifest as a JSON value."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def flip(path, at=-20):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def put(*keys, to):
    """A change that sets the entry under ``keys``; None deletes it."""

    def change(value):
        *way, last = keys
        for key in way:
            value = value[key]
        if to is None:
            del value[last]
        else:
            value[last] = to

    return change


def measured(**changes) -> Accuracy:
    """A measurement, with fields to choose."""
    fields = {
        "target": "openvino", "device": "CPU", "plan_sha256": None, "data": "val", "reference": "fp32",
        "outcome": "passed", "verdict": "good", "threshold": 0.99, "measured": "now", "counts": Counts(images=3),
        "figures": Figures(images=3, agreement=100.0),
    }  # fmt: skip
    return Accuracy(**fields | changes)


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_round_trip(bundle, tmp_path):
    manifest = read_manifest(bundle)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_text().endswith("}\n")
    assert "\n  " in (tmp_path / "manifest.json").read_text()  # people read it too


def test_fields_of_a_later_version_are_ignored(bundle):
    manifest = read_manifest(bundle)
    edit(bundle, lambda value: {**value, "signature": "x", "model": {**value["model"], "licence": "MIT"}})
    assert read_manifest(bundle) == manifest


def test_fields_with_a_default_may_be_absent(bundle):
    edit(bundle, put("accuracy", to=None))
    assert read_manifest(bundle).accuracy == []


# --- damage ----------------------------------------------------------------------------------------------------------

DAMAGE = {
    "flipped weight": (
        lambda b: flip(b / "openvino.bin"), r"openvino.bin: expected sha256 [0-9a-f]{12}\.\.\., found [0-9a-f]{12}",
    ),
    "flipped plan": (lambda b: flip(b / "openvino.xml"), r"openvino.xml: expected sha256"),
    "longer plan": (
        lambda b: (b / "openvino.bin").write_bytes((b / "openvino.bin").read_bytes() + b"x"),
        r"openvino.bin: expected \d+ bytes, found \d+",
    ),
    "empty plan": (lambda b: (b / "openvino.bin").write_bytes(b""), r"openvino.bin: expected \d+ bytes, found 0"),
    "wrong hash": (
        lambda b: edit(b, put("plans", 0, "files", 1, "sha256", to="0" * 64)),
        r"openvino.bin: expected sha256 000000000000\.\.\.",
    ),
    "missing plan": (lambda b: (b / "openvino.bin").unlink(), r"openvino.bin is missing; copy the whole folder"),
    "missing labels": (lambda b: (b / "labels.txt").unlink(), r"labels.txt is missing"),
    "flipped labels": (lambda b: flip(b / "labels.txt", 0), r"labels.txt: expected sha256"),
    "no plan files": (lambda b: edit(b, put("plans", 0, "files", to=[])), r"the plan for openvino lists no file"),
    "missing manifest": (lambda b: (b / "manifest.json").unlink(), r"is not a bundle: it has no manifest.json"),
    "missing folder": (shutil.rmtree, r"is not a bundle: it has no manifest.json. Build one with: make engine"),
    "not JSON": (lambda b: (b / "manifest.json").write_text("{"), r"manifest.json is not valid JSON"),
    "not text": (lambda b: (b / "manifest.json").write_bytes(b'{"a": "\xff"}'), r"manifest.json is not valid JSON"),
    "a list": (lambda b: (b / "manifest.json").write_text("[]"), r"expected manifest format 2, found None; build the"),
    "format of the old network": (
        lambda b: edit(b, put("format", to=1)), r"format 2, found 1; it was built from a network that differs from the "
        r"official one, build the bundle again",
    ),
    "later format": (lambda b: edit(b, put("format", to=3)), r"format 2, found 3; it was built by a newer .* upgrade"),
    "format as text": (lambda b: edit(b, put("format", to="2")), r"expected manifest format 2, found '2'; build the"),
    "format as truth": (lambda b: edit(b, put("format", to=True)), r"expected manifest format 2, found True; build"),
    "no format": (lambda b: edit(b, put("format", to=None)), r"expected manifest format 2, found None; build the"),
    "old network": (
        lambda b: edit(b, put("model", "network_revision", to=1)),
        r"expected network revision 2, found 1; its network differs from the official one .* make it again",
    ),
    "later network": (
        lambda b: edit(b, put("model", "network_revision", to=3)), r"revision 2, found 3; it was made by a newer",
    ),
    "unknown outcome": (
        lambda b: edit(b, put("accuracy", to=[{**json.loads(msgspec.json.encode(measured())), "outcome": "good"}])),
        r"Invalid enum value 'good' - at `\$.accuracy\[0\].outcome`",
    ),
    "trained as text": (
        lambda b: edit(b, put("model", "trained", to="yes")), r"Expected `bool`, got `str` - at `\$.model.trained`",
    ),
    "batch as text": (lambda b: edit(b, put("batch", "max", to="8")), r"Expected `int`, got `str` - at `\$.batch.max`"),
    "plans as object": (lambda b: edit(b, put("plans", to={})), r"Expected `array`, got `object` - at `\$.plans`"),
    "shape of words": (lambda b: edit(b, put("inputs", 0, "shape", to=["N"])), r"at `\$.inputs\[0\].shape\[0\]`"),
    "no model": (lambda b: edit(b, put("model", to=None)), r"missing required field `model`"),
    "no hash": (
        lambda b: edit(b, put("graph", "sha256", to=None)), r"missing required field `sha256` - at `\$.graph`",
    ),
    "preprocessing": (lambda b: edit(b, put("preprocessing", "crop", to=0)), r">= 1 - at `\$.preprocessing.crop`"),
    "no preprocessing": (lambda b: edit(b, put("preprocessing", "mean", to=None)), r"required field `mean`"),
    "out of the folder": (
        lambda b: edit(b, put("plans", 0, "files", 0, "file", to="../secret.xml")),
        r"'../secret.xml' points out of the bundle",
    ),
    "absolute path": (
        lambda b: edit(b, put("plans", 0, "files", 0, "file", to="/etc/passwd")), r"'/etc/passwd' points out of the",
    ),
    "other input": (lambda b: edit(b, put("inputs", 0, "dtype", to="float32")), r"found \[\('images', 'float32', 4\)"),
    "other outputs": (lambda b: edit(b, lambda v: v["outputs"].reverse()), r"expected the inputs and outputs"),
    "other classes": (lambda b: edit(b, put("model", "num_classes", to=7)), r"7 classes but 10 logits"),
    "labels out of the folder": (
        lambda b: edit(b, put("labels", "file", to="a/../../labels.txt")), r"points out of the bundle",
    ),
}  # fmt: skip


@pytest.fixture
def no_backend(monkeypatch):
    """Every engine fails the test when it is asked for."""

    def seen(*_args, **_kwargs):
        pytest.fail("a backend was opened")

    monkeypatch.setattr(openvino.OpenVINOBackend, "__init__", seen)
    monkeypatch.setattr(onnxruntime.OnnxRuntimeBackend, "__init__", seen)
    monkeypatch.setattr(tensorrt.TensorRTBackend, "__init__", seen)


@pytest.mark.usefixtures("no_backend")
@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_before_any_backend_sees_it(bundle, case):
    damage, message = DAMAGE[case]
    damage(bundle)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)


def test_an_undamaged_bundle_reaches_the_backend(bundle, no_backend):
    with pytest.raises(pytest.fail.Exception, match="a backend was opened"):
        open_bundle(bundle)


@pytest.mark.usefixtures("no_backend")
def test_damage_of_the_graph_matters_to_the_reference_engine(bundle):
    flip(bundle / "model.onnx")
    with pytest.raises(BundleError, match=r"model.onnx: expected sha256"):
        open_bundle(bundle, target="onnxruntime")


@pytest.mark.usefixtures("no_backend")
@pytest.mark.parametrize("count", [0, 9, 11])
def test_labels_of_another_number(bundle, count):
    (bundle / "labels.txt").write_text("".join(f"name {i}\n" for i in range(count)))
    manifest = read_manifest(bundle)
    manifest.labels = file_entry(bundle, "labels.txt")  # the hash is right, the content is not
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=f"labels.txt: expected 10 lines, found {count}"):
        open_bundle(bundle)


@pytest.mark.usefixtures("no_backend")
def test_labels_that_are_no_text(bundle):
    (bundle / "labels.txt").write_bytes(b"\xff\xfe\n" * 10)
    manifest = read_manifest(bundle)
    manifest.labels = file_entry(bundle, "labels.txt")
    write_manifest(bundle, manifest)
    with pytest.raises(BundleError, match=r"labels.txt"):
        open_bundle(bundle)


@pytest.mark.usefixtures("no_backend")
def test_a_bundle_without_plans(bundle):
    edit(bundle, put("plans", to=[]))
    with pytest.raises(TargetUnavailableError, match=r"no plan of .* runs here \(it has none\)"):
        open_bundle(bundle)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_files_in_subfolders_are_allowed(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/x").write_text("1")
    check_files(tmp_path, [file_entry(tmp_path, "sub/x")])


def test_read_labels(bundle):
    assert read_labels(bundle, read_manifest(bundle)) == [f"class {i}" for i in range(10)]


def test_find_plan(bundle):
    manifest = read_manifest(bundle)
    assert find_plan(bundle, manifest, "openvino").files[0].file == "openvino.xml"
    with pytest.raises(
        BundleError, match=r"has no plan for tensorrt; it has: openvino. Build one with TARGET=tensorrt"
    ):
        find_plan(bundle, manifest, "tensorrt")
    manifest.plans = []
    with pytest.raises(BundleError, match="it has: none"):
        find_plan(bundle, manifest, "openvino")


def test_measurements_are_kept_by_target_data_and_reference(bundle):
    others = [measured(data="test"), measured(reference=None), measured(target="tensorrt"), measured(fast_decode=True)]
    newer = measured(outcome="failed")
    for record in (measured(), *others, newer):
        add_accuracy(bundle, record)
    assert read_manifest(bundle).accuracy == [*others, newer]
    check_files(bundle, [read_manifest(bundle).graph])  # nothing else changed


FIRST = """
import sys, threading
from pathlib import Path
sys.setswitchinterval(1e-6)
from infer.bundle import read_manifest
together = threading.Barrier(8)
def work():
    together.wait()
    read_manifest(Path(sys.argv[1]))
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_may_be_the_first_to_read_a_manifest_together(bundle):
    """msgspec 0.22 crashed in four of five such processes."""
    for _ in range(5):
        subprocess.run([sys.executable, "-c", FIRST, bundle], check=True, timeout=60)
