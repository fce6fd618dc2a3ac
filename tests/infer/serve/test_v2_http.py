"""The v2 protocol over HTTP, asked by NVIDIA's own client and by hand."""

from __future__ import annotations

import base64
import gzip
import json

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

INFER = "/v2/models/tiny/infer"


@pytest.fixture
def client(tiny_server):
    with triton.InferenceServerClient(f"127.0.0.1:{tiny_server.port}", concurrency=4) as made:
        yield made


@pytest.fixture
def http(tiny_server):
    with tiny_server.client() as made:
        yield made


def tensor(images, binary=True):
    made = triton.InferInput("images", images.shape, "UINT8")
    return made.set_data_from_numpy(images, binary_data=binary)


def files(data, binary=True):
    made = triton.InferInput("images", [len(data)], "BYTES")
    return made.set_data_from_numpy(np.array(data, dtype=object), binary_data=binary)


def test_what_the_server_and_the_model_are(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1") and not client.is_model_ready("tiny", "3")
    server = client.get_server_metadata()
    assert server["name"] == "iresnet" and "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("tiny")
    assert model["versions"] == ["1", "2"]
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert [(o["name"], o["datatype"], o["shape"]) for o in model["outputs"]] == [
        ("logits", "FP32", [-1, 10]), ("scores", "FP32", [-1, 5]), ("classes", "INT32", [-1, 5]),
    ]  # fmt: skip
    assert client.get_model_config("tiny")["input"][0]["dims"] == [32, 32, 3]


@pytest.mark.parametrize("name", ["tiny", "tiny.encoded"])
def test_a_client_that_knows_nothing_but_the_metadata(client, pictures, pixels, name):
    """Builds its inputs from what the server says of the model, as generators of load do."""
    (described,) = client.get_model_metadata(name)["inputs"]
    shape = [2, *described["shape"][1:]]
    data = pixels[:2] if described["datatype"] == "UINT8" else np.array(pictures[:2], dtype=object)
    made = triton.InferInput(described["name"], shape, described["datatype"]).set_data_from_numpy(data.reshape(shape))
    assert client.infer(name, [made]).as_numpy("logits").shape == (2, 10)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_tensors_give_what_the_runner_gives(client, runner, pixels, count, binary):
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("classes", "logits", "scores")]
    answer = client.infer("tiny", [tensor(pixels[:count], binary)], outputs=wanted, request_id="mine")
    expected = runner.infer(pixels[:count])
    assert answer.get_response()["id"] == "mine" and answer.get_response()["model_version"] == "2"
    np.testing.assert_allclose(answer.as_numpy("logits"), expected.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(answer.as_numpy("scores"), expected.scores, rtol=1e-5, atol=1e-6)
    assert np.array_equal(answer.as_numpy("classes"), expected.classes)


@pytest.mark.parametrize("binary", [True, False])
def test_encoded_images_give_what_classify_gives(client, runner, pictures, binary):
    data = pictures if binary else [base64.b64encode(picture) for picture in pictures]
    answer = client.infer("tiny", [files(data, binary)])
    found = [[ranked.index for ranked in p.top] for p in runner.classify(pictures)]
    assert answer.as_numpy("classes").tolist() == found


def test_the_classification_extension(client, runner, pixels):
    answer = client.infer("tiny", [tensor(pixels[:2])], outputs=[triton.InferRequestedOutput("logits", class_count=3)])
    expected = runner.infer(pixels[:2])
    for row, texts in enumerate(answer.as_numpy("logits")):
        for place, text in enumerate(texts):
            value, index, label = text.decode().split(":")
            assert int(index) == expected.classes[row, place] and label == runner.labels[int(index)]
            assert float(value) == pytest.approx(expected.logits[row, int(index)], abs=1e-4)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_request(client, runner, pixels, coding):
    answer = client.infer("tiny", [tensor(pixels[:2])], request_compression_algorithm=coding)
    assert np.array_equal(answer.as_numpy("classes"), runner.infer(pixels[:2]).classes)


def test_versions_side_by_side(client, pixels):
    for version in ("1", "2"):
        answer = client.infer("tiny", [tensor(pixels[:1])], model_version=version)
        assert answer.get_response()["model_version"] == version
    with pytest.raises(InferenceServerException, match=r"\[404\] version: model 'tiny' has no version '7' here"):
        client.infer("tiny", [tensor(pixels[:1])], model_version="7")


def test_one_bad_image_fails_its_request_and_no_other(client, runner, pictures, gate, tiny_server):
    """All of them wait for the device while the bad ones come, and leave in one full batch."""
    before = tiny_server.model("tiny", "2").metrics.totals.sizes.copy()
    before = {size: one.count for size, one in before.items()}
    gate.shut()
    first = client.async_infer("tiny", [files(pictures[:1])])
    gate.wait_until_reached()
    with triton.InferenceServerClient(f"127.0.0.1:{tiny_server.port}", concurrency=16) as many:
        good = [many.async_infer("tiny", [files([picture])]) for picture in pictures[1:9]]
        bad = [many.async_infer("tiny", [files([b"\xff\xd8\xff no jpeg"])]) for _ in range(3)]
        for one in bad:
            with pytest.raises(InferenceServerException, match=r"\[400\] inputs\[0\].data\[0\]: "):
                one.get_result()
        queue = tiny_server.model("tiny", "2").queue
        for _ in range(200):
            if queue.used == 9:
                break
            gate.reached.acquire(timeout=0.01)
        gate.open()
        found = [one.get_result().as_numpy("classes")[0].tolist() for one in [first, *good]]
    assert gate.sizes == [1, 8]  # what the backend was given
    assert found == [[r.index for r in p.top] for p in runner.classify(pictures[:9])]
    after = {size: one.count for size, one in tiny_server.model("tiny", "2").metrics.totals.sizes.items()}
    assert after[8] == before.get(8, 0) + 1 and after[1] == before.get(1, 0) + 1


def test_statistics_have_the_sizes_of_the_batches(client, pixels):
    (before,) = client.get_inference_statistics("tiny", "1")["model_stats"]
    client.infer("tiny", [tensor(pixels)], model_version="1")
    (after,) = client.get_inference_statistics("tiny", "1")["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 21
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    sizes = [{s["batch_size"]: s["compute_infer"]["count"] for s in one["batch_stats"]} for one in (before, after)]
    # the first is sent at once, which may be before the rest is seen: 8, 8 and what is left
    assert sum(size * (n - sizes[0].get(size, 0)) for size, n in sizes[1].items()) == 21
    assert len(client.get_inference_statistics()["model_stats"]) == 2


GOOD = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}


def asked(**changes):
    return {"inputs": [{**GOOD, **changes}]}


MALFORMED = {
    "no json": (b"{", "body: expected JSON"),
    "no object": (b"[]", "body: expected `object`, got `array`"),
    "nothing": (b"", "body: expected JSON"),
    "deep": (b'{"inputs":[{"data":' + b"[" * 100_000, "body: expected JSON"),
    "no inputs": ({}, "body: object missing required field `inputs`"),
    "two inputs": ({"inputs": [GOOD, GOOD]}, "inputs: expected 1, found 2"),
    "shape of texts": (asked(shape=["1"]), "inputs[0].shape[0]: expected `int`, got `str`"),
    "negative": (asked(shape=[-1, 32, 32, 3]), "inputs[0].shape[0]: expected `int` >= 0"),
    "huge": (asked(shape=[1 << 60, 32, 32, 3]), "inputs[0].shape[0]: expected `int` <= 1099511627776"),
    "other side": (asked(shape=[1, 33, 32, 3]), "inputs[0].shape: expected [N, 32, 32, 3], found [1, 33, 32, 3]"),
    "too many": (asked(shape=[129, 32, 32, 3]), "inputs[0].shape: expected 1 to 128 images, found 129"),
    "none": (asked(shape=[0, 32, 32, 3]), "inputs[0].shape: expected 1 to 128 images, found 0"),
    "name": (asked(name="x"), "inputs[0].name: expected 'images', found 'x'"),
    "datatype": (asked(datatype="FP32"), "inputs[0].datatype: expected UINT8 pixels or BYTES"),
    "too few": (asked(data=[1, 2]), "inputs[0].data: expected 3072 whole numbers, found 2 of int64"),
    "range": (asked(data=[0] * 3071 + [256]), "inputs[0].data: expected numbers from 0 to 255, found 0 to 256"),
    "fractions": (asked(data=[0.5] * 3072), "inputs[0].data: expected 3072 whole numbers, found 3072 of float64"),
    "texts": (asked(data=["a"] * 3072), "inputs[0].data: expected 3072 whole numbers, found something else"),
    "ragged": (asked(data=[[1], [1, 2]]), "inputs[0].data: expected 3072 numbers, flat or nested"),
    "truth": (asked(data=[True] * 3072), "inputs[0].data: expected 3072 whole numbers, found 3072 of bool"),
    "no data": ({"inputs": [{k: v for k, v in GOOD.items() if k != "data"}]}, "inputs[0].data: expected numbers"),
    "base64": (asked(datatype="BYTES", shape=[1], data=["?"]), "inputs[0].data[0]: expected base64 of an encoded"),
    "bytes count": (asked(datatype="BYTES", shape=[2], data=["QQ=="]), "inputs[0].data: expected 2 elements, found 1"),
    "bytes shape": (asked(datatype="BYTES", shape=[1, 2], data=[]), "inputs[0].shape: expected [N] or [N, 1]"),
    "no image": (asked(datatype="BYTES", shape=[1], data=["QQ=="]), "inputs[0].data[0]: not an image"),
    "binary size": (asked(parameters={"binary_data_size": 3072}), "inputs[0].parameters.binary_data_size: expected 0"),
    "shared memory": (
        asked(parameters={"shared_memory_region": "x"}),
        "inputs[0].parameters.shared_memory_region: not",
    ),
    "output": ({**asked(), "outputs": [{"name": "probs"}]}, "outputs[0].name: expected one of logits, scores, classes"),
    "output twice": ({**asked(), "outputs": [{"name": "logits"}] * 2}, "outputs: expected each name once"),
    "output binary": (
        {**asked(), "outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]},
        "outputs[0].parameters.binary_data: expected true or false, found 1",
    ),
    "classes of scores": (
        {**asked(), "outputs": [{"name": "scores", "parameters": {"classification": 1}}]},
        "outputs[0].parameters.classification: expected for logits only",
    ),
    "flag": ({**asked(), "parameters": {"binary_data_output": "yes"}}, "parameters.binary_data_output: expected true"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_body_is_400_with_one_line_that_names_the_field(http, case):
    body, message = MALFORMED[case]
    answer = http.post(INFER, content=body if isinstance(body, bytes) else json.dumps(body))
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert answer.json()["error"].startswith(message), answer.json()
    assert "\n" not in answer.json()["error"] and answer.json().keys() == {"error"}


BINARY = {
    "behind": (b"\0" * 4, {}, "body: expected JSON"),
    "header too long": (b"", {"length": 100_000}, "inference-header-content-length: expected at most"),
    "header no number": (b"", {"length": "x"}, "inference-header-content-length: expected at most"),
    "cut": (b"\0" * 3071, {"size": 3072}, "inputs[0].parameters.binary_data_size: expected 3071"),
    "size too small": (b"\0" * 3072, {"size": 3071}, "inputs[0].parameters.binary_data_size: expected 3072"),
    "size is a text": (b"\0" * 3072, {"size": "3072"}, "inputs[0].parameters.binary_data_size: expected 3072"),
    "not the shape": (b"\0" * 3071, {"size": 3071}, "inputs[0].data: expected 3072 bytes for this shape, found 3071"),
    "unused": (b"\0", {"plain": True}, "body: 1 bytes behind the JSON"),
    "element cut": (b"\x05\0\0\0ab", {"bytes": 1}, "inputs[0].data: element 0 has 5 bytes, 2 are there"),
    "length cut": (b"\x01\0\0\0ab", {"bytes": 2}, "inputs[0].data: ends within the length of element 1"),
    "length huge": (b"\xff\xff\xff\xffab", {"bytes": 1}, "inputs[0].data: element 0 has 4294967295 bytes"),
    "element more": (b"\x01\0\0\0a" * 2, {"bytes": 1}, "inputs[0].data: expected 1 elements, found more"),
    "element fewer": (b"\x01\0\0\0a", {"bytes": 2}, "inputs[0].data: expected 2 elements, found 1"),
}


@pytest.mark.parametrize("case", BINARY)
def test_malformed_binary_data(http, case):
    data, how, message = BINARY[case]
    one = dict(GOOD)
    if not how.get("plain"):
        del one["data"]
        one["parameters"] = {"binary_data_size": how.get("size", len(data))}
    if "bytes" in how:
        one |= {"datatype": "BYTES", "shape": [how["bytes"]]}
    header = json.dumps({"inputs": [one]}).encode()
    length = how.get("length", len(header))
    headers = {"inference-header-content-length": str(length)} if case != "behind" else {}
    answer = http.post(INFER, content=header + data, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"].startswith(message), answer.json()


def test_wrong_codings(http):
    body = gzip.compress(json.dumps(asked()).encode())
    for content, coding, status, message in (
        (body[:-9], "gzip", 400, "body: ends before its compressed data does"),
        (b"no gzip at all", "gzip", 400, "body: not of the content-encoding"),
        (gzip.compress(b"\0" * (33 << 20)), "gzip", 413, "body: decompressed, longer than"),
        (body, "br", 415, "content-encoding: expected identity, gzip or deflate"),
    ):
        answer = http.post(INFER, content=content, headers={"content-encoding": coding})
        assert answer.status_code == status and answer.json()["error"].startswith(message)
    assert http.post(INFER, content=body, headers={"content-encoding": "gzip"}).status_code == 200


def test_unknown_things(http):
    for method, path, status in (
        ("POST", "/v2/models/none/infer", 404),
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/tiny/versions/9", 404),
        ("GET", "/v3", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("PUT", "/v1/classify", 405),
        ("POST", "/v2/repository/models/tiny/unload", 403),
        ("POST", "/v2/repository/models/tiny/load", 403),
    ):
        answer = http.request(method, path)
        assert answer.status_code == status, path
        assert list(answer.json()) == ["error"]


def test_request_ids(http):
    given = http.get("/v2", headers={"x-request-id": "abc-1"}).headers["x-request-id"]
    assert given == "abc-1"
    made = {http.get("/v2", headers={"x-request-id": "two words"}).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2 and all(len(one) == 16 for one in made)


def test_no_other_site_is_let_in(http, pictures):
    answer = http.post("/v1/classify", content=pictures[0], headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    answer = http.post("/v1/classify", content=pictures[0], headers={"origin": str(http.base_url).rstrip("/")})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert httpx.Headers(answer.headers).get("server") is None
