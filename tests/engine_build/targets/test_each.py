"""Several targets: one that fails is left out where the user asked for all, and stops the build where it was named."""

from __future__ import annotations

import msgspec
import pytest

from engine_build.source import Steps
from engine_build.targets.each import build_each, keep_passing
from infer.bundle import FileEntry, Plan
from infer.errors import AccuracyError, BuildError, KnownAnswersError

TARGETS = ("tensorrt", "tensorrt_rtx", "openvino")


def builder(errors):
    """Builds each target as two files and a folder, and then fails with the one of ``errors``."""

    def build(target, folder):
        for name in (f"{target}.plan", f"{target}.bin"):
            (folder / name).write_bytes(b"part of it")
        (folder / f"{target}.cache").mkdir()
        (folder / f"{target}.cache" / "blob").touch()
        if target in errors:
            raise errors[target]
        return plan_of(target)

    return build


def plan_of(target):
    files = [FileEntry(file=f"{target}.{kind}", sha256="", size=10) for kind in ("plan", "bin")]
    return Plan(target=target, files=files, version="1")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_of_them(tmp_path):
    plans, notes = build_each(TARGETS, False, tmp_path, builder({}), Steps())
    assert [plan.target for plan in plans] == [*TARGETS] and notes == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BuildError("it cannot"), "it cannot"), (AccuracyError("wrong"), "wrong"),
        (RuntimeError("from C++\nsecond line"), "RuntimeError: from C++ second line"),
        (TypeError(), "TypeError: no message"),
    ],
)  # fmt: skip
def test_one_that_fails_is_left_out_without_a_trace(tmp_path, error, reason):
    (tmp_path / "model.onnx").touch()
    said = []
    steps = Steps(say=said.append)
    plans, notes = build_each(TARGETS, False, tmp_path, builder({"tensorrt_rtx": error}), steps)
    assert [plan.target for plan in plans] == ["tensorrt", "openvino"]
    assert notes == [f"tensorrt_rtx was left out: {reason}"] == said
    assert {name.partition(".")[0] for name in names(tmp_path)} == {"model", "tensorrt", "openvino"}


def test_one_that_was_named_stops_the_build(tmp_path):
    with pytest.raises(BuildError, match=r"^it cannot$"):
        build_each(TARGETS, True, tmp_path, builder({"tensorrt_rtx": BuildError("it cannot")}), Steps())


def test_all_that_fail_are_named_with_their_reasons(tmp_path):
    errors = {target: BuildError(f"{target} says no") for target in TARGETS}
    with pytest.raises(BuildError) as caught:
        build_each(TARGETS, False, tmp_path, builder(errors), Steps())
    assert str(caught.value) == "none of 3 targets could be built. " + "; ".join(f"{t}: {t} says no" for t in TARGETS)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_ctrl_c_ends_the_build(tmp_path, error):
    with pytest.raises(type(error)):
        build_each(TARGETS, False, tmp_path, builder({"tensorrt": error}), Steps())


class Bundle(msgspec.Struct):
    plans: list[Plan]
    notes: list[str]


@pytest.fixture
def bundle(tmp_path):
    build_each(TARGETS, False, tmp_path, builder({}), Steps())
    return Bundle([plan_of(target) for target in TARGETS], ["first"])


def checking(errors):
    def check(plan):
        if plan.target in errors:
            raise errors[plan.target]

    return check


def test_a_plan_that_computes_something_else_is_left_out(tmp_path, bundle):
    said = []
    keep_passing(bundle, False, tmp_path, checking({"openvino": KnownAnswersError("other logits")}), said.append)
    assert [plan.target for plan in bundle.plans] == ["tensorrt", "tensorrt_rtx"]
    assert bundle.notes == ["first", "openvino was left out: other logits"] and said == bundle.notes[1:]
    assert not (tmp_path / "openvino.plan").exists() and (tmp_path / "tensorrt.plan").exists()


def test_a_plan_that_was_named_has_to_pass(tmp_path, bundle):
    with pytest.raises(KnownAnswersError, match=r"^other logits$"):
        keep_passing(bundle, True, tmp_path, checking({"openvino": KnownAnswersError("other logits")}), print)


def test_when_no_plan_passes_every_reason_is_given(tmp_path, bundle):
    errors = {target: AccuracyError(f"{target} is off") for target in TARGETS}
    with pytest.raises(AccuracyError, match="tensorrt is off; tensorrt_rtx is off; openvino is off"):
        keep_passing(bundle, False, tmp_path, checking(errors), lambda line: None)
