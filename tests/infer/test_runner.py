"""The runner: every kind of image in, named classes out, from any number of threads."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import CLASSES, SPEC, classifier, pictures

from infer import Runner, open_bundle
from infer.backends.base import Outputs
from infer.bundle import add_accuracy, read_manifest
from infer.bundle.accuracy_record import Accuracy, Counts, Figures
from infer.errors import AccuracyError, BundleError, ImageError, InputError, TargetUnavailableError, UntrainedError
from infer.images.resize import preprocess
from infer.sources import Record


@pytest.fixture(scope="module")
def runner(tiny):
    with open_bundle(tiny) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected():
    """Logits of inputs, computed apart from the bundle."""
    from engine_build.graph.reference import graph_logits

    return graph_logits(classifier(), SPEC)


@pytest.fixture
def photos():
    """Pictures of different shapes."""
    sizes = [(40, 60), (32, 32), (300, 50), (33, 47), (20, 20)]
    return [pictures(1, side=max(size), seed=n)[0][: size[0], : size[1]] for n, size in enumerate(sizes)]


def encoded(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def classes_of(expected, arrays):
    inputs = np.stack([preprocess(Image.fromarray(array), SPEC) for array in arrays])
    return expected(inputs).argmax(1).tolist()


# --- classify --------------------------------------------------------------------------------------------------------


def test_every_kind_of_image_in_one_list(runner, expected, photos, tmp_path):
    wanted = classes_of(expected, photos)
    assert len(set(wanted)) > 1
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photos[0]))
    (tmp_path / "b.png").write_bytes(encoded(photos[1]))
    items = [path, str(tmp_path / "b.png"), encoded(photos[2]), Image.fromarray(photos[3]), photos[4]]
    found = runner.classify(items)
    assert [p.top[0].index for p in found] == wanted
    assert [p.name for p in found] == [str(path), str(tmp_path / "b.png"), "image 2", "image 3", "image 4"]
    assert all(p.error is None for p in found)
    for prediction in found:
        assert [r.label for r in prediction.top] == [f"class {r.index}" for r in prediction.top]
        scores = [r.score for r in prediction.top]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(scores) <= 1 + 1e-6


@pytest.mark.parametrize("wrap", [list, tuple])
def test_sequences(runner, photos, wrap):
    assert len(runner.classify(wrap(photos))) == len(photos)


@pytest.mark.parametrize("kind", ["path", "bytes", "array", "image"])
def test_a_single_image(runner, expected, photos, tmp_path, kind):
    (tmp_path / "a.png").write_bytes(encoded(photos[0]))
    item = {
        "path": tmp_path / "a.png", "bytes": encoded(photos[0]), "array": photos[0],
        "image": Image.fromarray(photos[0]),
    }[kind]  # fmt: skip
    (found,) = runner.classify(item)
    assert found.top[0].index == classes_of(expected, photos[:1])[0]


def test_grey_arrays(runner, expected):
    grey = pictures(1, side=50)[0, ..., 0]
    (found,) = runner.classify(grey)
    assert found.top[0].index == classes_of(expected, [np.repeat(grey[..., None], 3, 2)])[0]


def test_no_images(runner):
    assert runner.classify([]) == []


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_any_number_in_order(runner, expected, count):
    images = list(pictures(count, side=40, seed=4))
    found = runner.classify(images)
    assert [p.top[0].index for p in found] == classes_of(expected, images)
    assert [p.name for p in found] == [f"image {n}" for n in range(count)]


@pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (None, 5), (50, 5)])
def test_top(runner, photos, top, count):
    assert [len(p.top) for p in runner.classify(photos, top=top)] == [count] * len(photos)


def test_a_bad_image_costs_itself_only(runner, expected, photos, tmp_path):
    items = [photos[0], b"no image", photos[1], tmp_path / "none.jpg", encoded(photos[2])[:100], photos[3]]
    found = runner.classify(items)
    assert [p.error is None for p in found] == [True, False, True, False, False, True]
    good = [found[n].top[0].index for n in (0, 2, 5)]
    assert good == classes_of(expected, [photos[0], photos[1], photos[3]])
    assert found[1].error.startswith("image 1: ")
    assert "none.jpg: no such file" in found[3].error
    assert all(p.top == () for p in found if p.error)
    assert all("\n" not in p.error for p in found if p.error)


@pytest.mark.parametrize("top", [0, -1])
def test_top_of_nothing(runner, photos, top):
    with pytest.raises(InputError, match=f"top: expected at least 1, found {top}"):
        runner.classify(photos, top=top)


def test_iterators_files_and_batches(runner, expected, photos):
    wanted = classes_of(expected, photos)
    assert [p.top[0].index for p in runner.classify(photo for photo in photos)] == wanted
    files = [io.BytesIO(encoded(photo)) for photo in photos]
    assert [p.top[0].index for p in runner.classify(files)] == wanted
    batch = np.stack([photos[1], photos[1][::-1]])
    assert [p.top[0].index for p in runner.classify(batch)] == classes_of(expected, list(batch))


def test_what_is_no_image_is_a_mistake_of_the_program(runner, photos):
    with pytest.raises(InputError, match=r"image 1: expected a path.* found int"):
        runner.classify([photos[0], 17, b"no image"])
    assert len(runner.classify(photos)) == len(photos)  # the runner still works


def test_only_bad_images(runner):
    found = runner.classify([b"x"] * 20)
    assert len(found) == 20
    assert all(p.error for p in found)


def test_strict_raises(runner, photos):
    with pytest.raises(ImageError, match="image 1: "):
        runner.classify([photos[0], b"no image", photos[1]], strict=True)
    assert len(runner.classify(photos)) == len(photos)  # the runner still works


# --- infer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("rows", [0, 1, 3, 8, 9, 20, 33])
def test_any_number_of_rows(tiny, expected, target, rows):
    images = pictures(max(rows, 1), seed=rows)[:rows]
    with open_bundle(tiny, target=target) as runner:
        found = runner.infer(images)
    assert isinstance(found, Outputs)
    assert [(a.shape, a.dtype) for a in found] == [
        ((rows, CLASSES), np.float32), ((rows, 5), np.float32), ((rows, 5), np.int32),
    ]  # fmt: skip
    if rows:
        logits = expected(images)
        np.testing.assert_allclose(found.logits, logits, atol=1e-4)
        assert np.array_equal(found.classes, np.argsort(-logits, 1)[:, :5])


def test_results_are_the_callers_own(runner):
    images = pictures(4)
    first = runner.infer(images)
    kept = first.logits.copy()
    first.logits.flags.writeable = True
    runner.infer(pictures(4, seed=9))
    assert np.array_equal(first.logits, kept)


def test_strided_input(runner):
    images = pictures(6)
    assert np.array_equal(runner.infer(images[::-2]).logits, runner.infer(np.ascontiguousarray(images[::-2])).logits)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((1, 32, 32, 3), np.float32), r"float32 \[1, 32, 32, 3\]"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"uint8 \[1, 3, 32, 32\]"),
        (np.zeros((1, 64, 64, 3), np.uint8), r"uint8 \[1, 64, 64, 3\]"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \[32, 32, 3\]"),
        (np.zeros((), np.uint8), r"uint8 \[\]"),
        ([[0]], "list"),
        ("cat.jpg", "str"),
    ],
)
def test_wrong_input(runner, images, found):
    with pytest.raises(InputError, match=rf"expected a uint8 array \[N, 32, 32, 3\], found {found}"):
        runner.infer(images)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_eight_threads_get_their_own_answers(shipped, shipped_images):
    images = shipped_images[0][:80]
    with open_bundle(shipped("fp32")) as runner:
        truth = runner.infer(images)
        wrong, barrier = [], threading.Barrier(8)

        def work(number):
            rng = np.random.default_rng(number)
            barrier.wait()
            for _ in range(4):
                chosen = rng.integers(0, len(images), rng.integers(1, 20))
                if number % 2:
                    found = runner.infer(images[chosen])
                    same = np.array_equal(found.classes, truth.classes[chosen])
                    same &= np.allclose(found.logits, truth.logits[chosen], atol=1e-3)
                else:
                    predictions = runner.classify(list(images[chosen]))
                    same = [p.top[0].index for p in predictions] == truth.classes[chosen, 0].tolist()
                if not same:
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []


# --- a stream --------------------------------------------------------------------------------------------------------


class Counting:
    """A backend that computes nothing and counts what is under way; results wait for ``result()``."""

    target, device, max_batch, in_flight = "none", "none", 4, 2

    def __init__(self):
        self.under_way = self.most = 0

    def submit(self, batch):
        assert batch.flags.c_contiguous  # what a backend is promised
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        outer = self

        class Lazy(Future):
            def result(self, timeout=None):
                outer.under_way -= 1
                return Outputs(batch.reshape(len(batch), -1)[:, :1], batch, batch)

        return Lazy()

    def close(self):
        pass


def test_stream_keeps_the_order_and_bounds_what_is_under_way(tiny):
    manifest = read_manifest(tiny)
    backend = Counting()
    stream = Runner(tiny, manifest, [""] * 10, backend, False).stream_pairs(
        (n, np.full((n % 4, 32, 32, 3), n, np.uint8)) for n in range(20)
    )
    results = [(key, outputs.logits[:, 0].tolist()) for key, outputs in stream]
    assert results == [(n, [n] * (n % 4)) for n in range(20) if n % 4]  # empty batches are passed over
    assert backend.most == backend.in_flight + 1  # the device is busy, and one more waits for it
    assert backend.under_way == 0


def test_backends_get_whole_rows_of_memory(tiny):
    runner = Runner(tiny, read_manifest(tiny), [""] * 10, Counting(), False)
    images = pictures(8)[::2]
    assert np.array_equal(runner.infer(images).logits[:, 0], images.reshape(4, -1)[:, 0])


def test_records_are_decoded_and_run_in_order(runner, expected, photos):
    def record(number, data):
        return Record(f"image {number}", Path(), "", lambda: data)

    wanted = classes_of(expected, photos)
    bad = {3, 7, *range(2 * runner.backend.max_batch, 3 * runner.backend.max_batch)}  # the third batch: all of it
    count = 4 * runner.backend.max_batch + 1
    records = [record(n, b"no image" if n in bad else encoded(photos[n % 5])) for n in range(count)]
    answers = list(runner.run(iter(records), workers=2))
    assert len(answers) == 5
    assert [f.index for a in answers for f in a.failures] == sorted(bad)
    assert answers[2].outputs is None and answers[2].records == []
    full = [a for a in answers if a.outputs is not None]
    found = {i: c[0] for a in full for i, c in zip(a.indices.tolist(), a.outputs.classes.tolist(), strict=True)}
    assert found == {n: wanted[n % 5] for n in range(count) if n not in bad}
    assert [r.name for a in answers for r in a.records] == [f"image {n}" for n in found]
    with pytest.raises(ImageError, match="image 3"):
        list(runner.run(records, strict=True))


# --- opening and closing ---------------------------------------------------------------------------------------------


def test_what_a_runner_tells(runner, tiny):
    assert runner.target == "openvino"
    assert runner.folder == tiny
    assert runner.preprocessing == SPEC
    assert runner.labels[3] == "class 3"
    assert "CPU" in runner.backend.device


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_closed_runners_refuse(tiny, target):
    runner = open_bundle(str(tiny), target=target)
    with runner as same:
        assert same is runner
        runner.infer(pictures(1))
    runner.close()  # a second time
    with pytest.raises(TargetUnavailableError, match="closed"):
        runner.infer(pictures(1))
    with pytest.raises(TargetUnavailableError, match="closed"):
        runner.classify(pictures(1)[0])


def test_the_context_manager_closes_on_errors_too(tiny):
    with pytest.raises(ZeroDivisionError), open_bundle(tiny) as runner:
        raise ZeroDivisionError
    with pytest.raises(TargetUnavailableError, match="closed"):
        runner.infer(pictures(1))


def test_unknown_target(tiny):
    with pytest.raises(InputError, match="unknown target 'tpu'; known: tensorrt, tensorrt_rtx, openvino, onnxruntime"):
        open_bundle(tiny, target="tpu")


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)


# --- untrained bundles -----------------------------------------------------------------------------------------------


def test_untrained_bundles_do_not_answer(untrained):
    with open_bundle(untrained) as runner:
        with pytest.raises(UntrainedError, match=r"built from random weights.*or pass --allow-untrained"):
            runner.classify(pictures(2, side=40)[0])
        assert runner.infer(pictures(2)).logits.shape == (2, CLASSES)  # for inspection and benchmarks


def test_untrained_bundles_answer_when_told_to(untrained):
    with open_bundle(untrained, allow_untrained=True) as runner:
        assert len(runner.classify(list(pictures(3)))) == 3


def test_repr_says_what_is_open(tiny):
    with open_bundle(tiny, target="openvino") as runner:
        assert repr(runner) == f"<Runner of {tiny} on openvino: {runner.backend.device}>"


def verdict(bundle, outcome, *, target="openvino", sha256=None, measured="2026-01-01T00:00:00+00:00"):
    """Leave a verification in the manifest."""
    manifest = read_manifest(bundle)
    found = Accuracy(
        target=target,
        device="CPU",
        plan_sha256=sha256 or manifest.plans[0].files[0].sha256,
        data=f"{outcome} {measured}",
        reference=None,
        outcome=outcome,
        verdict="as measured",
        threshold=0.99,
        measured=measured,
        counts=Counts(images=1),
        figures=Figures(images=1),
    )
    add_accuracy(bundle, found)


def test_the_newest_verification_of_this_very_plan_is_known(own, tiny, caplog):
    bundle = own(tiny)
    with open_bundle(bundle, target="openvino") as runner:
        assert runner.verified is None
        with pytest.raises(AccuracyError, match=r"was never verified\. Run: iresnet verify"):
            runner.require_verified()
    verdict(bundle, "failed")
    verdict(bundle, "passed", target="tensorrt")
    verdict(bundle, "passed", sha256="0" * 64, measured="2026-03-03T00:00:00+00:00")  # of a plan that was replaced
    caplog.clear()
    with open_bundle(bundle, target="openvino") as runner:
        assert runner.verified.outcome == "failed"
        with pytest.raises(AccuracyError, match="has the verdict failed: as measured"):
            runner.require_verified()
    assert "FAILED its newest verification: as measured" in caplog.text
    verdict(bundle, "passed", measured="2026-02-02T00:00:00+00:00")
    caplog.clear()
    with open_bundle(bundle, target="openvino") as runner:
        runner.require_verified()
    assert caplog.text == ""
