"""Pictures that are out to crash, hang or starve the job: each gives its row, and the others lose nothing."""

from __future__ import annotations

import random

import pytest
from hostile_images import Case, sound, suite_cases
from hostile_run import classify_cases


@pytest.fixture(scope="module")
def outcome(tiny):
    cases = suite_cases()
    random.Random(1).shuffle(cases)
    return classify_cases(tiny, cases, timeout=120)


@pytest.fixture(scope="module")
def peaceful(tiny):
    """The sound ones alone."""
    return classify_cases(tiny, [Case(name, data, "good") for name, data in sound().items()], timeout=120)


def test_each_gives_one_row_with_a_class_or_a_named_error(outcome):
    assert outcome.wrong == []
    assert len(outcome.rows) > 400


def test_the_sound_ones_are_answered_as_if_they_were_alone(outcome, peaceful):
    assert peaceful.wrong == []
    for name, row in peaceful.rows.items():
        other = outcome.rows[name]
        assert [r["label"] for r in other["top"]] == [r["label"] for r in row["top"]], name
        assert [r["score"] for r in other["top"]] == pytest.approx([r["score"] for r in row["top"]], abs=1e-5), name


def test_memory_stays_bounded(outcome, peaceful):
    assert 0 < outcome.peak_mb < peaceful.peak_mb + 200
