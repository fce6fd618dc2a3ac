"""Tables, facts and sentences in terminals of several widths."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from terminals import Pipe, Terminal, check_fits

from infer.tables import Column, one_line, print_facts, print_table, print_title, say, wrap

COLUMNS = (
    Column("GPU", left=True),
    Column("batch", drop=1),
    Column("rate", drop=2),
    Column("remark", left=True, wraps=True),
)
ROWS = [["RTX-4090", "32", "1,000.5", "bound by the memory, of which there is little"], ["L4", "8", "7.5", ""]]


@pytest.fixture
def shown(monkeypatch):
    """What a function prints into a terminal of so many columns; None: into a pipe."""

    def run(width, function, *arguments):
        out = Pipe() if width is None else Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", str(width or 10))
            function(*arguments)
        return out.getvalue() if width is None else out.text

    return run


def test_a_pipe_gets_everything_on_one_line_each(shown):
    assert shown(None, print_table, "Title of it", COLUMNS, ROWS).splitlines() == [
        "Title of it",
        "GPU       batch     rate  remark",
        "─" * 71,
        "RTX-4090     32  1,000.5  bound by the memory, of which there is little",
        "L4            8      7.5",
    ]
    assert shown(None, say, "word " * 100).count("\n") == 1


def test_texts_go_on_then_columns_go_in_their_order_then_the_table_goes(shown):
    wide = shown(None, print_table, None, COLUMNS, ROWS)
    heads = {}
    for width in (80, 60, 40, 34, 30, 26, 20, 16, 12):
        text = shown(width, print_table, None, COLUMNS, ROWS)
        check_fits(text, wide, width, allowed={"no", "room", "for", "for:"})
        heads[width] = text.splitlines()[0].split()
    assert heads[80] == heads[60] == heads[40] == ["GPU", "batch", "rate", "remark"]
    assert heads[30] == ["GPU", "rate", "remark"] and heads[20] == ["GPU", "remark"]
    assert shown(30, print_table, None, COLUMNS, ROWS).splitlines()[-1] == "no room for: batch"
    assert shown(12, print_table, None, COLUMNS, ROWS).startswith("GPU\n  RTX-4090\nbatch  32\n")


def test_facts_go_on_below_their_beginning(shown):
    rows = [("weights", "in /a/very/long/path/of/several/folders/weights.pth and more words"), ("x", "1")]
    assert shown(40, print_facts, None, rows).splitlines() == [
        "weights  in /a/very/long/path/of/",
        "         several/folders/weights.pth and",
        "         more words",
        "x        1",
    ]
    for width in (80, 60, 40, 24):
        check_fits(shown(width, print_facts, None, rows), shown(None, print_facts, None, rows), width)


@pytest.mark.parametrize(
    ("title", "width", "line"),
    [
        ("engines/iresnet50-int8", 40, "engines/iresnet50-int8"),
        ("/home/someone/engines/iresnet50-int8", 30, "…/engines/iresnet50-int8"),
        ("/home/engines/iresnet50-int8-with-a-name", 20, "iresnet50-int8-with-a-name"),
        ("a title of many words", 14, "a title of …"),
        ("a title of many words", None, "a title of many words"),
    ],
)
def test_a_title_is_one_line(monkeypatch, title, width, line):
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert one_line(title, width) == line


@pytest.mark.parametrize(
    ("name", "value", "bold"), [("A", "1", True), ("NO_COLOR", "1", False), ("TERM", "dumb", False)]
)
def test_a_title_is_bold_where_that_is_wanted(monkeypatch, name, value, bold):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    print_title("Models")
    assert out.getvalue() == ("\x1b[1mModels\x1b[0m\n" if bold else "Models\n")


def test_a_number_keeps_its_unit():
    assert wrap("it took 14.8 s and 99 % of it in 3 fp32 kernels", 12) == [
        "it took", "14.8 s and", "99 % of it", "in 3 fp32", "kernels",
    ]  # fmt: skip


def test_wide_letters_count_twice():
    assert wrap("犬 猫 鳥", 5) == ["犬 猫", "鳥"]


@given(st.text(alphabet="ab c/_,.-8%s", max_size=80), st.integers(1, 30))
def test_nothing_is_lost_and_lines_are_as_long_as_they_may_be(text, width):
    text = " ".join(text.split())
    lines = wrap(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    for line in lines:  # too long only where there was nowhere to break
        breaks = re.search(r"(?<!\d) | (?![%s](?!\w))", line) or not re.fullmatch(r"[^/_,.-]*[/_,.-]*", line)
        assert len(line) <= width or not breaks
