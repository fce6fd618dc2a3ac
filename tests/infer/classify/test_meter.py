"""Rates, remaining time and what a job waits for, with a clock of our own."""

from __future__ import annotations

import io
import sys

import pytest

from infer.classify.meter import Meter, shown


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def work(meter, clock, count, decode=0.0, infer=0.0, write=0.0):
    for activity, seconds in (("decode", decode), ("infer", infer), ("write", write)):
        with meter.waiting(activity):
            clock.now += seconds
    meter.advance(count)


def test_a_whole_run(clock):
    meter = Meter(clock)
    meter.skip(400)
    meter.total = 1000
    work(meter, clock, 100, decode=6, infer=3)
    clock.now += 1
    assert (meter.done, meter.fresh, meter.seconds) == (500, 100, 10)
    assert meter.rate == meter.recent_rate == 10
    assert meter.remaining() == 50
    assert meter.shares() == "waited 60 % for decoding, 30 % for the engine, 0 % for writing"
    line = "500 of 1000 images, 10.0/s, 0:00:50 to go; waited 60 % for decoding, 30 % for the engine, 0 % for writing"
    assert meter.line() == line


def test_nothing_is_known_at_the_start(clock):
    meter = Meter(clock)
    assert meter.remaining() is None
    assert meter.line().startswith("0 images, 0.0/s; waited 0 % ")
    work(meter, clock, 5, decode=1)
    assert meter.remaining() is None, "no total"


def test_the_remaining_time_follows_the_present_rate(clock):
    meter = Meter(clock)
    meter.total = 20_000
    for _ in range(1000):
        work(meter, clock, 10, infer=1)
    for _ in range(100):
        work(meter, clock, 1, decode=1)
    assert meter.rate == pytest.approx(10_100 / 1100)
    assert meter.recent_rate == pytest.approx(1)
    assert meter.remaining() == pytest.approx(9900)


def test_an_interrupted_wait_counts(clock):
    meter = Meter(clock)
    with pytest.raises(KeyboardInterrupt), meter.waiting("infer"):
        clock.now += 2
        raise KeyboardInterrupt
    assert meter.waited["infer"] == 2


def test_lines_where_there_is_no_terminal(clock, capsys):
    meter = Meter(clock)
    with shown("classify", meter, every=10) as changed:
        for _ in range(25):
            work(meter, clock, 2, decode=1)
            changed()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines] == ["classify: 20 images, 2.0/s", "classify: 40 images, 2.0/s"]


def test_a_bar_on_a_terminal(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    meter = Meter(clock)
    meter.total = 10
    with shown("classify", meter) as changed:
        for _ in range(5):
            work(meter, clock, 2, decode=1)
            changed()
    assert "10 of 10 images, 2.0/s, 0:00:00 to go, 100 % waiting for decoding" in terminal.getvalue()
