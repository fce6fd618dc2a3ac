"""Verification in shares: what is put together is what one run gives, digit for digit."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from infer.bundle import read_manifest, write_manifest
from infer.cli import app
from infer.errors import InputError
from infer.shard import Shard
from infer.verify.run import merge_shards, verify_bundle, verify_shard
from infer.verify.shards import read_shards

SHARDS = 3


@pytest.fixture
def pair(own, shipped):
    """A copy of the int8 bundle with its fp32 sibling beside it."""
    int8 = own(shipped("int8"))
    manifest = read_manifest(int8)
    manifest.accuracy = []  # of tests before this one, which share the bundle
    write_manifest(int8, manifest)
    shutil.copytree(shipped("fp32"), int8.parent / shipped("fp32").name)
    return int8


@pytest.fixture
def images(labelled, tmp_path):
    """The labelled pictures, two of which cannot be read, and a file that is none."""
    folder = shutil.copytree(labelled, tmp_path / "set")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in (files[3], files[40]):
        path.write_bytes(b"no picture")
    (files[0].parent / "notes.txt").touch()
    return folder


@pytest.fixture
def shares(pair, images, tmp_path):
    """Files of all shares, the last one first."""
    paths = []
    for index in reversed(range(SHARDS)):
        paths.append(tmp_path / f"shard-{index}.json")
        verify_shard(pair, [str(images)], Shard(index, SHARDS), paths[-1], max_unreadable=0.1)
    return paths


def plain(result):
    """Everything a run says, without the moment."""
    found = result.accuracy.to_json() | result.details.to_json(result.labels)
    found |= {"failures": result.failures, "skipped": result.skipped.to_json(), "left_out": result.left_out}
    found |= {"thumbnails": [item.thumbnail for item in result.details.differing]}
    return {key: value for key, value in found.items() if key != "measured"}


def test_shares_are_put_together_exactly(pair, images, shares, tmp_path):
    expected = verify_bundle(pair, [str(images)], max_unreadable=0.1, csv_file=tmp_path / "one.csv")
    manifest = read_manifest(pair)
    assert [one.outcome for one in manifest.accuracy] == [expected.accuracy.outcome]
    manifest.accuracy = []
    write_manifest(pair, manifest)
    found = merge_shards(pair, shares, tmp_path / "merged.csv")
    assert plain(found) == plain(expected)
    assert len(found.failures) == 2 and found.accuracy.figures.images == 78
    assert found.accuracy.figures.max_logit_difference > 0 and found.accuracy.figures.sqnr_db
    assert (tmp_path / "merged.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert len(read_manifest(pair).accuracy) == 1  # recorded as a run is


def test_what_is_no_whole_is_refused(pair, own, shipped, images, shares, tmp_path):
    with pytest.raises(InputError, match=r"1 of 3 shards missing: 1/3; pass all of them"):
        merge_shards(pair, [shares[0], shares[2]])
    with pytest.raises(InputError, match=r"shard 2/3 is there twice: .*shard-2.json and"):
        merge_shards(pair, [*shares, shares[0]])
    with pytest.raises(InputError, match="no shard of verify"):
        merge_shards(pair, [shares[0], pair / "manifest.json"])
    with pytest.raises(InputError, match="cannot be read"):
        merge_shards(pair, [tmp_path / "none.json"])
    with pytest.raises(InputError, match="is of another bundle than"):
        merge_shards(pair.parent / shipped("fp32").name, shares)

    for change, message in (
        ({"version": "0.0"}, "written by version 0.0"),
        ({"share": {"index": 0, "count": 4}}, r"is one of"),
        ({"facts": {"threshold": 0.5}}, "different verifications: threshold differs"),
        ({"facts": {"names_sha256": "0"}}, "different verifications: names_sha256 differs"),
    ):
        raw = json.loads(shares[0].read_bytes())
        for key, value in change.items():
            raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
        edited = tmp_path / "edited.json"
        edited.write_text(json.dumps(raw))
        with pytest.raises(InputError, match=message):
            read_shards([shares[1], edited, shares[2]])
    drop = []
    for path in shares:
        raw = json.loads(path.read_bytes())
        drop.append(tmp_path / f"dropped-{path.name}")
        drop[-1].write_text(json.dumps({**raw, "failures": []}))
    with pytest.raises(InputError, match=r"the shards have 78 images, the data set 80; run them again"):
        read_shards(drop)


def test_the_commands(pair, images, tmp_path):
    run = CliRunner().invoke
    common = ["verify", str(pair), "--data", str(images), "--max-unreadable", "0.1"]
    for index in range(2):
        done = run(app, [*common, "--shard", f"{index}/2", "-o", str(tmp_path / f"part-{index}.json")])
        assert done.exit_code == 0, done.output
    assert read_manifest(pair).accuracy == []
    whole = run(app, [*common, "--json"])
    done = run(app, ["verify", str(pair), "--merge", str(tmp_path / "part-*.json"), "--json"])
    assert done.exit_code == whole.exit_code == 4  # too few images to be sure
    ours, theirs = json.loads(done.stdout), json.loads(whole.stdout)
    assert {**ours, "measured": None} == {**theirs, "measured": None}
    report = run(
        app, ["verify", str(pair), "--merge", str(tmp_path / "part-*.json"), "--report", str(tmp_path / "r.html")]
    )
    assert report.exit_code == 4 and (tmp_path / "r.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data: expected folders or files with labelled images, or --merge"),
        (["--data", "x", "--shard", "0/2"], "--shard needs an --output"),
        (["--data", "x", "--shard", "2/2", "-o", "s.json"], "i counts from 0, the last of 2 is 1/2, found 2/2"),
        (["--data", "x", "--shard", "a", "-o", "s.json"], "expected i/n such as 0/4, found 'a'"),
        (["--data", "x", "--shard", "0/2", "-o", "s.json", "--csv", "x.csv"], "are made when shards are put together"),
        (["--data", "x", "-o", "s.json"], "--output is for --shard"),
        (["--data", "x", "--merge", "s.json"], "leave out --data, --shard and --output"),
        (["--merge", "none-*.json"], "--merge none-*.json: no such file"),
    ],
)
def test_options_that_do_not_fit(tiny, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["verify", str(tiny), *arguments])
    assert done.exit_code == 2 and message in " ".join(done.output.split())
