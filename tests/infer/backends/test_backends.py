"""Which backend a bundle is opened with, and what is said when none can."""

from __future__ import annotations

import importlib.util

import pytest

from infer import backends
from infer.backends import REFERENCE, TARGETS, open_backend, why_unavailable
from infer.bundle import Plan, read_manifest
from infer.checks.self_test import SelfTest
from infer.errors import BundleError, InputError, TargetUnavailableError


@pytest.fixture
def manifest(tiny):
    """With a plan for every target, slowest first."""
    manifest = read_manifest(tiny)
    (own,) = manifest.plans
    others = [Plan(target=target, files=own.files, version="11") for target in ("tensorrt_rtx", "tensorrt")]
    manifest.plans = [own, *others]
    return manifest


@pytest.fixture
def machine(monkeypatch):
    """``machine(**reasons)``: what is missing for a target; the others run, and opening one tells its name."""

    def set_up(refuse=(), **reasons):
        def open_one(_folder, _manifest, target, _threads, _gpu, _test):
            if target in refuse:
                raise TargetUnavailableError(f"{target} broke")
            return target

        monkeypatch.setattr(backends, "why_unavailable", lambda target, _device: reasons.get(target))
        monkeypatch.setattr(backends, "_open", open_one)

    return set_up


def test_the_fastest_first(machine, tiny, manifest):
    machine()
    assert open_backend(tiny, manifest, SelfTest(tiny, manifest)) == "tensorrt"
    machine(tensorrt="no GPU")
    assert open_backend(tiny, manifest, SelfTest(tiny, manifest)) == "tensorrt_rtx"
    machine(tensorrt="no GPU", tensorrt_rtx="no GPU")
    assert open_backend(tiny, manifest, SelfTest(tiny, manifest)) == "openvino"


def test_a_target_that_breaks_when_opened_is_passed_over(machine, tiny, manifest):
    machine(refuse=["tensorrt"], tensorrt_rtx="no GPU")
    assert open_backend(tiny, manifest, SelfTest(tiny, manifest)) == "openvino"


def test_none_runs_and_each_says_why(machine, tiny, manifest):
    manifest.plans.append(Plan(target="tpu", files=[], version="1"))
    machine(refuse=["openvino"], tensorrt="no GPU", tensorrt_rtx="not installed")
    with pytest.raises(TargetUnavailableError) as caught:
        open_backend(tiny, manifest, SelfTest(tiny, manifest))
    assert str(caught.value) == (
        f"no plan of {tiny} runs here (tensorrt: no GPU; tensorrt_rtx: not installed; openvino: openvino broke; "
        "tpu: unknown to this version)"
    )


def test_a_named_target_is_the_only_one_tried(machine, tiny, manifest):
    machine(tensorrt="no NVIDIA driver")
    with pytest.raises(TargetUnavailableError, match="tensorrt cannot run here: no NVIDIA driver"):
        open_backend(tiny, manifest, SelfTest(tiny, manifest), "tensorrt")
    assert open_backend(tiny, manifest, SelfTest(tiny, manifest), "openvino") == "openvino"


def test_a_damaged_plan_is_not_passed_over(machine, tiny, manifest, monkeypatch):
    machine()

    def damaged(*_args):
        raise BundleError("tensorrt.plan: expected sha256")

    monkeypatch.setattr(backends, "_open", damaged)
    with pytest.raises(BundleError, match="expected sha256"):
        open_backend(tiny, manifest, SelfTest(tiny, manifest))


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_int8_weights_for_tensorrt_alone_are_refused_on_the_cpu(tiny, precision):
    manifest = read_manifest(tiny)
    manifest.precision, manifest.pair_safe = precision, False
    with pytest.raises(BundleError, match="for TensorRT alone and overflow on CPUs without VNNI"):
        open_backend(tiny, manifest, SelfTest(tiny, manifest), "openvino")


def test_a_target_that_was_not_built(tiny):
    manifest = read_manifest(tiny)
    manifest.plans = []
    with pytest.raises(BundleError, match="has no plan for openvino; it has: none"):
        open_backend(tiny, manifest, SelfTest(tiny, manifest), "openvino")


def test_threads_arrive(tiny):
    manifest = read_manifest(tiny)
    for target in ("openvino", "onnxruntime"):
        open_backend(tiny, manifest, SelfTest(tiny, manifest), target, threads=1).close()
    with open_backend_closing(tiny, manifest) as backend:
        assert "1 threads" in backend.device


def open_backend_closing(tiny, manifest):
    from contextlib import closing

    return closing(open_backend(tiny, manifest, SelfTest(tiny, manifest), "openvino", threads=1))


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_missing_libraries_are_named(monkeypatch, target):
    assert why_unavailable(target) is None
    found = importlib.util.find_spec
    hide = lambda name, *rest: None if name == target else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    monkeypatch.setattr("infer.backends.onnxruntime.find_spec", hide)
    assert why_unavailable(target) == f"{target} is not installed; pip install {target}"


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_answers_in_one_sentence(target):
    missing = why_unavailable(target)
    assert missing is None or (missing and "\n" not in missing)


def test_unknown_target():
    assert REFERENCE == "onnxruntime"
    with pytest.raises(InputError, match="unknown target 'cuda'; known: tensorrt, tensorrt_rtx, openvino, onnxruntime"):
        why_unavailable("cuda")
