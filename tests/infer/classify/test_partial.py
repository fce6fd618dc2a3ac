"""The folder of an interrupted job: whose it is, who may write there, and that nothing of it stays."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from infer.classify.partial import PartialOutput
from infer.errors import InputError

JOB = {"top": 5, "inputs": ["a", "b"], "bundle": "0" * 64, "column": None}


def fill(folder):
    (folder / "rows.csv").write_bytes(b"")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "x.csv"


def begun(output, resume=False, job=JOB):
    partial = PartialOutput(output, "rows.csv")
    assert not partial.finished(resume=resume, overwrite=not resume)
    return partial, partial.begin(job, fill, resume=resume)


def test_life_of_a_job(output):
    partial, resumed = begun(output)
    assert not resumed and partial.exists and not output.exists()
    assert json.loads((partial.folder / "run.json").read_text()) == JOB
    partial.close(keep=True)
    partial, resumed = begun(output, resume=True)
    assert resumed and partial.resumed
    (partial.folder / "rows.csv").write_bytes(b"rows")
    partial.complete("rows.csv")
    assert output.read_bytes() == b"rows"
    assert list(output.parent.iterdir()) == [output]
    assert PartialOutput(output, "rows.csv").finished(resume=True, overwrite=False)


def test_nothing_stays_of_a_job_without_rows(output):
    partial, _ = begun(output)
    partial.close(keep=False)
    assert list(output.parent.iterdir()) == []


def test_a_run_killed_before_it_began_is_none(output):
    partial, _ = begun(output)
    partial.close(keep=True)
    (partial.folder / "run.json").rename(partial.folder / ".run.json.x.tmp")
    assert not begun(output, resume=True)[1]
    assert sorted(path.name for path in partial.folder.iterdir()) == ["lock", "rows.csv", "run.json"]


def test_files_of_others_are_not_removed(output):
    partial = PartialOutput(output, "rows.csv")
    partial.folder.mkdir(parents=True)
    (partial.folder / "thesis.txt").write_text("mine")
    partial.begin(JOB, fill, resume=False)
    partial.close(keep=False)
    assert [path.name for path in partial.folder.iterdir()] == ["thesis.txt"]


def test_nothing_stays_when_it_cannot_begin(output):
    partial = PartialOutput(output, "rows.csv")

    def fails(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"x\.csv: cannot be written \(No space left on device\)"):
        partial.begin(JOB, fails, resume=False)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top": 4}, "top: 5 there, 4 here"),
        ({"inputs": ["a", "c"]}, "inputs: b there, c here"),
        ({"inputs": ["a"]}, "inputs: 2 there, 1 here"),
        ({"bundle": "1" * 64}, "another bundle"),
        ({"column": "img"}, "column: none there, img here"),
        ({"new": 1}, "new: none there, 1 here"),
        ({"top": 4, "column": "x"}, "top: 5 there, 4 here; column: none there, x here"),
    ],
)
def test_another_job_is_refused_by_name(output, change, message):
    begun(output)[0].close(keep=True)
    partial = PartialOutput(output, "rows.csv")
    with pytest.raises(InputError, match=message):
        partial.begin(JOB | change, fill, resume=True)
    partial.close(keep=False)
    assert partial.exists, "what belongs to another job is not removed"


@pytest.mark.parametrize("damage", [b"", b"[1]", b"\xff"])
def test_a_damaged_identity(output, damage):
    partial, _ = begun(output)
    partial.close(keep=True)
    (partial.folder / "run.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"run\.json: damaged .* --overwrite"):
        begun(output, resume=True)


def test_one_process_at_a_time(output):
    held, _ = begun(output)
    for resume in (True, False):
        other = PartialOutput(output, "rows.csv")
        with pytest.raises(InputError, match="another process is writing it"):
            other.begin(JOB, fill, resume=resume)
        other.close(keep=False)
        assert held.exists
    held.close(keep=True)
    assert begun(output, resume=True)[1]


def test_a_killed_process_holds_nothing(output):
    code = (
        "import os, sys, pathlib; from infer.classify.partial import PartialOutput\n"
        "partial = PartialOutput(pathlib.Path(sys.argv[1]), None)\n"
        f"partial.begin({JOB!r}, lambda folder: (folder / 'rows.csv').touch(), resume=False)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(output)], check=False).returncode == -9
    assert begun(output, resume=True)[1]


def test_unusable_places(tmp_path):
    with pytest.raises(InputError, match="a folder, expected a file"):
        PartialOutput(tmp_path, None)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no folder"):
        PartialOutput(tmp_path / "file/x.csv", None)
