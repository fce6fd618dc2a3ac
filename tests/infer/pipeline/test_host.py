"""Batches from records: order, bounds, failures."""

from __future__ import annotations

import io
import itertools
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from specs import sized

from infer.errors import ImageError, InputError
from infer.images import decode_image
from infer.images.resize import preprocess
from infer.pipeline.host import load_batches, usable_cpus
from infer.sources import Record

SPEC = sized(20, 16)


def encoded(number):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (18 + number % 7, 22, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(number, read=None, **options):
    return Record(f"image {number}", Path(), f"{number}.png", read or partial(encoded, number), **options)


def broken(number):
    return record(number, lambda: encoded(number)[:60])


def expected(number):
    return preprocess(decode_image(encoded(number)), SPEC)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_order_and_pixels(workers, batch):
    count = 23
    batches = list(load_batches(map(record, range(count)), SPEC, batch, workers=workers))
    assert [len(b.images) for b in batches] == [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    assert np.concatenate([b.indices for b in batches]).tolist() == list(range(count))
    assert [r.name for b in batches for r in b.records] == [f"image {i}" for i in range(count)]
    assert all(b.images.flags.c_contiguous and b.images.dtype == np.uint8 and not b.failures for b in batches)
    for number, row in enumerate(np.concatenate([b.images for b in batches])):
        assert (row == expected(number)).all()


def test_slow_images_do_not_change_the_order():
    def slow(number):
        time.sleep(0.02 * (number % 3 == 0))
        return encoded(number)

    records = [record(i, partial(slow, i)) for i in range(12)]
    batches = load_batches(records, SPEC, 4, workers=4)
    assert [r.name for b in batches for r in b.records] == [f"image {i}" for i in range(12)]


def test_a_bad_image_costs_one_image():
    missing = Record("gone.png", Path(), "gone.png", defect="no such file or folder")
    records = [record(0), broken(1), record(2), record(3), missing, broken(5), broken(6), broken(7), record(8)]
    batches = list(load_batches(records, SPEC, 3, workers=2))
    assert [b.indices.tolist() for b in batches] == [[0, 2], [3], [8]]
    assert [[f.index for f in b.failures] for b in batches] == [[1], [4, 5], [6, 7]]
    assert batches[1].failures[0].record is missing
    assert str(batches[1].failures[0].error) == "gone.png: no such file or folder"
    assert str(batches[0].failures[0].error).startswith("image 1: ")
    for b in batches:
        assert len(b.images) == len(b.records) == len(b.indices) and b.images.flags.c_contiguous
        for index, row in zip(b.indices, b.images, strict=True):
            assert (row == expected(index)).all()


def test_a_batch_without_any_good_image_is_empty():
    (only,) = load_batches([broken(0), broken(1)], SPEC, 2, workers=2)
    assert only.images.shape == (0, 16, 16, 3) and only.records == [] and only.indices.shape == (0,)
    assert len(only.failures) == 2
    assert list(load_batches([], SPEC, 2)) == []


def test_strict_raises_for_the_first_in_order():
    def late():
        time.sleep(0.05)
        return b"nothing"

    stream = load_batches([record(0), record(1), record(2, late), broken(3)], SPEC, 2, workers=4, strict=True)
    assert len(next(stream).images) == 2
    with pytest.raises(ImageError, match=r"^image 2: not an image"):
        next(stream)


def test_look_ahead_is_bounded_and_threads_end():
    taken = 0

    def endless():
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield record(number % 5)

    before = threading.active_count()
    stream = load_batches(endless(), SPEC, 4, workers=3)
    assert taken == 0
    for handed_out in range(1, 6):
        next(stream)
        assert taken <= 4 * (handed_out + 1 + 2), "batch 4, 3 workers: three batches ahead"
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_an_exception_of_the_consumer_ends_the_threads():
    before = threading.active_count()

    def consume():
        for _ in load_batches(map(record, range(50)), SPEC, 2, workers=2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert threading.active_count() == before


def test_sequential_records_are_read_in_order_by_one_thread():
    order = []

    def read(number):
        order.append((number, threading.current_thread()))
        if number == 4:
            raise ImageError("image 4: the tar file cannot be read here")
        return encoded(number)

    records = [record(i, partial(read, i), sequential=True) for i in range(10)]
    batches = list(load_batches(records, SPEC, 3, workers=4))
    assert order == [(i, threading.main_thread()) for i in range(10)]
    assert [f.index for b in batches for f in b.failures] == [4]
    assert all((row == expected(i)).all() for b in batches for i, row in zip(b.indices, b.images, strict=True))


def test_a_defect_of_the_program_is_not_hidden():
    def wrong():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(load_batches([record(0, wrong)], SPEC, 1))


def test_arrays_belong_to_the_receiver():
    batches = list(load_batches(map(record, range(6)), SPEC, 2, workers=2))
    assert not any(np.shares_memory(a.images, b.images) for a, b in itertools.combinations(batches, 2))


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": 1, "workers": 0}])
def test_bounds(options):
    with pytest.raises(InputError, match="at least 1, found 0"):
        load_batches([], SPEC, **options)
    assert usable_cpus() >= 1


class Buffers:
    """Memory of a consumer: so many buffers, and what became of each."""

    def __init__(self, count, rows=100):
        self.memory = [np.zeros((rows, 16, 16, 3), np.uint8) for _ in range(count)]
        self.asked, self.taken, self.released = [], [], []

    def acquire(self, rows):
        self.asked.append(rows)
        if not self.memory:
            return None
        buffer = Buffer(self, self.memory.pop(0)[:rows])
        self.taken.append(buffer)
        return buffer


class Buffer:
    def __init__(self, owner, images):
        self.owner, self.images = owner, images

    def release(self):
        self.owner.released.append(self)


def test_batches_are_written_where_the_consumer_says():
    buffers = Buffers(2)
    batches = list(load_batches(map(record, range(11)), SPEC, 3, workers=2, acquire=buffers.acquire))
    assert buffers.asked == [3, 3, 3, 2]
    assert [b.buffer for b in batches] == [*buffers.taken, None, None]
    for b in batches:
        for index, row in zip(b.indices, b.images, strict=True):
            assert (row == expected(index)).all()
    for b, memory in zip(batches, buffers.taken, strict=False):
        assert np.shares_memory(b.images, memory.images) and b.images.ctypes.data == memory.images.ctypes.data
    assert buffers.released == []


def test_failures_do_not_leave_gaps_in_the_buffer():
    buffers = Buffers(1)
    (batch,) = load_batches(
        [broken(0), record(1), broken(2), record(3), record(4)], SPEC, 5, workers=2, acquire=buffers.acquire
    )
    assert batch.indices.tolist() == [1, 3, 4] and [f.index for f in batch.failures] == [0, 2]
    assert batch.images.ctypes.data == buffers.taken[0].images.ctypes.data
    for index, row in zip((1, 3, 4), buffers.taken[0].images[:3], strict=True):
        assert (row == expected(index)).all()


def test_buffers_come_back_when_the_loop_ends_early():
    buffers = Buffers(8)
    stream = load_batches(map(record, range(50)), SPEC, 2, workers=2, acquire=buffers.acquire)
    first = next(stream)
    stream.close()
    assert len(buffers.taken) > 1
    assert buffers.released == [b for b in buffers.taken if b is not first.buffer]
    buffers = Buffers(8)
    with pytest.raises(ImageError):
        list(load_batches([record(0), broken(1)], SPEC, 2, workers=2, strict=True, acquire=buffers.acquire))
    assert buffers.released == buffers.taken != []


def test_fast_reaches_the_decoder():
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    item = record(0, buffer.getvalue)
    exact, fast = (next(load_batches([item], SPEC, 1, fast=fast)).images[0] for fast in (False, True))
    scaled = preprocess(decode_image(buffer.getvalue(), shortest=40), SPEC).astype(int)
    assert np.abs(exact - scaled).mean() > 0.6
    assert np.abs(fast - scaled).mean() < 0.3  # decoders round differently
