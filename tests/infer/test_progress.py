"""Progress bars: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from infer.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_nothing_where_there_is_no_terminal(capsys):
    with progress("classify", 10) as advance:
        advance(4)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [10, None])
def test_a_bar_on_a_terminal(monkeypatch, total):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("verify", total) as advance:
        for _ in range(5):
            advance(2)
    shown = terminal.getvalue()
    assert "verify" in shown
    if total:
        assert "10/10" in shown


def test_errors_pass_and_end_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ZeroDivisionError), progress("verify", 3):
        raise ZeroDivisionError
    with progress("again", 3) as advance:  # rich allows one live display at a time
        advance(3)
