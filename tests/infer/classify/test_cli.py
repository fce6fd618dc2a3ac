"""``python -m infer classify``: answers for people and machines, outputs, shards, resuming, exit codes, errors."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from infer.errors import BundleError

ROOT = Path(__file__).parents[3]


def make(folder):
    folder.mkdir()
    return folder


def names(text):
    return [Path(json.loads(line)["name"]).name for line in text.splitlines()]


def test_help(call):
    code, out, _ = call("classify", "--help")
    assert code == 0
    shown = " ".join(out.split())
    for text in ("Name what is on images", "--top", "--json", "--strict", "--allow-untrained", "0/4 to 3/4"):
        assert text in shown, text


def test_classify_names_the_best_classes(call, shipped, labelled):
    photo = next((labelled / "ankle_boot").iterdir())
    code, out, err = call("classify", shipped("fp16"), photo)
    assert code == 0
    name, *classes = out.splitlines()
    assert name == str(photo)
    assert len(classes) == 5
    found = [re.fullmatch(r" +(\d+\.\d\d) %  (.+)", line) for line in classes]
    chances = [float(match[1]) for match in found]
    assert found[0][2] == "ankle boot"
    assert chances == sorted(chances, reverse=True)
    assert 95 < sum(chances) <= 100.05
    assert "1 images classified by" in err
    assert "on openvino" in err


def test_classify_as_json(call, tiny, album):
    code, out, err = call("classify", tiny, album, "--json", "--top", 2)
    rows = {Path(row["name"]).name: row for row in map(json.loads, out.splitlines())}
    assert code == 1  # one could not be read
    assert set(rows) == {"a.png", "b.jpg", "c.webp", "broken.jpg"}
    assert [len(rows[name]["top"]) for name in ("a.png", "b.jpg", "c.webp")] == [2, 2, 2]
    assert set(rows["a.png"]["top"][0]) == {"index", "label", "score"}
    assert "broken.jpg" in rows["broken.jpg"]["error"]
    assert [line[:7] for line in err.splitlines()] == ["error: ", "passed ", "3 image"]
    assert "passed over: 1 .txt" in err


def test_nan_is_an_error_and_json_stays_json(call, tiny, album, monkeypatch):
    from infer.backends.openvino_pool import Pool

    original = Pool._run

    def broken(self, request, batch, count):
        outputs = original(self, request, batch, count)
        outputs.scores[0] = np.nan
        return outputs

    monkeypatch.setattr(Pool, "_run", broken)
    monkeypatch.setenv("IRESNET_SELF_TEST", "never")
    code, out, err = call("classify", tiny, album / "a.png", album / "b.jpg", "--json", "--target", "openvino")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    assert code == 1 and "error" in rows[0] and "NaN or infinite scores" in rows[0]["error"] and "top" in rows[1]
    assert "1 images classified" in err and "1 could not be read" in err


def test_an_unreadable_image_is_named_and_counted(call, tiny, album):
    code, out, err = call("classify", tiny, album)
    assert code == 1
    assert out.count("class ") == 15
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "broken.jpg" in errors[0]
    assert "3 images classified by" in err
    assert "1 could not be read" in err


def test_nothing_but_unreadable_images(call, tiny, album):
    code, out, err = call("classify", tiny, album / "broken.jpg")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "broken.jpg" in err


def test_strict_stops(call, tiny, album):
    code, _, err = call("classify", tiny, album, "--strict")
    assert code == 2
    assert "broken.jpg" in err
    assert err.count("\n") == 1


def test_tar_files_and_patterns(call, tiny, album, tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(album / "a.png", "deep/a.png")
    code, out, _ = call("classify", tiny, tmp_path / "x.tar.gz", f"{album}/*.png", "--json")
    assert code == 0
    assert [Path(json.loads(line)["name"]).name for line in out.splitlines()] == ["a.png", "a.png"]


def test_classify_gives_the_same_on_another_target(call, tiny, album):
    answers = []
    for target in ("openvino", "onnxruntime"):
        code, out, _ = call("classify", tiny, album / "a.png", "--json", "--target", target, "--threads", 1)
        assert code == 0
        answers.append([r["index"] for r in json.loads(out)["top"]])
    assert answers[0] == answers[1]


def test_untrained(call, untrained, album):
    code, out, err = call("classify", untrained, album / "a.png")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "built from random weights" in err
    code, out, _ = call("classify", untrained, album / "a.png", "--allow-untrained")
    assert code == 0
    assert "class " in out


ERRORS = {
    "no bundle": (lambda tiny, album: ["classify", album, album / "a.png"], 2, "is not a bundle"),
    "no image": (lambda tiny, album: ["classify", tiny, album / "none.jpg"], 2, "no such file or folder"),
    "no images in a folder": (lambda tiny, album: ["classify", tiny, tiny], 2, "no image in this folder"),
    "target not built": (
        lambda tiny, album: ["classify", tiny, album / "a.png", "-t", "tensorrt_rtx"], 1, "tensorrt_rtx",
    ),
    "nothing named": (lambda tiny, album: ["classify", tiny], 2, "nothing to classify"),
    "standard input twice": (lambda tiny, album: ["classify", tiny, "-f", "-", "-f", "-"], 2, "can be read once"),
    "no such list": (lambda tiny, album: ["classify", tiny, "-f", album / "none.txt"], 2, "none.txt: cannot be read"),
    "resume without output": (lambda tiny, album: ["classify", tiny, album, "--resume"], 2, "needs an --output"),
    "resume and overwrite": (
        lambda tiny, album: ["classify", tiny, album, "-o", "x.csv", "--resume", "--overwrite"], 2, "one of them",
    ),
    "json and output": (lambda tiny, album: ["classify", tiny, album, "-o", album / "x.csv", "--json"], 2, "--json is"),
    "unknown format": (lambda tiny, album: ["classify", tiny, album, "-o", album / "x.txt"], 2, "ends in .jsonl"),
    "output is a folder": (lambda tiny, album: ["classify", tiny, album, "-o", make(album / "x.csv")], 2, "a folder"),
    "output in a file": (lambda tiny, album: ["classify", tiny, album, "-o", album / "a.png/x.csv"], 2, "cannot be wr"),
    "shard out of range": (lambda tiny, album: ["classify", tiny, album, "--shard", "4/4"], 2, "last of 4 is 3/4"),
    "shard of none": (lambda tiny, album: ["classify", tiny, album, "--shard", "0/0"], 2, "n is at least 1"),
    "no shard": (lambda tiny, album: ["classify", tiny, album, "--shard", "1-4"], 2, "expected i/n such as 0/4"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line(call, tiny, album, case):
    arguments, expected, message = ERRORS[case]
    code, out, err = call(*arguments(tiny, album))
    assert (code, out) == (expected, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("option", "value"), [("--top", "0"), ("--top", "6"), ("--top", "x"), ("--target", "tpu")])
def test_values_out_of_range_are_usage_errors(call, tiny, album, option, value):
    code, out, err = call("classify", tiny, album / "a.png", option, value)
    assert (code, out) == (2, "")
    assert option in err


def test_debug_shows_the_traceback(call, album):
    with pytest.raises(BundleError):
        call("classify", album, album / "a.png", "--debug")


def test_as_a_process(tiny, album):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "infer", "classify", str(tiny), str(album), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 4
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 3


# --- inputs and outputs ----------------------------------------------------------------------------------------------


def test_lists_and_standard_input(call, tiny, album, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{album}/b.jpg\n\n{album}/gone.png\r\n{album}/sub\n")
    code, out, err = call("classify", tiny, album / "a.png", "--files-from", listed, "--json")
    assert code == 1
    assert names(out) == ["a.png", "b.jpg", "gone.png", "c.webp"]
    assert "gone.png: no such file" in err
    command = [sys.executable, "-m", "infer", "classify", str(tiny), "-f", "-", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, input=f"{album}/a.png\n{album}/sub\n", capture_output=True, text=True, check=True
    )
    assert names(done.stdout) == ["a.png", "c.webp"]


def test_parquet_inputs(call, tiny, album, tmp_path):
    images = [(album / name).read_bytes() for name in ("a.png", "b.jpg", "broken.jpg")]
    table = pyarrow.table({"key": ["a", "b", "c"], "left": images, "right": images[::-1]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    code, out, err = call("classify", tiny, tmp_path / "x.parquet", "--json")
    assert (code, out) == (2, "") and "--column" in err and err.count("\n") == 1
    code, out, _ = call("classify", tiny, tmp_path / "x.parquet", "--column", "right", "--json")
    assert code == 1
    rows = {row["name"]: row for row in map(json.loads, out.splitlines())}
    assert list(rows) == [f"{tmp_path}/x.parquet:{key}" for key in "abc"]
    assert "error" in rows[f"{tmp_path}/x.parquet:a"]
    _, out, _ = call("classify", tiny, album / "a.png", "--json")
    assert rows[f"{tmp_path}/x.parquet:c"]["top"] == json.loads(out)["top"]


def test_every_format_has_the_same_rows_in_order(call, tiny, album, tmp_path):
    found = {}
    for suffix in ("jsonl", "csv", "parquet"):
        code, out, err = call("classify", tiny, album, "--output", tmp_path / f"deep/rows.{suffix}", "--top", 2)
        assert (code, out) == (1, "")
        assert "broken.jpg" in err and "3 images classified by" in err and "1 could not be read" in err
    for line in (tmp_path / "deep/rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        cells = [cell for r in row.get("top", []) for cell in (r["index"], r["label"], r["score"])]
        found[row["name"]] = [*cells, *[None] * (6 - len(cells)), row.get("error")]
    assert [Path(name).name for name in found] == ["a.png", "b.jpg", "broken.jpg", "c.webp"]
    assert found[f"{album}/broken.jpg"][-1].startswith(f"{album}/broken.jpg: ")

    with (tmp_path / "deep/rows.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["name", "class_1", "label_1", "score_1", "class_2", "label_2", "score_2", "error"]
    text = {name: ["" if cell is None else str(cell) for cell in cells] for name, cells in found.items()}
    assert {row[0]: row[1:] for row in rows} == text

    table = pyarrow.parquet.read_table(tmp_path / "deep/rows.parquet")
    assert table.column_names == header
    for row in table.to_pylist():
        name, *cells = row.values()
        assert cells == [pytest.approx(c, abs=1e-6) if isinstance(c, float) else c for c in found[name]]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["rows.csv", "rows.jsonl", "rows.parquet"]


def test_shards_make_up_the_whole(call, tiny, album):
    _, whole, _ = call("classify", tiny, album, album, album / "a.png", "--json")
    shards = [call("classify", tiny, album, album, album / "a.png", "--json", "--shard", f"{i}/4")[1] for i in range(4)]
    lines = [shard.splitlines() for shard in shards]
    assert names(whole) == [Path(json.loads(lines[i % 4][i // 4])["name"]).name for i in range(9)]
    assert sum(map(len, lines)) == 9


def test_an_existing_output_is_not_touched(call, tiny, album, tmp_path):
    output = tmp_path / "rows.jsonl"
    output.write_text("precious")
    code, _, err = call("classify", tiny, album / "a.png", "-o", output)
    assert code == 2 and "--overwrite" in err and output.read_text() == "precious"
    code, _, err = call("classify", tiny, album / "a.png", "-o", output, "--resume")
    assert code == 0 and "is finished, nothing to do" in err and output.read_text() == "precious"
    code, _, _ = call("classify", tiny, album / "none.png", "-o", output, "--overwrite")
    assert code == 2 and output.read_text() == "precious"
    code, _, _ = call("classify", tiny, album / "a.png", "-o", output, "--overwrite")
    assert code == 0 and names(output.read_text()) == ["a.png"]
    assert [path.name for path in tmp_path.iterdir() if path != album] == ["rows.jsonl"]


def test_strict_keeps_the_rows_before(call, tiny, album, tmp_path):
    output = tmp_path / "rows.csv"
    inputs = [album / "a.png"] * 20 + [album / "broken.jpg", album / "b.jpg"]
    code, _, err = call("classify", tiny, *inputs, "-o", output, "--strict")
    assert code == 2 and "broken.jpg" in err and "16 rows are kept in" in err
    assert not output.exists()
    code, _, err = call("classify", tiny, *inputs, "-o", output, "--resume")
    assert code == 1 and "21 images classified" in err and "(16 rows were there); 6 in " in err
    fresh = tmp_path / "fresh.csv"
    call("classify", tiny, *inputs, "-o", fresh)
    assert output.read_bytes() == fresh.read_bytes()


# --- killed and resumed ----------------------------------------------------------------------------------------------

# One CPU: how far decoding runs ahead, and so how many rows are out at a point, depends on their number.
PROGRAM = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores, with what it starts
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
import infer.classify.sinks.parquet
infer.classify.sinks.parquet.PART_ROWS = 16
from infer.cli import main
main()
"""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """400 images, some of them unreadable: 340 files, and a tar file among them with 60 members."""
    folder = tmp_path_factory.mktemp("crowd")
    rng = np.random.default_rng(3)
    for number in range(60):
        path = folder / f"{number:02d}.jpg"
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
        if number % 17 == 5:
            path.write_bytes(b"no image")
    with tarfile.open(folder / "all.tar", "w") as tar:
        tar.add(folder, "crowd", filter=lambda info: None if info.name.endswith(".tar") else info)
    lines = [str(folder / f"{number * 7 % 60:02d}.jpg") for number in range(340)]
    return [*lines[:50], str(folder / "all.tar"), *lines[50:]]


def start(tiny, output, *options):
    command = [sys.executable, "-c", PROGRAM, "classify", tiny, "-f", "-", "-o", output, "--top", 3, *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*map(str, command)], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, **pipes)


def bytes_of_rows(output):
    """How much an interrupted run has written."""
    folder = output.with_name(f"{output.name}.partial")
    paths = [*folder.glob("rows.*"), *folder.glob("part-*.parquet")]
    return sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_killed_three_times_and_resumed(tiny, crowd, tmp_path, suffix):
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"rows.{suffix}"
    everything = "\n".join(crowd)
    _, err = start(tiny, whole).communicate(everything)
    images, unreadable = re.search(r"(\d+) images classified .*, (\d+) could not be read; ", err).groups()
    assert int(images) + int(unreadable) == 400
    reached = 0
    for fed in (60, 150, 280):
        process = start(tiny, output, "--resume")
        process.stdin.write("".join(f"{line}\n" for line in crowd[:fed]))
        process.stdin.flush()  # and no end: the run waits for more until it is killed
        deadline = time.monotonic() + 60
        while bytes_of_rows(output) <= reached and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert bytes_of_rows(output) > reached
        assert not output.exists()
        reached = bytes_of_rows(output)
    process = start(tiny, output, "--resume")
    _, err = process.communicate(everything)
    assert process.returncode == 1  # some are unreadable, all of them in rows of killed runs
    assert re.search(rf"{images} images .*, {unreadable} could not be read \(\d+ rows were there\)", err), err
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, whole.name]


def test_ctrl_c_keeps_the_rows_and_says_how_to_go_on(tiny, crowd, tmp_path):
    output = tmp_path / "rows.jsonl"
    process = start(tiny, output)
    process.stdin.write("".join(f"{line}\n" for line in crowd[:200]))
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not bytes_of_rows(output) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGINT  # by the signal itself: a loop around it ends
    assert re.search(r"\d+ rows are kept in .*rows\.jsonl\.partial; --resume goes on there", err)
    assert "Traceback" not in err


@pytest.fixture
def interrupted(call, tiny, album, tmp_path):
    """An interrupted run of 16 rows: its arguments without options."""
    inputs = [album / "a.png"] * 10 + [album / "b.jpg"] * 6 + [album / "broken.jpg", album / "b.jpg"]
    arguments = ["classify", tiny, *inputs, "-o", tmp_path / "rows.jsonl"]
    code, _, err = call(*arguments, "--strict")
    assert code == 2 and "16 rows are kept" in err
    return arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "2"], "top: 5 there, 2 here"),
        (["--shard", "0/2"], "shard: 0/1 there, 0/2 here"),
        (["--target", "onnxruntime"], "target: openvino there, onnxruntime here"),
        (["more.png"], "inputs: 18 there, 19 here"),
        (["--column", "x"], "column: none there, x here"),
        (["--fast-decode"], ", fast here"),
    ],
)
def test_another_job_cannot_go_on(call, interrupted, tmp_path, options, message):
    code, _, err = call(*interrupted, "--resume", *options)
    assert code == 2 and message in err and err.count("\n") == 1
    code, _, err = call(*interrupted, "--resume")
    assert code == 1 and "(16 rows were there)" in err


def test_another_bundle_cannot_go_on(call, interrupted, untrained):
    code, _, err = call("classify", untrained, *interrupted[2:], "--resume", "--allow-untrained")
    assert code == 2 and "another bundle (sha256" in err


def test_other_images_cannot_go_on(call, tiny, album, tmp_path):
    arguments = ["classify", tiny, *[album / "sub"] * 20, album, "-o", tmp_path / "rows.csv"]
    assert call(*arguments, "--strict")[0] == 2
    (album / "sub/c.webp").rename(album / "sub/d.webp")
    code, _, err = call(*arguments, "--resume")
    assert code == 2 and "the inputs changed: row 0 of the interrupted run is" in err and "d.webp there" in err
    (album / "sub/d.webp").rename(album / "sub/c.webp")
    code, _, err = call(*arguments, "--resume")
    assert code == 1 and "(16 rows were there)" in err


def test_an_interrupted_run_is_not_discarded_unasked(call, interrupted, tmp_path):
    code, _, err = call(*interrupted)
    assert code == 2 and "--resume" in err and "--overwrite" in err
    code, _, err = call(*interrupted, "--overwrite")
    assert code == 1 and "rows were there" not in err
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 18


def test_two_processes_cannot_write_one_output(call, tiny, crowd, album, tmp_path):
    output = tmp_path / "rows.jsonl"
    process = start(tiny, output)
    try:
        process.stdin.write("".join(f"{line}\n" for line in crowd[:200]))
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not bytes_of_rows(output) and time.monotonic() < deadline:
            time.sleep(0.01)
        for option in ("--resume", "--overwrite"):
            code, _, err = call("classify", tiny, album, "-o", output, option)
            assert code == 2 and "another process is writing it" in err
        _, err = process.communicate("".join(f"{line}\n" for line in crowd[200:]))
    finally:
        process.kill()
    assert len(output.read_text().splitlines()) == 400


def test_require_verified_refuses_what_did_not_pass(call, tiny, album):
    code, out, err = call("classify", tiny, album / "a.png", "--require-verified")
    assert (code, out) == (3, "") and "was never verified" in err and err.count("\n") == 1
