"""``POST /v1/classify``: every form of a body says what ``Runner.classify`` says."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.serve.multipart import read_parts
from infer.serve.refusal import Refusal

FORM = {"content-type": "multipart/form-data; boundary=b"}
HEAD = b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n"
BROKEN = b"\xff\xd8\xff no jpeg"


@pytest.fixture(scope="module")
def http(tiny_server):
    with tiny_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def expected(runner, pictures):
    return [prediction.to_json()["top"] for prediction in runner.classify(pictures)]


def same(found, expected):
    """Scores may differ in the last digit with the size of the batch."""
    assert [(r["index"], r["label"]) for r in found] == [(r["index"], r["label"]) for r in expected]
    assert [r["score"] for r in found] == pytest.approx([r["score"] for r in expected], abs=2e-6)


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_the_body_is_an_image(http, pictures, expected, kind):
    answer = http.post("/v1/classify", content=pictures[0], headers={"content-type": kind} if kind else {})
    assert answer.status_code == 200
    content = answer.json()
    assert (content["model"], content["version"]) == ("tiny", "2")
    (row,) = content["predictions"]
    assert row["name"] == "image"
    same(row["top"], expected[0])
    stages = [part.partition(";dur=") for part in answer.headers["server-timing"].split(", ")]
    assert [name for name, _, _ in stages] == ["decode", "wait", "infer"] and all(float(ms) >= 0 for *_, ms in stages)


def test_multipart(http, pictures, expected):
    answer = http.post("/v1/classify?top=2&version=1", files=[("a", (f"{n}.jpg", p)) for n, p in enumerate(pictures)])
    rows = answer.json()["predictions"]
    assert [row["name"] for row in rows] == [f"{n}.jpg" for n in range(len(pictures))]
    for row, best in zip(rows, expected, strict=True):
        same(row["top"], best[:2])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(tiny_server, pictures, expected, tmp_path):
    """The two commands of the README."""
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(pictures[number])
    command = ["curl", "-s", f"{tiny_server.url}/v1/classify"]
    for arguments in (
        ["--data-binary", f"@{tmp_path}/0.jpg"],
        ["-F", f"a=@{tmp_path}/0.jpg", "-F", f"b=@{tmp_path}/1.jpg"],
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, check=True)
        for row, best in zip(json.loads(done.stdout)["predictions"], expected, strict=False):
            same(row["top"], best)


def test_json(http, pictures, expected):
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    answer = http.post("/v1/classify", json={"image": texts[3], "top": 1, "model": "tiny", "version": 1}).json()
    assert answer["version"] == "1"
    same(answer["predictions"][0]["top"], expected[3][:1])
    rows = http.post("/v1/classify", json={"images": texts}).json()["predictions"]
    for row, best in zip(rows, expected, strict=True):
        same(row["top"], best)


def test_of_several_a_bad_one_fails_alone(http, pictures, expected):
    answer = http.post("/v1/classify", files=[("a", pictures[0]), ("b", BROKEN), ("c", b""), ("d", pictures[1])])
    assert answer.status_code == 200
    rows = answer.json()["predictions"]
    same(rows[0]["top"], expected[0])
    same(rows[3]["top"], expected[1])
    for row in rows[1:3]:
        assert row.keys() == {"name", "error"} and row["error"].startswith(f"{row['name']}: ")


def test_a_bad_image_alone_is_400(http):
    answer = http.post("/v1/classify", content=BROKEN)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("image: damaged JPEG file")


MALFORMED = {
    "empty": ({"content": b""}, "body: empty, expected an image"),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, "content-type: expected"),
    "no part": ({"content": b"--b--\r\n", "headers": FORM}, "body: expected an image in each part, found no part"),
    "cut": ({"content": HEAD + b"abc", "headers": FORM}, "body: ends before the last boundary"),
    "damaged": ({"content": b"no", "headers": FORM}, "body: damaged multipart"),
    "both": ({"json": {"image": "QQ==", "images": []}}, "image, images: expected one of both"),
    "neither": ({"json": {}}, "image, images: expected one of both"),
    "no images": ({"json": {"images": []}}, "images: expected 1 to 128, found 0"),
    "too many": ({"json": {"images": ["QQ=="] * 129}}, "images: expected 1 to 128, found 129"),
    "number": ({"json": {"images": ["QQ==", 1]}}, "images[1]: expected `str`, got `int`"),
    "base64": ({"json": {"images": ["QQ==", "é"]}}, "images[1]: expected base64 of an encoded image"),
    "unknown": ({"json": {"image": "QQ==", "topk": 3}}, "body: object contains unknown field `topk`"),
    "top of zero": ({"json": {"image": "QQ==", "top": 0}}, "top: expected a number from 1, found 0"),
    "top of text": ({"content": b"x", "params": {"top": "best"}}, "top: expected a number from 1, found 'best'"),
    "query": ({"content": b"x", "params": {"k": "1"}}, "query: expected model, version and top, found 'k'"),
    "top twice": ({"content": b"x", "params": [("top", "1"), ("top", "2")]}, "top: expected once"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_400_and_names_the_field(http, case):
    request, message = MALFORMED[case]
    answer = http.post("/v1/classify", **request)
    assert answer.status_code == 400 and answer.json()["error"].startswith(message), answer.json()


def test_too_many_parts(http, pictures):
    answer = http.post("/v1/classify", files=[("a", b"x")] * 129)
    assert answer.status_code == 400 and answer.json()["error"] == "body: expected at most 128 images, found more"


def test_what_is_loaded(http, tiny_server, root, tiny):
    answer = http.get("/v1/models")
    assert [(m["name"], m["version"], m["precision"], m["target"]) for m in answer.json()["models"]] == [
        ("tiny", "1", "fp32", "openvino"), ("tiny", "2", "fp32", "openvino"),
    ]  # fmt: skip
    assert str(tiny) not in answer.text and str(root) not in answer.text


NAMES = {"ä b.jpg": "ä b.jpg", "<script>.png": "<script>.png", "x" * 400: "x" * 256}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(http, pictures, name):
    (row,) = http.post("/v1/classify", files={"f": (name, pictures[0])}).json()["predictions"]
    assert row["name"] == NAMES[name]


def test_a_part_without_a_name_has_its_number():
    body = b"--b\r\nContent-Type: image/png\r\n\r\nabc\r\n--b--\r\n"
    (part,) = read_parts(body, "multipart/form-data; boundary=b", 4)
    assert (part.name, part.data) == ("part 0", b"abc")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_multipart_body_is_read_or_refused(contents, edits):
    body = b"".join(
        b"--edge\r\nContent-Disposition: form-data; name=f; filename=n\r\n\r\n" + one + b"\r\n" for one in contents
    )
    damaged = bytearray(body + b"--edge--\r\n")
    for place, value in edits:
        damaged[place % len(damaged)] = value
    try:
        parts = read_parts(bytes(damaged), "multipart/form-data; boundary=edge", 4)
    except Refusal as refusal:
        assert refusal.status == 400
    else:
        assert 1 <= len(parts) <= 4
        if not edits and not any(b"--edge" in one for one in contents):
            assert [part.data for part in parts] == contents
