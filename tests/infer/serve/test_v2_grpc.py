"""The v2 protocol over gRPC, asked by NVIDIA's own client."""

from __future__ import annotations

import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from infer.serve.limits import Limits


@pytest.fixture
def client(tiny_server):
    with triton.InferenceServerClient(tiny_server.grpc) as made:
        yield made


@pytest.fixture
def stub(tiny_server):
    with grpc.insecure_channel(tiny_server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(images):
    return triton.InferInput("images", images.shape, "UINT8").set_data_from_numpy(images)


def test_what_the_server_and_the_model_are(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny", "1")
    assert client.get_server_metadata().name == "iresnet"
    model = client.get_model_metadata("tiny.encoded")
    assert list(model.versions) == ["1", "2"] and model.inputs[0].datatype == "BYTES"
    assert client.get_model_config("tiny").config.max_batch_size == 128
    assert client.get_inference_statistics("tiny").model_stats[0].name == "tiny"
    index = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in index] == [("tiny", "1", "READY"), ("tiny", "2", "READY")]


@pytest.mark.parametrize("count", [1, 8, 21])
def test_tensors_give_what_the_runner_gives(client, runner, pixels, count):
    answer = client.infer("tiny", [tensor(pixels[:count])], request_id="mine")
    expected = runner.infer(pixels[:count])
    assert answer.get_response().id == "mine"
    np.testing.assert_allclose(answer.as_numpy("logits"), expected.logits, rtol=1e-5, atol=1e-5)
    assert np.array_equal(answer.as_numpy("classes"), expected.classes)


def test_encoded_images_give_what_classify_gives(client, runner, pictures):
    made = triton.InferInput("images", [len(pictures)], "BYTES")
    made.set_data_from_numpy(np.array(pictures, dtype=object))
    outputs = [triton.InferRequestedOutput("classes"), triton.InferRequestedOutput("logits", class_count=1)]
    answer = client.infer("tiny.encoded", [made], outputs=outputs)
    found = [[ranked.index for ranked in p.top] for p in runner.classify(pictures)]
    assert answer.as_numpy("classes").tolist() == found
    assert [int(text.split(b":")[1]) for text in answer.as_numpy("logits").ravel()] == [row[0] for row in found]


def test_typed_contents(stub, runner, pixels, pictures):
    request = pb.ModelInferRequest(model_name="tiny")
    one = request.inputs.add(name="images", datatype="UINT8", shape=[1, 32, 32, 3])
    one.contents.uint_contents.extend(pixels[0].ravel().tolist())
    answer = stub.ModelInfer(request)
    assert (
        np.frombuffer(answer.raw_output_contents[2], np.int32).tolist() == runner.infer(pixels[:1]).classes[0].tolist()
    )
    request = pb.ModelInferRequest(model_name="tiny")
    one = request.inputs.add(name="images", datatype="BYTES", shape=[2, 1])
    one.contents.bytes_contents.extend(pictures[:2])
    assert list(stub.ModelInfer(request).outputs[0].shape) == [2, 10]


def test_a_stream_goes_on_after_a_refusal(client, runner, pixels):
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("tiny", [tensor(pixels[:1])])
    client.async_stream_infer("none", [tensor(pixels[:1])])
    client.async_stream_infer("tiny", [tensor(pixels[:2])])
    found = [answers.get(timeout=10) for _ in range(3)]
    client.stop_stream()
    assert found[0][1] is None and found[2][0].as_numpy("classes").tolist() == runner.infer(pixels[:2]).classes.tolist()
    assert "there is no model 'none' here" in str(found[1][1])


def malformed(change):
    request = pb.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 32, 32, 3])
    request.raw_input_contents.append(b"\0" * 3072)
    change(request)
    return request


MALFORMED = {
    "no input": (lambda r: r.ClearField("inputs"), "inputs: expected 1, found 0"),
    "name": (lambda r: setattr(r.inputs[0], "name", "x"), "inputs[0].name: expected 'images', found 'x'"),
    "shape": (lambda r: r.inputs[0].shape.append(1), "inputs[0].shape: expected [N, 32, 32, 3]"),
    "negative": (lambda r: r.inputs[0].shape.__setitem__(0, -1), "inputs[0].shape: expected 1 to 128 images, found -1"),
    "many dimensions": (lambda r: r.inputs[0].shape.extend([1] * 5000), "inputs[0].shape: expected [N, 32, 32, 3]"),
    "too few bytes": (
        lambda r: r.raw_input_contents.__setitem__(0, b"abc"), "raw_input_contents[0]: expected 3072 bytes for this",
    ),
    "two contents": (lambda r: r.raw_input_contents.append(b""), "raw_input_contents: expected 1, found 2"),
    "no contents": (lambda r: r.ClearField("raw_input_contents"), "inputs[0].contents.uint_contents: expected 3072"),
    "output": (lambda r: r.outputs.add(name="y"), "outputs[0].name: expected one of logits, scores, classes"),
    "no model": (lambda r: setattr(r, "model_name", ""), "model_name: expected the name of a model"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_names_its_field(stub, case):
    change, message = MALFORMED[case]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(malformed(change))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(message)


def test_numbers_that_are_no_pixels(stub):
    request = malformed(lambda r: r.ClearField("raw_input_contents"))
    request.inputs[0].contents.uint_contents.extend([256] * 3072)
    with pytest.raises(grpc.RpcError, match="expected numbers from 0 to 255"):
        stub.ModelInfer(request)


def test_what_is_not_here_is_unimplemented(client):
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.get_trace_settings()


def test_the_length_of_a_message_follows_the_limit_of_bodies(serve, runner, pixels):
    """gRPC's own limit is 4 MiB."""
    large = np.concatenate([pixels] * 90)[:1800]
    assert large.nbytes > 5 << 20
    limits = Limits(max_body=6 << 20, max_images=4000, queue=4000)
    with serve(limits=limits) as server, triton.InferenceServerClient(server.grpc) as client:
        found = client.infer("tiny", [tensor(large)]).as_numpy("classes")
        assert np.array_equal(found[:21], runner.infer(pixels).classes) and len(found) == 1800
        with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
            client.infer("tiny", [tensor(np.concatenate([large, large]))])


def test_a_full_queue_a_deadline_and_a_cancelled_call(serve, gate, pixels):
    with serve(limits=Limits(queue=4, timeout=0.4)) as server, triton.InferenceServerClient(server.grpc) as client:
        gate.shut()
        answers: queue.Queue = queue.Queue()
        call = client.async_infer("tiny", [tensor(pixels[:3])], lambda result, error: answers.put(error))
        gate.wait_until_reached()
        with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*queue \(images\): 3 of 4 are taken"):
            client.infer("tiny", [tensor(pixels[:2])])
        call.cancel()
        assert "CANCELLED" in str(answers.get(timeout=5))
        with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
            client.infer("tiny", [tensor(pixels[:1])])
        gate.open()
