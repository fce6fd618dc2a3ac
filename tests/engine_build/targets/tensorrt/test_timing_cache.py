"""The file of TensorRT's timings when several builds write it at once."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from engine_build.targets.tensorrt import timing_cache as trt_timing_cache
from engine_build.targets.tensorrt.timing_cache import TimingCache

BUILDS = 8


class Cache:
    """Entries, one a line."""

    def __init__(self, content):
        self.entries = bytes(content).split()

    def combine(self, other, ignore_mismatch):
        assert ignore_mismatch is False
        self.entries += [entry for entry in other.entries if entry not in self.entries]
        return True

    def serialize(self):
        return memoryview(b"\n".join(self.entries))


class Config:
    """One build's ``IBuilderConfig``, which times one kernel, called ``own``."""

    def __init__(self, own):
        self.own, self.cache = own, None

    def create_timing_cache(self, stored):
        return Cache(stored)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return True

    def get_timing_cache(self):
        self.cache.entries.append(self.own)
        return self.cache


@pytest.fixture
def log():
    return SimpleNamespace(errors=[])


def test_builds_at_once_lose_nothing(tmp_path, log, monkeypatch):
    read = TimingCache._read

    def slowly(self):  # so that a build that does not wait for the others reads before they write
        stored = read(self)
        time.sleep(0.01)
        return stored

    monkeypatch.setattr(TimingCache, "_read", slowly)
    file = tmp_path / "folder" / "timings"
    file.parent.mkdir()
    file.write_bytes(b"before")
    together = threading.Barrier(BUILDS)
    notes = []

    def build(number):
        config, cache = Config(b"kernel%d" % number), TimingCache(file)
        notes.append(cache.attach(config, log))
        together.wait()
        notes.append(cache.save(config, log))

    threads = [threading.Thread(target=build, args=(number,)) for number in range(BUILDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(file.read_bytes().split()) == [b"before", *(b"kernel%d" % number for number in range(BUILDS))]
    assert set(notes) == {None} and [path.name for path in file.parent.iterdir()] == ["timings"]


def test_a_build_alone_combines_nothing(tmp_path, log, monkeypatch):
    monkeypatch.setattr(trt_timing_cache, "_combined", None)
    file = tmp_path / "timings"
    for number in range(2):
        config, cache = Config(b"kernel%d" % number), TimingCache(file)
        assert cache.attach(config, log) is None and cache.save(config, log) is None
    assert file.read_bytes().split() == [b"kernel0", b"kernel1"]


def test_a_file_that_cannot_be_written_is_a_note(tmp_path, log):
    (tmp_path / "file").touch()
    config, cache = Config(b"kernel"), TimingCache(tmp_path / "file" / "timings")
    assert "cannot be read" in cache.attach(config, log)
    config.cache = Cache(b"")
    assert "could not be written" in cache.save(config, log)


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, log, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    config, cache = Config(b"kernel"), TimingCache(tmp_path / "timings")
    cache.attach(config, log)
    assert cache.save(config, log) is None and (tmp_path / "timings").read_bytes() == b"kernel"
