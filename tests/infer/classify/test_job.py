"""The loop from records to rows: order, failures, what may be written after an error, bounded work."""

from __future__ import annotations

import io
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from specs import sized

from infer.backends.base import Outputs
from infer.classify.job import JobCounts, run_job, skip_kept
from infer.classify.meter import Meter
from infer.classify.sinks.rows import Kept
from infer.errors import ImageError, InputError, IResNetError
from infer.pipeline import run_records
from infer.shard import Shard
from infer.sources import Record

BATCH = 4


def encoded(value):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def record(number):
    read = partial(encoded, number) if number % 5 != 3 else partial(bytes, 3)
    return Record(f"{number}.png", Path(), f"{number}.png", read)


class Echo:
    """A backend whose class is the red of the image, that notes how it is used."""

    target, device, max_batch, in_flight = "echo", "none", BATCH, 2

    def __init__(self, fails_at=None):
        self.submitted, self.fails_at = [], fails_at

    def submit(self, batch):
        red = batch[:, 0, 0, 0].astype(np.int32)
        self.submitted.append(red.tolist())
        future = Future()
        if len(self.submitted) == self.fails_at:
            future.set_exception(RuntimeError("the device is gone"))
        else:
            future.set_result(Outputs(np.zeros((len(red), 256)), np.ones((len(red), 1), np.float32), red[:, None]))
        return future

    def try_acquire(self, rows):
        return None


class Sink:
    def __init__(self, fails_at=None):
        self.batches, self.fails_at = [], fails_at

    def write(self, predictions):
        self.batches.append([p.top[0].index if p.top else p.error for p in predictions])
        if len(self.batches) == self.fails_at:
            raise IResNetError("full")


@pytest.fixture
def job():
    def run(numbers, sink=None, backend=None, records=record, **options):
        state = SimpleNamespace(
            sink=sink or Sink(), backend=backend or Echo(), meter=Meter(), tally=JobCounts(), failed=[], changes=0
        )
        labels = [str(i) for i in range(256)]
        runner = SimpleNamespace(
            backend=state.backend, labels=labels, run=partial(run_records, state.backend, sized(8, 8))
        )

        def changed():
            state.changes += 1

        state.start = partial(
            run_job, runner, map(records, numbers), state.sink, top=1, meter=state.meter, tally=state.tally,
            failed=state.failed.append, changed=changed, **options,
        )  # fmt: skip
        return state

    return run


def row(number):
    expected = f"{number}.png: not an image, or of no known format (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF)"
    return number if number % 5 != 3 else expected


def test_every_record_gives_one_row_in_order(job):
    state = job(range(22))
    state.start()
    assert state.sink.batches == [[row(n) for n in range(at, min(at + 4, 22))] for at in range(0, 22, 4)]
    assert (state.tally.good, state.tally.failed) == (18, 4)
    assert [p.name for p in state.failed] == ["3.png", "8.png", "13.png", "18.png"]
    assert (state.meter.done, state.changes) == (22, 6)
    assert sum(state.meter.waited.values()) <= state.meter.seconds


def test_a_batch_of_failures_only(job):
    state = job([0, 1, 2, 4, 3, 8, 13, 18, 5, 6])
    state.start()
    assert state.sink.batches == [[0, 1, 2, 4], [row(3), row(8), row(13), row(18)], [5, 6]]
    assert state.backend.submitted == [[0, 1, 2, 4], [5, 6]]


def test_reasons_are_one_printable_line(job):
    def load():
        raise ImageError("odd.png: first\n  second \x1b[31m")

    state = job([0], records=lambda number: Record("odd.png", Path(), "odd.png", load))
    state.start()
    assert state.sink.batches == [["odd.png: first second \\x1b[31m"]]


def test_strict_writes_what_came_before(job):
    state = job([0, 1, 2, 4, 5, 6, 7, 9, 10, 13, 14], strict=True)
    with pytest.raises(ImageError, match=r"^13\.png: "):
        state.start()
    assert state.sink.batches == [[0, 1, 2, 4], [5, 6, 7, 9]]


def test_after_an_error_no_row_may_be_missing(job):
    state = job(range(60), sink=Sink(fails_at=3))
    with pytest.raises(IResNetError, match="full"):
        state.start()
    assert len(state.sink.batches) == 3, "nothing is written behind rows that could not be"
    assert state.meter.done == 8
    state = job(range(60), backend=Echo(fails_at=3))
    with pytest.raises(RuntimeError, match="the device is gone"):
        state.start()
    assert state.sink.batches == [[row(n) for n in range(at, at + 4)] for at in (0, 4)]


def test_rows_come_out_while_records_still_come(job):
    out_when_taken = []
    state = job(range(1000))

    def taken(number):
        out_when_taken.append(state.meter.done)
        return record(number)

    state = job(range(1000), records=taken)
    state.start()
    assert max(number - done for number, done in enumerate(out_when_taken)) < 500
    assert state.meter.done == 1000


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards(count):
    shards = [Shard(index, count) for index in range(count)]
    taken = [[r.name for r in shard.take(map(record, range(20)))] for shard in shards]
    assert [name for i in range(20) for name in [taken[i % count][i // count]]] == [f"{i}.png" for i in range(20)]
    assert [shard.share(20) for shard in shards] == [len(names) for names in taken]
    assert Shard.parse(f"{count - 1}/{count}") == shards[-1] and str(shards[-1]) == f"{count - 1}/{count}"


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "-1/2", "a/b", "1/2/3", "²/3", "2/2", "1/0", "1.0/2"])
def test_no_shards(text):
    with pytest.raises(InputError, match=r"^--shard: "):
        Shard.parse(text)


def test_kept_rows_are_passed_over_unread():
    def unread(number):
        return Record(f"{number}.png", Path(), "", partial(pytest.fail, "read"))

    records = map(unread, range(9))
    tally = JobCounts()
    assert skip_kept(records, [Kept(f"{i}.png", i == 2) for i in range(5)], tally) == 5
    assert next(records).name == "5.png"
    assert (tally.good, tally.failed) == (4, 1)
    with pytest.raises(InputError, match=r"row 1 of the interrupted run is x\.png, the inputs now have 7\.png there"):
        skip_kept(records, [Kept("6.png", False), Kept("x.png", False)], tally)
    with pytest.raises(InputError, match="the inputs now end before it"):
        skip_kept(records, [Kept("8.png", False), Kept("9.png", False)], tally)
