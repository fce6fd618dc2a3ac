"""Parsers of the protocol: any input is read or refused with a status, and what is read is what was sent."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer.serve import v2_http
from infer.serve.limits import Limits
from infer.serve.model import Shape
from infer.serve.refusal import Refusal
from infer.serve.tensors import DATATYPES

MODEL = SimpleNamespace(shape=Shape(side=2, classes=10, best=5))
EDITS = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4)
SERVICE = SimpleNamespace(limits=Limits(max_images=4))


def read(body: bytes, length: bytes | None):
    """As the route does; None for a refusal."""
    try:
        header, data = v2_http.split_body(body, length)
        return v2_http.read_request(v2_http.decode_request(header), data, MODEL, SERVICE)
    except Refusal as refusal:
        assert refusal.status in (400, 413) and "\n" not in refusal.message and len(refusal.message) < 400
        return None


def request(images: np.ndarray, binary: bool) -> tuple[bytes, bytes | None]:
    one = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    if not binary:
        return json.dumps({"inputs": [{**one, "data": images.tolist()}]}).encode(), None
    head = json.dumps({"inputs": [{**one, "parameters": {"binary_data_size": images.nbytes}}]}).encode()
    return head + images.tobytes(), str(len(head)).encode()


def encoded(files: list[bytes]) -> tuple[bytes, bytes]:
    data = b"".join(len(one).to_bytes(4, "little") + one for one in files)
    one = {"name": "images", "datatype": "BYTES", "shape": [len(files)], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [one]}).encode()
    return head + data, str(len(head)).encode()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4),
    st.booleans(),
    EDITS,
    st.integers(-2, 2),
)
def test_damaged_requests_of_pixels(count, binary, edits, longer):
    images = np.random.default_rng(count).integers(0, 256, (count, 2, 2, 3)).astype(np.uint8)
    body, length = request(images, binary)
    damaged = bytearray(body)
    for place, value in edits:
        damaged[place % len(damaged)] = value
    damaged = damaged[:longer] if longer < 0 else damaged + b"\0" * longer
    found = read(bytes(damaged), length)
    if bytes(damaged) == body:
        assert np.array_equal(found[0].pixels, images)
    elif found is not None:
        some = found[0].pixels if found[0].pixels is not None else found[0].files
        assert 1 <= len(some) <= 4 and [one.name for one in found[1]]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=30), min_size=1, max_size=4),
    EDITS,
)
def test_damaged_requests_of_files(files, edits):
    body, length = encoded(files)
    damaged = bytearray(body)
    for place, value in edits:
        damaged[place % len(damaged)] = value
    found = read(bytes(damaged), length)
    if bytes(damaged) == body:
        assert [bytes(one) for one in found[0].files] == files


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


INPUT = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("images") | JSON,
        "datatype": st.sampled_from(["UINT8", "BYTES"]) | JSON,
        "shape": st.just([1, 2, 2, 3]) | st.just([1]) | JSON,
        "data": JSON,
        "parameters": JSON,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(INPUT, max_size=2)}, optional={"outputs": JSON, "parameters": JSON, "id": JSON}
)


@settings(max_examples=300, deadline=None)
@given(REQUEST | JSON, st.binary(max_size=20), st.none() | st.integers(-3, 3))
def test_any_json(content, data, off):
    head = json.dumps(content).encode()
    length = None if off is None else str(len(head) + off).encode()
    read(head + data, length)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.none() | st.binary(max_size=6))
def test_any_bytes(body, length):
    assert read(body, length) is None


def test_what_is_sound_is_read():
    """The other tests would pass if everything were refused."""
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    for binary in (False, True):
        found, outputs = read(*request(images, binary))
        assert np.array_equal(found.pixels, images) and [one.name for one in outputs] == list(DATATYPES)
    assert [bytes(one) for one in read(*encoded([b"", b"ab"]))[0].files] == [b"", b"ab"]


pb = pytest.importorskip("tritonclient.grpc.service_pb2")


@settings(max_examples=300, deadline=None)
@given(EDITS, st.booleans(), st.integers(0, 40))
def test_damaged_messages(edits, raw, cut):
    from google.protobuf.message import DecodeError

    from infer.serve import v2_grpc

    message = pb.ModelInferRequest(model_name="m", id="x")
    one = message.inputs.add(name="images", datatype="UINT8" if raw else "BYTES", shape=[1, 2, 2, 3] if raw else [2])
    if raw:
        message.raw_input_contents.append(bytes(range(12)))
    else:
        one.contents.bytes_contents.extend([b"ab", b"c"])
    message.outputs.add(name="logits").parameters["classification"].int64_param = 2
    data = bytearray(message.SerializeToString())
    for place, value in edits:
        data[place % len(data)] = value
    damaged = pb.ModelInferRequest()
    try:
        damaged.ParseFromString(bytes(data[: len(data) - cut]))
    except DecodeError:
        return
    try:
        images, outputs = v2_grpc.read_request(damaged, MODEL, SERVICE)
    except Refusal as refusal:
        assert refusal.status == 400
    else:
        assert outputs and (images.pixels is not None or images.files)
    if not edits and not cut:
        assert (images.pixels is not None) == raw and outputs[0].best == 2
