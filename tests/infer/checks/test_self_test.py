"""Known answers at opening: what is measured, when it is checked, and what is remembered."""

from __future__ import annotations

import json
import logging
import math
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from infer import open_bundle
from infer.backends import onnxruntime, openvino
from infer.backends.base import Outputs
from infer.bundle import file_entry, read_manifest, write_manifest
from infer.checks.blame import Comparison
from infer.checks.known_answers import FILE, Answers, measure, read_answers, write_answers
from infer.checks.passed import PASSES, Passes
from infer.checks.self_test import check_plans, passed_here
from infer.errors import BundleError, InputError, KnownAnswersError

LOGITS = np.random.default_rng(0).standard_normal((8, 10)).astype(np.float32)
ANSWERS = Answers(np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1).repeat(3, axis=3), LOGITS)
EMPTY = np.empty((0, 2))


@pytest.fixture
def bundle(own, tiny):
    folder = own(tiny)
    shutil.rmtree(folder / PASSES)
    return folder


@pytest.fixture
def runs(monkeypatch):
    """Batch sizes that were run on known answers."""
    seen = []

    def counted(infer, answers, batch, floor, original=measure):
        seen.append(batch)
        return original(infer, answers, batch, floor)

    monkeypatch.setattr("infer.checks.self_test.measure", counted)
    return seen


@pytest.fixture
def wrong(monkeypatch):
    """OpenVINO computes something else, in batches of 8 or of the sizes given."""
    sizes = [8]
    original = openvino.Pool._run

    def shifted(self, request, batch, count):
        outputs = original(self, request, batch, count)
        return outputs._replace(logits=np.roll(outputs.logits, 1, axis=1)) if len(batch) in sizes else outputs

    monkeypatch.setattr(openvino.Pool, "_run", shifted)
    return sizes


def change(folder, **fields):
    manifest = read_manifest(folder)
    for name, value in fields.items():
        setattr(manifest.known_answers, name, value)
    write_manifest(folder, manifest)


# --- the measure -----------------------------------------------------------------------------------------------------


def engine(change=lambda rows, logits: logits):
    """Gives the answer of each picture by its number; ``change`` may spoil them."""

    def infer(images):
        rows = images[:, 0, 0, 0].astype(int)
        return Outputs(change(rows, LOGITS[rows].copy()), EMPTY, EMPTY)

    return infer


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 9, 16, 20])
def test_any_batch_size_is_measured_alike(batch):
    sizes = []

    def infer(images):
        sizes.append(len(images))
        return engine()(images)

    found = measure(infer, ANSWERS, batch, 20)
    assert (found.sqnr_db, found.agreement, found.images, found.missed) == (None, 100, 8, False)
    assert set(sizes) == {batch}


@pytest.mark.parametrize("batch", [8, 20, 64])
def test_one_wrong_row_of_a_large_batch_counts(batch):
    def spoil(rows, logits):
        logits[-1] += 3
        return logits

    signal = ((LOGITS - LOGITS.mean(0)) ** 2).sum()
    expected = 10 * np.log10(signal / (10 * 9))
    assert measure(engine(spoil), ANSWERS, batch, 20).sqnr_db == pytest.approx(expected, abs=0.5)


def test_what_is_not_finite_fails():
    for bad in (np.nan, np.inf):

        def spoil(rows, logits, bad=bad):
            logits[rows == 3, 0] = bad
            return logits

        assert measure(engine(spoil), ANSWERS, 4, 20).sqnr_db == -math.inf


def test_a_shift_that_all_pictures_share_is_noticed():
    assert measure(engine(lambda _, logits: logits + 1), ANSWERS, 8, 20).sqnr_db < 1


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_has_the_same_bytes_for_the_same_answers(tmp_path):
    write_answers(tmp_path, ANSWERS)
    first = (tmp_path / FILE).read_bytes()
    write_answers(tmp_path, ANSWERS)
    assert (tmp_path / FILE).read_bytes() == first


def pickled(path):
    np.savez(path, images=np.array([{}], object), logits=LOGITS)


DAMAGE = {
    "changed": (lambda path: path.write_bytes(path.read_bytes()[:-9] + b"123456789"), "expected sha256", False),
    "missing": (lambda path: path.unlink(), "is missing", False),
    "no archive": (lambda path: path.write_bytes(b"no"), "not a file of known answers", True),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:200]), "not a file of known answers", True),
    "a pickle": (pickled, "not a file of known answers", True),
    "other names": (lambda path: np.savez(path, x=LOGITS), "not a file of known answers", True),
    "other shape": (lambda path: write_answers(path.parent, ANSWERS), "expected finite answers of shape", True),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file(bundle, case):
    """A changed or missing file is named at every opening, before a backend is asked; the rest when it is needed."""
    damage, message, hashed = DAMAGE[case]
    damage(bundle / FILE)
    if hashed:
        change(bundle, file=file_entry(bundle, FILE))
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_answers_that_are_not_finite(bundle):
    answers = read_answers(bundle, read_manifest(bundle))
    answers.logits[0, 0] = np.nan
    write_answers(bundle, answers)
    change(bundle, file=file_entry(bundle, FILE))
    with pytest.raises(BundleError, match="expected finite answers"):
        open_bundle(bundle)


# --- when ------------------------------------------------------------------------------------------------------------


def test_a_plan_is_checked_once(bundle, runs):
    with open_bundle(bundle) as runner:
        (found,) = runner.self_test.checked
        assert (found.target, found.batch, found.outcome, found.remembered) == ("openvino", 8, "passed", False)
        assert found.sqnr_db is None or found.sqnr_db > 100  # float32 against float32
    with open_bundle(bundle) as runner:
        assert [one.remembered for one in runner.self_test.checked] == [True]
        assert runs == [8]
        images = read_answers(bundle, runner.manifest).images
        runner.infer(images[:3])  # compiles another size
        assert runs == [8, 4]
        runner.infer(images[:4])
    with open_bundle(bundle) as runner:
        runner.infer(images[:4])
    assert runs == [8, 4]


@pytest.mark.parametrize(("mode", "expected"), [("always", [8, 8]), ("new", [8]), ("", [8]), ("never", [])])
def test_the_environment_decides(bundle, runs, monkeypatch, mode, expected):
    monkeypatch.setenv("IRESNET_SELF_TEST", mode)
    for _ in range(2):
        open_bundle(bundle).close()
    assert runs == expected


def test_a_bad_environment(bundle, monkeypatch):
    monkeypatch.setenv("IRESNET_SELF_TEST", "yes")
    with pytest.raises(InputError, match="IRESNET_SELF_TEST: expected always, new, never, found 'yes'"):
        open_bundle(bundle)


def test_everything_that_decides_is_in_the_key(bundle, runs, monkeypatch):
    open_bundle(bundle).close()
    open_bundle(bundle, threads=1).close()  # another option
    open_bundle(bundle, threads=1).close()
    monkeypatch.setattr(openvino, "processor", lambda: "another one")
    open_bundle(bundle).close()
    monkeypatch.setattr(openvino, "compiled_requirements", lambda _: "isa=Intel AVX2")
    open_bundle(bundle).close()
    change(bundle, floor_db=21.0)
    open_bundle(bundle).close()
    answers = read_answers(bundle, read_manifest(bundle))
    write_answers(bundle, Answers(answers.images, answers.logits + np.float32(1e-6)))
    change(bundle, file=file_entry(bundle, FILE))
    open_bundle(bundle).close()
    manifest = read_manifest(bundle)
    with (bundle / "openvino.bin").open("ab") as file:
        file.write(b"\0")  # another plan, which computes the same
    manifest.plans[0].files[1] = file_entry(bundle, "openvino.bin")
    write_manifest(bundle, manifest)
    open_bundle(bundle).close()
    assert runs == [8] * 7


def test_a_bundle_without_answers_opens(bundle):
    manifest = read_manifest(bundle)
    manifest.known_answers = None
    write_manifest(bundle, manifest)
    with open_bundle(bundle) as runner:
        assert runner.self_test.checked == []


# --- what is remembered, and where -----------------------------------------------------------------------------------


def test_a_read_only_bundle_uses_the_users_cache(bundle, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("IRESNET_CACHE", str(tmp_path / "cache"))
    (bundle / PASSES).write_text("not a folder: nothing can be written there")
    for _ in range(2):
        open_bundle(bundle).close()
    assert runs == [8]
    assert len(list((tmp_path / "cache" / PASSES).iterdir())) == 1
    assert [one.batch for one in passed_here(bundle, read_manifest(bundle))] == [8]


def test_without_any_place_it_is_checked_each_time(bundle, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("IRESNET_CACHE", str(tmp_path / "cache"))
    for place in (bundle / PASSES, tmp_path / "cache"):
        place.write_text("")
    for _ in range(2):
        open_bundle(bundle).close()
    assert runs == [8, 8]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"key": {}, "found": {}}'])
def test_a_damaged_note_is_none(bundle, runs, content):
    open_bundle(bundle).close()
    (note,) = (bundle / PASSES).iterdir()
    note.write_bytes(content)
    open_bundle(bundle).close()
    assert runs == [8, 8]
    assert json.loads(note.read_bytes())["found"]["outcome"] == "passed"


def test_a_note_under_another_key_counts_for_nothing(bundle, runs):
    open_bundle(bundle).close()
    (note,) = (bundle / PASSES).iterdir()
    note.write_text(note.read_text().replace('"batch": "8"', '"batch": "4"'))
    open_bundle(bundle).close()
    assert runs == [8, 8]


def test_several_writers(bundle):
    open_bundle(bundle).close()
    ((key, found),) = Passes(bundle).all()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Passes(bundle).add(key, found), range(40)))
    assert len(list((bundle / PASSES).iterdir())) == 1
    assert Passes(bundle).find(key) == found


# --- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wrong")
def test_a_wrong_plan_does_not_open(bundle, runs):
    for _ in range(2):  # and that is not remembered
        with pytest.raises(KnownAnswersError, match=r"kernels: openvino \(.*\) computes something else") as caught:
            open_bundle(bundle, target="openvino")
    assert runs == [8, 8] * 2  # the plan, then the graph in ONNX Runtime
    message = str(caught.value)
    assert str(bundle) in message and "\n" not in message
    assert "at least 50.0 dB are needed" in message and "The graph is right" in message
    assert "IRESNET_SELF_TEST=never" in message
    assert not (bundle / PASSES).exists()


@pytest.mark.usefixtures("wrong")
def test_never_runs_it_all_the_same(bundle, monkeypatch):
    monkeypatch.setenv("IRESNET_SELF_TEST", "never")
    open_bundle(bundle).close()


def test_another_batch_size_that_is_wrong(bundle, wrong):
    wrong[:] = [2]
    with open_bundle(bundle) as runner:
        images = read_answers(bundle, runner.manifest).images
        for _ in range(2):
            with pytest.raises(KnownAnswersError, match="batch 2"):
                runner.infer(images[:2])
        assert runner.infer(images[:1]).logits.shape == (1, 10)
        assert runner.infer(images).logits.shape == (8, 10)


@pytest.mark.usefixtures("wrong")
def test_the_graph_is_blamed_when_it_is_at_fault(bundle, monkeypatch):
    original = onnxruntime.OnnxRuntimeBackend.infer
    monkeypatch.setattr(
        onnxruntime.OnnxRuntimeBackend,
        "infer",
        lambda self, batch: original(self, batch)._replace(logits=np.zeros((len(batch), 10), np.float32)),
    )
    with pytest.raises(
        KnownAnswersError, match=r"graph: model.onnx no longer gives its known answers in ONNX Runtime: -?\d+\.\d dB"
    ):
        open_bundle(bundle)
    with pytest.raises(KnownAnswersError, match=r"known answers at batch 8: graph: model.onnx no longer"):
        open_bundle(bundle, target="onnxruntime")


@pytest.mark.usefixtures("wrong")
def test_nobody_is_blamed_without_onnx_runtime(bundle, monkeypatch):
    monkeypatch.setattr(onnxruntime, "why_unavailable", lambda: "onnxruntime is not installed")
    with pytest.raises(
        KnownAnswersError, match=r"could not be run here to be sure of it \(onnxruntime is not installed"
    ):
        open_bundle(bundle)


def test_the_reference_engine_is_checked_too(bundle, runs):
    for _ in range(2):
        open_bundle(bundle, target="onnxruntime").close()
    assert runs == [8]


@pytest.mark.usefixtures("wrong")
def test_the_automatic_choice_says_what_it_left_out(bundle, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(KnownAnswersError, match=r"no plan of .* runs right here"):
        open_bundle(bundle)
    assert "openvino is not used: " in caplog.text


# --- a low floor -----------------------------------------------------------------------------------------------------


def test_a_floor_that_tells_nothing_is_never_passed(bundle, runs):
    change(bundle, floor_db=11.9)
    for remembered in (False, True):
        with open_bundle(bundle) as runner:
            (found,) = runner.self_test.checked
            assert (found.outcome, found.remembered) == ("cannot tell", remembered)
    assert runs == [8]


def test_nan_fails_whatever_the_floor(bundle, monkeypatch):
    change(bundle, floor_db=0.0)
    monkeypatch.setattr(
        "infer.checks.self_test.measure", lambda _infer, _answers, _batch, floor: Comparison(-math.inf, floor, 0.0, 8)
    )
    with pytest.raises(KnownAnswersError, match="-inf dB"):
        open_bundle(bundle)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_every_batch_size_by_hand(bundle, runs):
    (report,) = check_plans(bundle, read_manifest(bundle))
    assert sorted(runs) == [1, 2, 4, 8] == sorted(one.batch for one in report.checked)
    assert (report.target, report.unavailable, report.error) == ("openvino", None, None)
    json.dumps(report.to_json())


def test_info_shows_and_checks(call, bundle, wrong):
    wrong[:] = []
    code, out, _ = call("info", bundle)
    assert code == 0 and "8 pictures, 50.0 dB needed" in out and "on openvino" not in out
    code, out, _ = call("info", bundle, "--check")
    assert code == 0 and "known answers on openvino: passed" in out and "on openvino" in call("info", bundle)[1]
    code, out, _ = call("info", bundle, "--check", "--json")
    found = json.loads(out)
    assert [one["outcome"] for one in found["checked"][0]["checked"]] == ["passed"] * 4
    assert len(found["passed_here"]) == 4
    wrong.append(8)
    code, out, _ = call("info", bundle, "--check")
    assert code == 1 and "known answers on openvino: FAILED: " in out
    code, out, _ = call("info", bundle, "--check", "--json")
    assert code == 1 and "computes something else" in json.loads(out)["checked"][0]["error"]
    change(bundle, floor_db=3.0)
    assert "cannot tell" in call("info", bundle)[1]


def test_a_bundle_that_is_replaced_while_it_is_open(bundle, runs):
    """The sizes that are compiled later are checked with the answers of the bundle that was opened."""
    with open_bundle(bundle) as runner:
        images = read_answers(bundle, runner.manifest).images
        write_answers(bundle, ANSWERS)
        runner.infer(images[:1])
    assert runs == [8, 1]
