"""Text as editors and spreadsheets of any system save it."""

from __future__ import annotations

import codecs

import pytest

from infer.errors import InputError
from infer.sources import read_list
from infer.text_files import decode_text, read_text, split_lines

TEXT = "tench\nCafé, Ωmega\n日本\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_unicode_in_any_form(encoding):
    assert decode_text(TEXT.encode(encoding), "x") == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_with_and_without_its_mark(encoding):
    mark = codecs.BOM_UTF16_LE if encoding.endswith("le") else codecs.BOM_UTF16_BE
    assert decode_text(TEXT.encode(encoding), "x") == decode_text(mark + TEXT.encode(encoding), "x") == TEXT


@pytest.mark.parametrize("text", ["", "a", "ab", "\ufeff", "7\n"])
def test_short_texts(text):
    assert decode_text(text.encode(), "x") == text.removeprefix("\ufeff")


def test_old_encodings_are_named_with_the_place():
    with pytest.raises(
        InputError, match=r"x.txt: expected UTF-8, found Latin-1 .* byte 0xe9 in line 2, 'é' in Latin-1.*iconv"
    ):
        decode_text("tench\nCafé\n".encode("latin-1"), "x.txt")
    with pytest.raises(InputError, match="expected a UTF-8 text file, found other bytes"):
        decode_text(b"\x89PNG\r\n\x00\x00", "x.txt")


def test_only_ends_of_lines_end_lines():
    assert split_lines("a\r\nb\rc\n\nd\u2028e\x1cf\x85g\n") == ["a", "b", "c", "", "d\u2028e\x1cf\x85g"]
    assert split_lines("") == [] and split_lines("a") == ["a"] and split_lines("\n") == [""]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none: list cannot be read \(No such file"):
        read_text(tmp_path / "none", "list")
    with pytest.raises(InputError, match=r"list cannot be read \(Is a directory"):
        read_text(tmp_path, "list")
    (tmp_path / "large").write_text("12345")
    with pytest.raises(InputError, match="too large for a list, 5 bytes"):
        read_text(tmp_path / "large", "list", most=4)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lists_of_inputs(tmp_path, encoding):
    (tmp_path / "list").write_bytes("a.png\r\n\r\nCafé/日本.png\n".encode(encoding))
    assert list(read_list(str(tmp_path / "list"))) == ["a.png", "Café/日本.png"]


def test_lists_may_name_files_by_any_bytes(tmp_path):
    (tmp_path / "list").write_bytes(b"caf\xe9.png\n")
    assert list(read_list(str(tmp_path / "list"))) == ["caf\udce9.png"]
