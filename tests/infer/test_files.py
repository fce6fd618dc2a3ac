"""Files and folders that are replaced whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from infer.files import replacing, replacing_folder, sha256_file, write_bytes


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sha256(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * 3_000_000)  # more than one block
    assert sha256_file(path) == hashlib.sha256(b"a" * 3_000_000).hexdigest()


def test_write_bytes_creates_folders_and_replaces(tmp_path):
    path = tmp_path / "a/b/c.txt"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["c.txt"]


@pytest.mark.usefixtures("umask")
def test_permissions_follow_the_umask(tmp_path):
    write_bytes(tmp_path / "file", b"")
    with replacing_folder(tmp_path / "folder") as work:
        (work / "x").touch()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"  # readers see the old one until the end
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_new_folder(tmp_path):
    with replacing_folder(tmp_path / "deep/bundle") as work:
        (work / "sub").mkdir()
        (work / "sub/x").write_text("1")
        assert not (tmp_path / "deep/bundle").exists()
    assert (tmp_path / "deep/bundle/sub/x").read_text() == "1"
    assert names(tmp_path / "deep") == ["bundle"]


def test_an_old_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "stale").touch()
    with replacing_folder(folder) as work:
        (work / "fresh").touch()
        assert names(folder) == ["stale"]
    assert names(folder) == ["fresh"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_build_keeps_the_old_folder(tmp_path, error):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(error), replacing_folder(folder) as work:
        (work / "half").touch()
        raise error
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "old").touch()
    real = Path.replace

    def fails_for_the_new_one(self, target):
        if self.name.endswith(".tmp"):
            raise OSError("no space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="no space left"), replacing_folder(folder) as work:
        (work / "fresh").touch()
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["bundle"]
