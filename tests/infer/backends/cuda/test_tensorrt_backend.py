"""The TensorRT backend under TensorRT 10.16, 11.4 and RTX 1.7: results, arguments, opening and closing."""

from __future__ import annotations

import gc
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_emulator.emulator import COMPUTE
from PIL import Image
from specs import sized
from trt_stand_in.graph import write_graph
from trt_stand_in.kernels import run_graph

from infer.backends.cuda.pinned import PinnedBatch
from infer.backends.cuda.staging import Staging
from infer.errors import BundleError, InputError, TargetUnavailableError
from infer.runner import Runner
from infer.sources import Record


def test_infer_gives_the_rows_of_any_batch(stack: Any) -> None:
    with stack.open() as backend:
        assert (backend.target, backend.max_batch, backend.in_flight) == (stack.target, 8, 6)
        assert (backend.image_shape, backend.num_classes, backend.top_k) == ((8, 8, 3), 10, 3)
        for rows in (1, 3, 8, 2, 8, 5):
            images = stack.images(rows, seed=rows)
            stack.check(images, backend.infer(images))
    assert backend.notes == []


def test_a_batch_splits_without_changing_a_bit(stack: Any) -> None:
    images = None
    with stack.open() as backend:
        images = stack.images(8)
        whole = backend.infer(images)
        for cut in range(1, 8):
            parts = [backend.submit(images[:cut]), backend.submit(images[cut:])]
            logits = np.concatenate([part.result().logits for part in parts])
            np.testing.assert_array_equal(logits, whole.logits)


def test_an_onnx_graph_gives_what_onnx_runtime_gives(stack: Any) -> None:
    graph = stack.folder / "small.onnx"
    write_graph(graph)
    with stack.open(stack.write(graph=str(graph), max_batch=4)) as backend:
        for rows in (4, 1, 3):
            images = stack.images(rows, seed=rows)
            for have, want in zip(backend.infer(images), run_graph(str(graph), images), strict=True):
                np.testing.assert_array_equal(have, want)


def test_results_belong_to_the_caller(stack_11: Any) -> None:
    with stack_11.open() as backend:
        images = stack_11.images(4)
        first = backend.infer(images)
        kept = [array.copy() for array in first]
        for seed in range(1, 9):
            backend.infer(stack_11.images(8, seed))
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
        array[:] = 0  # writable


def test_the_input_may_be_changed_after_submit(stack: Any) -> None:
    stack.emulator.delays(5, 5, 5)
    with stack.open() as backend:
        images = stack.images(8)
        copy = images.copy()
        future = backend.submit(images)
        images[:] = 0
        stack.check(copy, future.result())


def test_strided_input_is_accepted(stack_11: Any) -> None:
    with stack_11.open() as backend:
        images = stack_11.images(8)[::2, :, ::-1]
        stack_11.check(images, backend.infer(images))


def test_stream_keeps_the_order_and_its_look_ahead(stack: Any) -> None:
    taken = 0

    def batches() -> Any:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield stack.images(number % 8 + 1, seed=number)

    with stack.open() as backend:
        for number, outputs in enumerate(backend.stream(batches(), look_ahead=2)):
            stack.check(stack.images(number % 8 + 1, seed=number), outputs)
            assert taken <= number + 3
    assert taken == 20


def test_two_streams_in_one_thread_do_not_starve_each_other(stack_11: Any) -> None:
    with stack_11.open() as backend:
        seeds = [range(0, 10), range(10, 20)]
        streams = [backend.stream(stack_11.images(2, seed) for seed in part) for part in seeds]
        for a, b, outputs_a, outputs_b in zip(*seeds, *streams, strict=True):
            stack_11.check(stack_11.images(2, a), outputs_a)
            stack_11.check(stack_11.images(2, b), outputs_b)


def test_pinned_memory_is_filled_in_place(stack: Any) -> None:
    with stack.open() as backend:
        images = stack.images(5)
        with backend.acquire(5) as pinned:
            assert pinned.images.shape == images.shape and pinned.images.dtype == np.uint8
            pinned.images[:] = images
            future = pinned.submit()
        stack.check(images, future.result())
        with pytest.raises(InputError, match="submitted or released"):
            _ = pinned.images
        with backend.acquire(8) as pinned:
            pinned.images[:2] = images[:2]
            stack.check(images[:2], pinned.submit(2).result())


def test_unused_pinned_batches_come_back(stack_11: Any) -> None:
    with stack_11.open() as backend:
        held = [backend.acquire(1) for _ in range(6)]
        with pytest.raises(InputError, match="all 6 buffers"):
            backend.acquire(1, timeout=0.02)
        held[0].release()
        held[0].release()
        backend.acquire(1, timeout=1.0).release()
        del held[1:]
        stack_11.check(stack_11.images(8), backend.infer(stack_11.images(8)))


def test_a_callback_of_a_result_finds_its_buffer_free(stack_11: Any) -> None:
    """Else a callback that sends the next batch would wait for itself."""
    with stack_11.open(slots=1) as backend:
        stack_11.emulator.delay(COMPUTE, 30)
        held, batch, answers = backend.acquire(1), backend.acquire(8), SimpleQueue()
        assert backend.in_flight == 2

        def send_again(_: Any) -> None:
            with backend.acquire(8, timeout=2) as again:
                again.images[:] = stack_11.images(8, 1)
                answers.put(again.submit())

        batch.images[:] = stack_11.images(8)
        future = batch.submit()
        future.add_done_callback(send_again)
        stack_11.check(stack_11.images(8), future.result(10))
        stack_11.check(stack_11.images(8, 1), answers.get(timeout=10).result(10))
        held.release()


def test_half_of_the_buffers_are_given_without_waiting(stack_11: Any) -> None:
    with stack_11.open() as backend:
        held = [backend.try_acquire(2) for _ in range(3)]
        assert None not in held and backend.try_acquire(1) is None
        stack_11.check(stack_11.images(8), backend.infer(stack_11.images(8)))  # the other half is free for this
        held[0].release()
        with backend.try_acquire(1) as again:
            again.images[:] = stack_11.images(1)
            assert backend.try_acquire(1) is None
            stack_11.check(stack_11.images(1), again.submit().result())
        rest = [backend.acquire(1) for _ in range(4)]  # all are in use
        assert backend.try_acquire(1) is None
        with pytest.raises(InputError, match="1 to 8 images"):
            backend.try_acquire(9)
        del held, rest
    with pytest.raises(InputError, match="closed"):
        backend.try_acquire(1)


@pytest.mark.parametrize("slots", [1, 3])
def test_records_are_decoded_into_pinned_memory(stack_11: Any, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with stack_11.open(slots=slots) as backend:
        side = stack_11.plan.image[0]
        pictures = stack_11.images(37)
        records = [Record(str(n), Path(), "", partial(_picture, pictures[n])) for n in range(37)]
        records[4] = Record("bad", Path(), "", lambda: b"no image")
        model = SimpleNamespace(num_classes=stack_11.plan.num_classes)
        manifest = SimpleNamespace(
            preprocessing=sized(side, side),
            model=model,
            outputs=[None, SimpleNamespace(shape=(None, stack_11.plan.top_k))],
        )
        pinned = []
        submit = PinnedBatch.submit
        monkeypatch.setattr(PinnedBatch, "submit", lambda self, rows=None: pinned.append(rows) or submit(self, rows))
        runner = Runner(Path(), manifest, [], backend, True)
        answers = list(runner.run(records))
        good = [n for n in range(37) if n != 4]
        assert [n for a in answers for n in a.indices.tolist()] == good
        assert [f.index for a in answers for f in a.failures] == [4]
        for a in answers:
            stack_11.check(pictures[a.indices], a.outputs)
        assert pinned and all(rows in (5, 7, 8) for rows in pinned)
        stream = runner.run(records)
        next(stream)
        stream.close()
        backend.acquire(1, timeout=5).release()


def _picture(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_submit_waits_while_all_slots_are_under_way(stack_11: Any) -> None:
    with stack_11.open() as backend:
        stack_11.emulator.delays(0, 60, 0)
        futures = [backend.submit(stack_11.images(1, seed)) for seed in range(7)]
        assert futures[0].done()  # else the seventh had no buffer
        assert not futures[6].done()
        assert [f.result().classes.shape for f in futures] == [(1, 3)] * 7


def test_many_threads_get_their_own_answers(stack: Any) -> None:
    with stack.open() as backend:
        inputs = [stack.images(seed % 8 + 1, seed) for seed in range(120)]
        with ThreadPoolExecutor(8) as pool:
            for images, outputs in zip(inputs, pool.map(backend.infer, inputs), strict=True):
                stack.check(images, outputs)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((9, 8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        [[0]],
    ],
)
def test_wrong_input_is_named_and_costs_no_buffer(stack_11: Any, images: Any) -> None:
    with stack_11.open(slots=1) as backend:
        for _ in range(3):
            with pytest.raises(InputError, match="expected"):
                backend.submit(images)
            with pytest.raises(InputError, match="expected"):
                backend.infer(images)
        stack_11.check(stack_11.images(8), backend.infer(stack_11.images(8)))


def test_a_smaller_batch_needs_less_memory(stack: Any) -> None:
    path = stack.write(scratch_per_image=100_000)
    with stack.open(path) as backend:
        full = stack.emulator.live()["device_bytes"]
    with stack.open(path, max_batch=2) as backend:
        assert backend.max_batch == 2
        assert stack.emulator.live()["device_bytes"] < full / 2
        stack.check(stack.images(2), backend.infer(stack.images(2)))
        with pytest.raises(InputError, match="1 to 2"):
            backend.infer(stack.images(3))
    with pytest.raises(InputError, match="1 to 8"):
        stack.open(path, max_batch=9)


def test_scratch_memory_is_one_allocation(stack: Any) -> None:
    with stack.open(slots=3):
        three = stack.emulator.live()["device_allocations"]
    with stack.open(slots=2):
        two = stack.emulator.live()["device_allocations"]
    contexts = 1 if stack.target == "tensorrt_rtx" else 3  # the slot's and those of its two graphs
    assert three - two == 2 + contexts  # input, outputs and what each execution context keeps


def test_expected_shapes_are_checked(stack: Any) -> None:
    path = stack.write()
    stack.open(path, input_shape=(8, 8, 3), num_classes=10, top_k=3).close()
    for wrong in ({"input_shape": (9, 8, 3)}, {"num_classes": 11}, {"top_k": 5}):
        with pytest.raises(BundleError, match="build it again"):
            stack.open(path, **wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensors": [["images", "FLOAT"], ["logits", "FLOAT"], ["scores", "FLOAT"], ["classes", "INT32"]]}, "UINT8"),
        ({"tensors": [["input", "UINT8"], ["logits", "FLOAT"], ["scores", "FLOAT"], ["classes", "INT32"]]}, "'images'"),
        ({"tensors": [["images", "UINT8"], ["logits", "FLOAT"]]}, "'scores'"),
        ({"min_batch": 2}, "from batch 1"),
    ],
)
def test_foreign_plans_are_refused(stack: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        stack.open(stack.write(**options))


def test_plans_of_another_version_are_refused_with_the_reason(stack: Any) -> None:
    from trt_stand_in.plan import write_plan

    other = "tensorrt-11" if stack.key != "tensorrt-11" else "tensorrt-10"
    write_plan(stack.folder / "other.plan", other)
    with pytest.raises(TargetUnavailableError, match=r"build it again.*not compatible with this version"):
        stack.open(stack.folder / "other.plan")
    (stack.folder / "garbage.plan").write_bytes(b"\x00" * 100)
    with pytest.raises(TargetUnavailableError, match="magicTag"):
        stack.open(stack.folder / "garbage.plan")


def test_closed_backends_say_so(stack: Any) -> None:
    backend = stack.open()
    images = stack.images(2)
    pinned = backend.acquire(2)
    backend.close()
    backend.close()
    for call in (backend.submit, backend.infer, backend.profile):
        with pytest.raises(InputError, match="closed"):
            call(images)
    with pytest.raises(InputError, match="closed"):
        pinned.submit()
    with pytest.raises(InputError, match="closed"):
        backend.acquire(1)
    with pytest.raises(InputError, match="closed"):
        backend.enqueue(256, 1, (256, 256, 256), 0)


def test_close_finishes_what_is_under_way(stack: Any) -> None:
    backend = stack.open()
    stack.emulator.delays(10, 10, 10)
    images = [stack.images(4, seed) for seed in range(3)]
    futures = [backend.submit(batch) for batch in images]
    backend.close()
    for batch, future in zip(images, futures, strict=True):
        assert future.done()
        stack.check(batch, future.result())


def test_close_waits_for_threads_that_run_a_batch(stack: Any) -> None:
    backend = stack.open()
    stack.emulator.delays(30, 30, 30)
    images = [stack.images(4, seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(backend.infer, batch) for batch in images]
        while stack.emulator.live()["operations"] < 12:  # three operations and the end of each batch
            time.sleep(0.001)
        backend.close()
        for batch, future in zip(images, futures, strict=True):
            stack.check(batch, future.result())


def test_close_between_the_launch_of_a_batch_and_its_hand_over(stack_11: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that finishes batches ends; the caller finishes this one."""
    backend = stack_11.open()
    closing, launch = threading.Thread(target=backend.close, daemon=True), Staging.launch

    def launch_and_close(self: Staging, rows: int) -> None:
        launch(self, rows)
        closing.start()
        with pytest.raises(InputError, match="closed"):
            while True:
                backend.acquire(1).release()

    monkeypatch.setattr(Staging, "launch", launch_and_close)
    stack_11.check(stack_11.images(4), backend.submit(stack_11.images(4)).result(10))
    closing.join(10)
    assert not closing.is_alive()


def test_close_from_many_threads_and_from_a_callback(stack_11: Any) -> None:
    backend = stack_11.open()
    stack_11.emulator.delays(2, 2, 2)
    futures = [backend.submit(stack_11.images(4, seed)) for seed in range(3)]
    futures[0].add_done_callback(lambda _: backend.close())
    threads = [threading.Thread(target=backend.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [future.result().classes.shape for future in futures] == [(4, 3)] * 3
    deadline = threading.Event()
    for _ in range(500):  # the thread that really closes may be the runner's own
        if stack_11.emulator.live()["contexts"] == 0:
            break
        deadline.wait(0.01)


def test_waiting_threads_are_released_by_close(stack_11: Any) -> None:
    backend = stack_11.open(slots=1)
    held = [backend.acquire(1), backend.acquire(1)]
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            backend.infer(stack_11.images(1))
        except InputError as error:
            failures.append(error)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    backend.close()
    for thread in threads:
        thread.join(10)
    assert len(failures) == 4
    for one in held:
        one.release()


def test_a_view_of_pinned_memory_outlives_close(stack_11: Any) -> None:
    backend = stack_11.open()
    with backend.acquire(1) as pinned:
        view = pinned.images[0]
    view[:] = 7
    backend.close()
    with stack_11.open() as other:  # what remains harms nobody
        stack_11.check(stack_11.images(2), other.infer(stack_11.images(2)))
    assert (view == 7).all()  # not freed under the caller's hands
    assert stack_11.emulator.live()["pinned_allocations"] == 1
    part = view[1:2, 1:]
    del view, pinned, backend
    gc.collect()  # what waits for the last array is nobody's but its own
    assert (part == 7).all()
    assert stack_11.emulator.live()["pinned_allocations"] == 1
    del part  # the fixture sees that it is freed now, and the context with it


def test_profile_times_the_stages(stack: Any) -> None:
    with stack.open() as backend:
        stack.emulator.delays(40, 90, 10)
        times = backend.profile(stack.images(8))
    assert times.h2d == pytest.approx(40, abs=15)  # the host may be held up between an event and the copy behind it
    assert times.compute == pytest.approx(90, abs=0.1)
    assert times.d2h == pytest.approx(10, abs=0.1)
    assert 0 < times.enqueue < times.total and times.total >= 140


def test_slots_out_of_range(stack_11: Any) -> None:
    with pytest.raises(InputError, match="slots"):
        stack_11.open(slots=0)


def test_bundle_without_weights_memory(stack: Any, tmp_path: Path) -> None:
    with stack.open(stack.write(weights_bytes=0, scratch_bytes=0, scratch_per_image=0, context_bytes=0)) as backend:
        stack.check(stack.images(8), backend.infer(stack.images(8)))
