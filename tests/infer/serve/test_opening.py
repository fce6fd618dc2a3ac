"""Opening the first bundle ahead of the server: once, with its errors, and released where nobody takes it."""

from __future__ import annotations

import pytest
from serving import running

from infer.errors import BundleError
from infer.runner import Runner
from infer.serve import opening
from infer.serve.opening import EarlyOpening
from infer.serve.options import ServeOptions, Source


@pytest.fixture
def closed(monkeypatch):
    """Runners that were closed."""
    seen, close = [], Runner.close
    monkeypatch.setattr(Runner, "close", lambda self: (seen.append(self), close(self)))
    return seen


def test_it_is_taken_once(tiny, closed):
    early = EarlyOpening(ServeOptions((Source(tiny),)))
    assert early.take(Source(tiny / "other")) is None
    found = early.take(Source(tiny, "x", "1"))
    assert found is not None and found.resident > 0
    assert early.take(Source(tiny)) is None
    early.close()
    assert closed == []
    found.runner.close()


def test_what_nobody_takes_is_released(tiny, closed):
    EarlyOpening(ServeOptions((Source(tiny),))).close()
    assert len(closed) == 1


def test_errors_come_where_it_is_taken(tmp_path):
    early = EarlyOpening(ServeOptions((Source(tmp_path),)))
    with pytest.raises(BundleError, match="is not a bundle"):
        early.take(Source(tmp_path))
    EarlyOpening(ServeOptions((Source(tmp_path),))).close()


def test_several_bundles_are_opened_in_turn(tiny):
    early = EarlyOpening(ServeOptions((Source(tiny), Source(tiny))))
    assert early.take(Source(tiny)) is None
    early.close()


def test_the_server_takes_it(tiny, monkeypatch):
    """And opens the bundle itself when it is loaded again."""
    opened, original = [], opening.open_warm
    monkeypatch.setattr(opening, "open_warm", lambda *arguments: opened.append("early") or original(*arguments))
    monkeypatch.setattr(
        "infer.serve.models.open_warm", lambda *arguments: opened.append("late") or original(*arguments)
    )
    options = ServeOptions((Source(tiny, "tiny"),))
    early = EarlyOpening(options)
    with running(options, early=early) as server, server.client() as http:
        assert http.get("/v2/health/ready").status_code == 200
    assert opened == ["early"]
    early.close()
