"""Rows in files: what a kill at any byte leaves is whole batches, and the output is the same in the end."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest

from infer.classify.partial import PartialOutput
from infer.classify.sinks import StreamSink, open_sink, partial_output
from infer.classify.sinks import parquet as parquet_sink
from infer.classify.sinks.rows import Kept
from infer.errors import InputError, IResNetError
from infer.predictions import Prediction, Ranked

STEP = 3
JOB = {"top": 2}
LABELS = ["plain", 'with "quotes", comma', "Straße 東京", " spaces "]
SUFFIXES = ["jsonl", "csv", "parquet"]


def prediction(number):
    name = f"folder, a/{number} 'ü' \"x\".png"
    if number % 5 == 4:
        return Prediction(name, error=f'{name}: damaged "x", truly')
    ranked = [Ranked(i, LABELS[(number + i) % 4], round(0.9 / (i + 1), 6)) for i in range(2)]
    return Prediction(name, tuple(ranked))


ROWS = [prediction(number) for number in range(10)]
KEPT = [Kept(p.name, p.error is not None) for p in ROWS]


def opened(folder, suffix):
    return open_sink(partial_output(folder / f"rows.{suffix}"), 2)


def write(sink, rows):
    for at in range(0, len(rows), STEP):
        sink.write(rows[at : at + STEP])


def whole(folder, suffix):
    sink = opened(folder, suffix)
    assert sink.begin(JOB, STEP, resume=False) == 0
    write(sink, ROWS)
    sink.finish()
    assert [path.name for path in folder.iterdir()] == [f"rows.{suffix}"]
    return (folder / f"rows.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_torn_anywhere(tmp_path, suffix):
    (tmp_path / "whole").mkdir()
    expected = whole(tmp_path / "whole", suffix)
    ends = [at + 1 for at, byte in enumerate(expected) if byte == 10]
    header = ends.pop(0) if suffix == "csv" else 0
    around_ends = {cut for end in (header, *ends) for cut in (end - 1, end, end + 1)}
    for cut in sorted({*range(header, len(expected), 29), *around_ends} & {*range(header, len(expected) + 1)}):
        sink = opened(tmp_path, suffix)
        sink.begin(JOB, STEP, resume=False)
        sink.close(keep=True)
        (tmp_path / f"rows.{suffix}.partial/rows.{suffix}").write_bytes(expected[:cut])
        sink = opened(tmp_path, suffix)
        rows = sink.begin(JOB, STEP, resume=True)
        assert rows == sum(end <= cut for end in ends) // STEP * STEP
        assert list(sink.kept()) == KEPT[:rows]
        write(sink, ROWS[rows:])
        sink.finish()
        assert (tmp_path / f"rows.{suffix}").read_bytes() == expected


@pytest.mark.parametrize("written", range(4))
@pytest.mark.parametrize("group", [1, 4, 16384])
def test_parquet_is_the_same_however_it_was_cut(tmp_path, monkeypatch, written, group):
    monkeypatch.setattr(parquet_sink, "GROUP_ROWS", group)
    (tmp_path / "whole").mkdir()
    expected = whole(tmp_path / "whole", "parquet")
    monkeypatch.setattr(parquet_sink, "PART_ROWS", STEP)
    sink = opened(tmp_path, "parquet")
    sink.begin(JOB, STEP, resume=False)
    write(sink, ROWS[: written * STEP])
    del sink  # killed: nothing is closed, and the lock goes with the process
    (tmp_path / "rows.parquet.partial/.part-x.tmp").write_bytes(b"PAR1")
    sink = opened(tmp_path, "parquet")
    rows = sink.begin(JOB, STEP, resume=True)
    assert rows == written * STEP
    assert list(sink.kept()) == KEPT[:rows]
    write(sink, ROWS[rows:])
    sink.finish()
    assert (tmp_path / "rows.parquet").read_bytes() == expected
    file = pyarrow.parquet.ParquetFile(tmp_path / "rows.parquet")
    assert file.num_row_groups == -(-10 // group)
    assert file.read()["label_1"].to_pylist()[:2] == ["plain", 'with "quotes", comma']


def test_a_torn_or_short_part_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_sink, "PART_ROWS", STEP)
    sink = opened(tmp_path, "parquet")
    sink.begin(JOB, STEP, resume=False)
    write(sink, ROWS)
    sink.close(keep=True)  # the last part holds one row
    folder = tmp_path / "rows.parquet.partial"
    again = opened(tmp_path, "parquet")
    assert again.begin(JOB, STEP, resume=True) == 9
    again.close(keep=True)
    os.truncate(folder / "part-000000000003.parquet", 40)
    again = opened(tmp_path, "parquet")
    assert again.begin(JOB, STEP, resume=True) == 3
    assert [path.name for path in folder.glob("part-*")] == ["part-000000000000.parquet"]
    again.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_written_after_some_time(tmp_path):
    now = 0.0
    sink = parquet_sink.ParquetSink(partial_output(tmp_path / "rows.parquet"), 2, clock=lambda: now)
    sink.begin(JOB, STEP, resume=False)
    parts = tmp_path / "rows.parquet.partial"
    sink.write(ROWS[:3])
    assert not list(parts.glob("part-*"))
    now = parquet_sink.PART_SECONDS
    sink.write(ROWS[3:6])
    assert len(list(parts.glob("part-*"))) == 1
    sink.write(ROWS[6:9])
    assert len(list(parts.glob("part-*"))) == 1
    sink.close(keep=False)


NAMES = [
    "Screenshot 9.41\u202fAM.png",
    "a\u200d\u3000b",
    'two\nlines, "quoted"\r\n.png',
    "caf\udce9.png",
    r"caf\xe9.png",
    "b\\c",
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_are_read_back_as_they_are(tmp_path, suffix):
    rows = [Prediction(name, (Ranked(0, "x", 0.5),)) for name in NAMES]
    sink = opened(tmp_path, suffix)
    sink.begin(JOB, STEP, resume=False)
    write(sink, rows)
    sink.close(keep=True)
    again = opened(tmp_path, suffix)
    assert again.begin(JOB, STEP, resume=True) == len(NAMES)
    assert [kept.name for kept in again.kept()] == NAMES
    again.finish()
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        found = pyarrow.parquet.read_table(path)["name"].to_pylist()
    elif suffix == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            found = [row["name"] for row in csv.DictReader(file)]
    else:
        found = [json.loads(line)["name"] for line in path.read_text("utf-8").split("\n")[:-1]]
    assert found == [*NAMES[:3], r"caf\xe9.png", r"caf\\xe9.png", NAMES[5]]  # no two the same


def test_a_torn_row_with_line_ends_in_its_name_is_dropped(tmp_path):
    sink = opened(tmp_path, "csv")
    sink.begin(JOB, 1, resume=False)
    sink.write([Prediction("a\nb", error="x"), Prediction("c\nd", error="y")])
    sink.close(keep=True)
    path = tmp_path / "rows.csv.partial/rows.csv"
    path.write_bytes(path.read_bytes()[:-4])
    again = opened(tmp_path, "csv")
    assert again.begin(JOB, 1, resume=True) == 1
    assert [kept.name for kept in again.kept()] == ["a\nb"]
    again.close(keep=False)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_damaged_row_is_an_error(tmp_path, suffix):
    sink = opened(tmp_path, suffix)
    sink.begin(JOB, STEP, resume=False)
    write(sink, ROWS[:6])
    sink.close(keep=True)
    path = tmp_path / f"rows.{suffix}.partial/rows.{suffix}"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-2] = b"\0\0\0\n"
    path.write_bytes(b"".join(lines))
    sink = opened(tmp_path, suffix)
    assert sink.begin(JOB, STEP, resume=True) == 6
    with pytest.raises(InputError, match=rf"rows.{suffix}: row 4 is damaged; pass --overwrite"):
        list(sink.kept())
    sink.close(keep=True)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_are_out_at_once(tmp_path, suffix):
    sink = opened(tmp_path, suffix)
    sink.begin(JOB, STEP, resume=False)
    path = tmp_path / f"rows.{suffix}.partial/rows.{suffix}"
    before = path.read_bytes().count(b"\n")
    sink.write(ROWS[:3])
    assert path.read_bytes().count(b"\n") == before + 3
    sink.close(keep=False)


def test_json_lines_are_read_as_written(tmp_path):
    rows = [json.loads(line) for line in whole(tmp_path, "jsonl").splitlines()]
    assert rows == [p.to_json() for p in ROWS]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_error_and_the_rows_before_it_stay(tmp_path):
    sink = opened(tmp_path, "jsonl")
    sink.begin(JOB, STEP, resume=False)
    write(sink, ROWS[:6])
    sink._file.close()
    with Path("/dev/full").open("wb", buffering=0) as full:
        sink._file = full
        with pytest.raises(
            IResNetError, match=r"rows\.jsonl: cannot be written \(No space left on device\); make room"
        ):
            sink.write(ROWS[6:9])
    sink.close(keep=True)
    again = opened(tmp_path, "jsonl")
    assert again.begin(JOB, STEP, resume=True) == 6
    again.close(keep=True)


def test_standard_output(capsys):
    sink = StreamSink(lambda p: None if p.error else p.top[0].label)
    sink.write(ROWS[3:6])
    assert capsys.readouterr().out == ' spaces \nwith "quotes", comma\n'


def finished_but(tmp_path, monkeypatch, suffix, name, replacement):
    """A finished job whose process was killed in the cleaning up: in the method ``name``."""
    sink = opened(tmp_path, suffix)
    sink.begin(JOB, STEP, resume=False)
    write(sink, ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(PartialOutput, name, replacement)
        sink.finish()
    sink.close(keep=True)
    assert (tmp_path / f"rows.{suffix}.partial").is_dir()
    return (tmp_path / f"rows.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_when_the_output_had_just_appeared(tmp_path, monkeypatch, suffix):
    before = finished_but(tmp_path, monkeypatch, suffix, "discard", lambda self: None)
    if not partial_output(tmp_path / f"rows.{suffix}").finished(resume=True, overwrite=False):
        sink = opened(tmp_path, suffix)
        rows = sink.begin(JOB, STEP, resume=True)
        write(sink, ROWS[rows:])
        sink.finish()
    assert [path.name for path in tmp_path.iterdir()] == [f"rows.{suffix}"]
    assert (tmp_path / f"rows.{suffix}").read_bytes() == before


def test_killed_when_the_parts_were_half_removed(tmp_path, monkeypatch):
    def half(self):
        (self.folder / "run.json").unlink()
        next(self.folder.glob("part-*"), self.folder / "joined").unlink(missing_ok=True)

    monkeypatch.setattr(parquet_sink, "PART_ROWS", STEP)
    finished_but(tmp_path, monkeypatch, "parquet", "_clear", half)
    assert partial_output(tmp_path / "rows.parquet").finished(resume=True, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]
