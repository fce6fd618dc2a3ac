"""When batches go out, and that every row comes back to its request."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from serving import HandBackend

from infer.serve.batcher import Batcher
from infer.serve.ticket import Ticket


class Watch:
    def __init__(self):
        self.sizes, self.errors, self.broke = [], [], []

    def batch(self, rows, waits, seconds):
        self.sizes.append(rows)

    def failed(self, error):
        self.errors.append(error)

    def broken(self, error):
        self.broke.append(error)


def images(count, value=1):
    return np.full((count, 2, 2, 3), value, np.uint8)


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


@pytest.fixture
def batcher(loop):
    """``batcher(max_batch, in_flight, max_delay)``: the batcher, its device, its watch, and a way to add rows."""
    opened = []

    def make(max_batch=4, in_flight=1, max_delay=10.0, compiled=()):
        device, watch = HandBackend(max_batch, in_flight, compiled), Watch()
        made = Batcher(device, max_delay, watch, "test")
        opened.append((made, device))

        def add(count, value=1):
            ticket = Ticket(loop, count)
            made.put(ticket, 0, images(count, value))
            return ticket

        return made, device, watch, add

    yield make
    for made, device in opened:
        closer = threading.Thread(target=made.close)
        closer.start()
        while closer.is_alive():
            for _, future in device.batches:
                if not future.done():
                    future.set_exception(RuntimeError("the test is over"))
            closer.join(0.01)


def wait(loop, ticket):
    asyncio.run_coroutine_threadsafe(asyncio.wait_for(ticket.settled, 5), loop).result(6)


def test_an_idle_device_gets_what_is_there_at_once(batcher):
    _, device, _, add = batcher()
    add(1)
    assert device.next() == 1


def test_a_busy_device_gets_nothing_but_one_full_batch_ahead(batcher):
    _, device, _, add = batcher()
    add(1)
    assert device.next() == 1
    add(3)
    assert device.nothing()
    add(1)
    assert device.next() == 4
    add(4)
    assert device.nothing()
    device.finish(0)
    assert device.next() == 4


def test_room_and_a_partial_batch_wait_for_the_delay(batcher):
    _, device, _, add = batcher(in_flight=2, max_delay=0.15)
    add(1)
    assert device.next() == 1
    add(2)
    assert device.nothing(0.05)
    assert device.next() == 2


def test_a_partial_batch_goes_when_the_device_becomes_idle(batcher):
    _, device, _, add = batcher(in_flight=2)
    add(1)
    assert device.next() == 1
    add(2)
    assert device.nothing()
    device.finish(0)
    assert device.next() == 2


def test_a_full_batch_goes_where_there_is_room(batcher):
    _, device, _, add = batcher(in_flight=2)
    add(1)
    assert device.next() == 1
    for _ in range(4):
        add(1)
    assert device.next() == 4


def test_a_large_request_is_split_and_put_together(batcher, loop):
    made, device, _, add = batcher()
    before = add(1, 50)
    assert device.next() == 1
    big = Ticket(loop, 9)
    made.put(big, 0, np.arange(9, dtype=np.uint8).repeat(12).reshape(9, 2, 2, 3))
    after = add(1, 60)
    for number, rows in enumerate((1, 4, 4, 2)):
        if number:
            assert device.next() == rows
        device.finish(number)
    for ticket in (before, big, after):
        wait(loop, ticket)
    assert big.outputs().logits.ravel().tolist() == [12.0 * n for n in range(9)]
    assert (before.outputs().logits, after.outputs().logits) == (600.0, 720.0)


def test_a_batch_that_fails_costs_its_requests_only(batcher, loop):
    _, device, watch, add = batcher(max_batch=2)
    first = add(1)
    assert device.next() == 1
    second, third = add(2), add(2)
    assert device.next() == 2
    device.finish(0)
    device.finish(1, RuntimeError("broken"))
    assert device.next() == 2
    device.finish(2)
    for ticket in (first, second, third):
        wait(loop, ticket)
    assert first.outputs() is not None and third.outputs() is not None
    with pytest.raises(RuntimeError, match="broken"):
        second.failures()
    assert [str(error) for error in watch.errors] == ["broken"] and watch.sizes == [1, 2]


def test_a_request_that_was_given_up_is_not_run(batcher, loop):
    _, device, _, add = batcher()
    add(1)
    assert device.next() == 1
    gone, stays = add(2, 7), add(2, 9)
    gone.abandoned = True
    device.finish(0)
    assert device.next() == 2
    assert (device.batches[1][0] == 9).all()
    device.finish(1)
    wait(loop, stays)
    wait(loop, gone)
    assert gone.outputs() is None


@pytest.mark.parametrize(("rows", "sent"), [(3, 2), (5, 4), (6, 4), (7, 7), (1, 1)])
def test_padding_to_a_compiled_size_is_at_most_a_fifth(batcher, rows, sent):
    _, device, _, add = batcher(max_batch=8, compiled=(1, 2, 4, 8))
    add(8)
    assert device.next() == 8
    for _ in range(rows):
        add(1)
    device.finish(0)
    assert device.next() == sent


def test_closing_finishes_what_waits(batcher, loop):
    made, device, _, add = batcher()
    tickets = [add(3) for _ in range(3)]
    closer = threading.Thread(target=made.close)
    closer.start()
    for number in range(3):
        device.next()
        device.finish(number)
    closer.join(5)
    assert not closer.is_alive()
    for ticket in tickets:
        wait(loop, ticket)
        assert len(ticket.outputs().logits) == 3


def test_pinned_memory_is_filled_and_given_back_when_it_cannot_be(batcher, loop):
    """On a GPU the device lends its memory."""
    made, device, _, add = batcher()
    lent = []

    class Buffer:
        def __init__(self, rows):
            self.images, self.released = np.zeros((rows, 2, 2, 3), np.uint8), False
            lent.append(self)

        def submit(self, rows=None):
            return HandBackend.submit(device, self.images)

        def release(self):
            self.released = True

    device.try_acquire = Buffer
    ticket = add(2, 5)
    assert device.next() == 2 and (lent[0].images == 5).all()
    wrong = Ticket(loop, 1)
    made.put(wrong, 0, np.zeros((1, 3, 3, 3), np.uint8)[:, :, :2])
    device.finish(0)
    wait(loop, ticket)
    wait(loop, wrong)
    assert lent[-1].released
    with pytest.raises(ValueError, match="broadcast"):
        wrong.failures()
