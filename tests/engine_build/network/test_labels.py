"""Where class names come from."""

from __future__ import annotations

import pytest

from engine_build.network.labels import class_names
from engine_build.network.zoo import MODELS
from infer.errors import InputError


def test_the_shipped_model_has_its_own():
    names, wnids = class_names(MODELS["iresnet50_fashion"], 10)
    assert names == MODELS["iresnet50_fashion"].shipped.joinpath("labels.txt").read_text().split("\n")[:10]
    assert "ankle boot" in names
    assert wnids is None


@pytest.mark.parametrize("row", [MODELS["iresnet50"], None], ids=["zoo", "own graph"])
def test_a_thousand_classes_are_those_of_imagenet(row):
    names, wnids = class_names(row, 1000)
    assert len(names) == len(wnids) == len(set(wnids)) == 1000
    assert (wnids[0], names[0]) == ("n01440764", "tench, Tinca tinca")
    assert wnids[999] == "n15075141"


@pytest.mark.parametrize("row", [MODELS["iresnet50"], MODELS["iresnet50_fashion"], None])
def test_other_counts_are_numbered(row):
    assert class_names(row, 3) == (["class 0", "class 1", "class 2"], None)


def test_a_file_comes_first(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("früh\n  zwei \ndrei\n", encoding="utf-8")
    assert class_names(None, 3, path) == (["früh", "zwei", "drei"], None)


@pytest.mark.parametrize("count", [2, 4])
def test_a_file_of_another_length(tmp_path, count):
    path = tmp_path / "names.txt"
    path.write_text("a\n" * count)
    with pytest.raises(InputError, match=f"names.txt: expected 3 lines, one a class, found {count}"):
        class_names(MODELS["iresnet50"], 3, path)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no label file at"):
        class_names(None, 3, tmp_path / "none.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_label_files_of_any_editor(tmp_path, encoding):
    path = tmp_path / "names.txt"
    path.write_bytes("café\r\ntrench\u2028coat\r\nbag\r\n".encode(encoding))
    assert class_names(None, 3, path) == (["café", "trench\u2028coat", "bag"], None)


def test_label_files_of_an_old_encoding_are_named(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"bag\ncaf\xe9\n")
    with pytest.raises(InputError, match="0xe9 in line 2, 'é' in Latin-1"):
        class_names(None, 2, tmp_path / "names.txt")
