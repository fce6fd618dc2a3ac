"""``iresnet merge``: the shards of a job against the run on one machine, and every way in which they may not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

KINDS = ("jsonl", "csv", "parquet")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven images, one of them broken, one with a comma, quote and end of line in its name."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / '4,"\n.png')
    (folder / "5x.jpg").write_bytes(b"\xff\xd8\xff no jpeg")
    return folder


@pytest.fixture
def run(call, tiny, photos, tmp_path):
    def shards(kind, count=3, data=photos, skip=()):
        paths = [tmp_path / f"rows-{index}.{kind}" for index in range(count)]
        for index, path in enumerate(paths):
            if index not in skip:
                code, _, err = call("classify", tiny, data, "-o", path, "--shard", f"{index}/{count}")
                assert code in (0, 1), err
        return paths

    return shards


@pytest.mark.parametrize("kind", KINDS)
def test_the_shards_make_the_run_on_one_machine(call, run, tiny, photos, tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    assert call("classify", tiny, photos, "-o", whole)[0] == 1
    assert not list(tmp_path.glob("*.shard.json"))
    one, two, three = run(kind)
    code, out, err = call("merge", three, one, two, "-o", tmp_path / f"all.{kind}")
    assert (code, err) == (0, "")
    assert (tmp_path / f"all.{kind}").read_bytes() == whole.read_bytes()
    assert "11 rows of 3 shards, 1 of images that could not be read; every shard is there once" in out


@pytest.mark.parametrize("kind", KINDS)
def test_more_shards_than_images_and_one_alone(call, run, tiny, photos, tmp_path, kind):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(photos / name, few)
    whole = tmp_path / f"whole.{kind}"
    call("classify", tiny, few, "-o", whole)
    for count in (4, 1):
        paths = run(kind, count, few)
        assert call("merge", *paths, "-o", tmp_path / f"all.{kind}", "--overwrite")[0] == 0
        assert (tmp_path / f"all.{kind}").read_bytes() == whole.read_bytes()
        for path in paths:
            path.unlink()


def test_as_json(call, run, tmp_path):
    out = call("merge", *run("jsonl"), "-o", tmp_path / "all.jsonl", "--json")[1]
    assert json.loads(out) == {
        "shards": 3, "rows": 11, "failed": 1, "notes": [], "output": str(tmp_path / "all.jsonl"),
    }  # fmt: skip


def refused(call, tmp_path, paths, *words, kind="jsonl"):
    output = tmp_path / f"all.{kind}"
    code, out, err = call("merge", *paths, "-o", output)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and all(word in err for word in words), err
    assert not output.exists() and not list(tmp_path.glob(".*.tmp"))


def test_one_missing_or_twice(call, run, tmp_path):
    paths = run("jsonl")
    refused(call, tmp_path, paths[:2], "1 of 3 shards missing: 2/3")
    copy = tmp_path / "copy.jsonl"
    shutil.copy(paths[0], copy)
    shutil.copy(f"{paths[0]}.shard.json", f"{copy}.shard.json")
    refused(call, tmp_path, [*paths, copy], "shard 0/3 is there twice", "rows-0.jsonl", "copy.jsonl")
    refused(call, tmp_path, [*paths, tmp_path / "none.jsonl"], "none.jsonl: no such file")


def test_a_file_that_changed_or_has_no_record(call, run, tmp_path):
    paths = run("csv")
    lines = paths[1].read_bytes().splitlines(keepends=True)
    paths[1].write_bytes(b"".join(lines[:-1]))
    refused(call, tmp_path, paths, "rows-1.csv is not the file that", kind="csv")
    Path(f"{paths[0]}.shard.json").unlink()
    refused(call, tmp_path, paths, "no rows-0.csv.shard.json beside it", kind="csv")


def record(path, **changes):
    place = Path(f"{path}.shard.json")
    found = json.loads(place.read_bytes())
    place.write_text(json.dumps(found | changes))
    return found


def test_shards_of_other_jobs(call, run, photos, tmp_path):
    paths = run("jsonl")
    job = record(paths[2])["job"]
    record(paths[2], job=job | {"bundle": "another"})
    refused(call, tmp_path, paths, "different jobs: bundle differs")
    record(paths[2], job=job, shard="2/4")
    refused(call, tmp_path, paths, "is shard 2/4, but")
    record(paths[2], shard="2/3", job=job | {"device": "another CPU"})
    code, _, err = call("merge", *paths, "-o", tmp_path / "all.jsonl")
    assert code == 0 and "note: device differs" in err


def test_inputs_that_changed_between_the_shards(call, run, photos, tmp_path, tiny):
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    paths = run("jsonl", data=data, skip=[2])
    (data / "3.png").rename(data / "35.png")  # as many images, none of them shard 2's
    assert call("classify", tiny, data, "-o", paths[2], "--shard", "2/3")[0] in (0, 1)
    refused(call, tmp_path, paths, "saw other inputs", "rows-2.jsonl")


def test_rows_with_wrong_names_although_every_hash_is_right(call, run, tmp_path):
    """What a hand that 'repairs' a shard may do: the names of the whole job tell."""
    from infer.files import sha256_file

    paths = run("jsonl")
    paths[1].write_bytes(paths[0].read_bytes())
    record(paths[1], output_sha256=sha256_file(paths[1]))
    refused(call, tmp_path, paths, "not the images of the job")


def test_a_shard_killed_and_resumed(call, run, tiny, photos, tmp_path, monkeypatch):
    from infer.classify.sinks import TextSink

    paths = run("jsonl", skip=[1])

    def killed(self, recorded):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TextSink, "finish", killed)
        assert call("classify", tiny, photos, "-o", paths[1], "--shard", "1/3")[0] == 130
    refused(call, tmp_path, paths, "rows-1.jsonl: an interrupted shard; finish it with --resume")
    assert call("classify", tiny, photos, "-o", paths[1], "--shard", "1/3", "--resume")[0] in (0, 1)
    assert call("merge", *paths, "-o", tmp_path / "all.jsonl")[0] == 0


def test_parquet_of_many_blocks(tmp_path, monkeypatch):
    """Blocks, row groups and shards of sizes that do not go into each other."""
    import pyarrow
    import pyarrow.parquet

    from infer.classify import merge
    from infer.classify.shard_record import NamesHash

    monkeypatch.setattr(merge, "_BLOCK", 7)
    names = [f"n{i}" for i in range(100)]
    for shard in range(3):
        table = pyarrow.table({"name": names[shard::3]})
        pyarrow.parquet.write_table(table, tmp_path / f"{shard}.parquet", row_group_size=5)
    found = NamesHash()
    merge._merge_parquet([tmp_path / f"{shard}.parquet" for shard in range(3)], tmp_path / "all.parquet", found)
    assert pyarrow.parquet.read_table(tmp_path / "all.parquet")["name"].to_pylist() == names
    assert found.count == 100


def test_output_is_a_shard_exists_or_is_of_another_kind(call, run, tmp_path):
    paths = run("jsonl")
    assert call("merge", *paths, "-o", paths[0], "--overwrite")[0] == 2
    (tmp_path / "all.jsonl").write_text("mine")
    code, _, err = call("merge", *paths, "-o", tmp_path / "all.jsonl")
    assert code == 2 and "exists already" in err
    code, _, err = call("merge", *paths, "-o", tmp_path / "all.csv")
    assert code == 2 and "the same for all shards" in err
