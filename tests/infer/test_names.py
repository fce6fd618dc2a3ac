"""Names in machine formats: themselves, or escaped so that no two are the same and each can be had back."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.names import escape_name, printable, unescape_name


@pytest.mark.parametrize(
    "name", ["a.png", "Screenshot 9.41\u202fAM.png", "a\u3000b\u200dc", "a\nb", r"C:\x\y", r"\\server\xyz"]
)
def test_what_can_be_written_is_itself(name):
    assert escape_name(name) == unescape_name(name) == name


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"caf\xe9.png", r"caf\xe9.png"),
        (rb"caf\xe9.png", r"caf\\xe9.png"),
        (b"C:\\caf\xe9", r"C:\\caf\xe9"),
        (b"\xff\n\x1b[31m", "\\xff\n\x1b[31m"),
    ],
)
def test_what_cannot_is_escaped(raw, text):
    assert escape_name(os.fsdecode(raw)) == text
    assert os.fsencode(unescape_name(text)) == raw


names = st.lists(st.sampled_from([b"\\", b"\\x", b"e9", b"\xe9", b"\xc3\xa9", b"a", b"\n", b'"', b"/"])).map(b"".join)


@given(names, names)
def test_each_can_be_had_back_and_no_two_are_the_same(one, other):
    escaped = escape_name(os.fsdecode(one))
    assert escaped.encode() and os.fsencode(unescape_name(escaped)) == one if one else escaped == ""
    assert (escaped == escape_name(os.fsdecode(other))) == (one == other)


def test_terminals_see_no_control_characters():
    assert printable("a\u202eb\x1b[2J\udce9") == r"a\u202eb\x1b[2J\udce9"
    assert printable("Straße 東京.png") == "Straße 東京.png"
