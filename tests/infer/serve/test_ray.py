"""The application behind Ray Serve's proxies: a cluster of one node, asked by clients that know nothing of Ray."""

from __future__ import annotations

import os
import threading
import time

import httpx
import numpy as np
import pytest

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when Ray is imported: every socket on 127.0.0.1
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pytest.importorskip("ray.serve")
pytest.importorskip("tritonclient.grpc")

import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import yaml
from pydantic import ValidationError
from ray import serve
from tritonclient.utils import InferenceServerException

from infer.serve.limits import MIB
from infer.serve.ray import Arguments, build
from infer.serve.ray_grpc import CALLS, SERVICER

HTTP, GRPC = 18231, 18232
URL = f"http://127.0.0.1:{HTTP}"


@pytest.fixture(scope="module")
def cluster(root):
    """One node on the machine's own interface, with Serve's proxies; no application."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])))
    import ray

    ray.init(
        address="local", num_cpus=6, include_dashboard=False, object_store_memory=150 * MIB, log_to_driver=False
    )  # fmt: skip
    serve.start(
        http_options={"host": "127.0.0.1", "port": HTTP},
        grpc_options={"port": GRPC, "grpc_servicer_functions": [SERVICER]},
    )
    yield
    serve.shutdown()
    ray.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def deployed(cluster, tiny):
    serve.run(build(Arguments(bundle=f"tiny={tiny}", replicas=2, max_body=1, max_images=4)), name="one")


def tensor(module, images):
    return module.InferInput("images", images.shape, "UINT8").set_data_from_numpy(images)


# --- arguments and configuration -------------------------------------------------------------------------------------


def test_arguments_are_typed():
    with pytest.raises(ValidationError, match="bundel"):
        Arguments(bundle="x", bundel="y")
    with pytest.raises(ValidationError, match="expected a number from 1, or MIN-MAX, found '4-2'"):
        Arguments(bundle="x", replicas="4-2")
    made = Arguments(bundle="x", replicas="2-4", requests=5, gpus=1).deployment()
    assert made["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 4, "target_ongoing_requests": 5}
    assert made["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}
    assert Arguments(bundle="x", replicas=3).deployment()["num_replicas"] == 3


def test_the_example_is_a_configuration_of_ray(root):
    from ray.serve.schema import ServeDeploySchema

    found = ServeDeploySchema.model_validate(yaml.safe_load((root / "examples/serve/ray.yaml").read_text()))
    (application,) = found.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    assert found.grpc_options.grpc_servicer_functions == [SERVICER]
    Arguments.model_validate(application.args).options()


# --- on the cluster --------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_runner(deployed, runner, pixels, pictures):
    expected = [p.top[0].index for p in runner.classify(pictures[:3])]
    rows = [httpx.post(f"{URL}/v1/classify", content=one, timeout=30) for one in pictures[:3]]
    assert [row.json()["predictions"][0]["top"][0]["index"] for row in rows] == expected
    client = triton_http.InferenceServerClient(f"127.0.0.1:{HTTP}")
    assert client.is_server_ready() and client.is_model_ready("tiny")
    answer = client.infer("tiny", [tensor(triton_http, pixels[:3])])
    np.testing.assert_allclose(answer.as_numpy("logits"), runner.infer(pixels[:3]).logits, rtol=1e-5, atol=1e-5)
    client.close()


def test_grpc(deployed, runner, pixels):
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{GRPC}") as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
        assert client.get_model_metadata("tiny").inputs[0].name == "images"
        assert client.get_model_config("tiny").config.name == "tiny"
        answer = client.infer("tiny", [tensor(triton_grpc, pixels[:3])])
        np.testing.assert_allclose(answer.as_numpy("logits"), runner.infer(pixels[:3]).logits, rtol=1e-5, atol=1e-5)
        for call, status, words in (
            (lambda: client.get_model_metadata("other"), "NOT_FOUND", "there is no model 'other'"),
            (
                lambda: client.infer("tiny", [tensor(triton_grpc, pixels[:1, :9])]),
                "INVALID_ARGUMENT",
                "expected [N, 32",
            ),
            (lambda: client.load_model("tiny"), "UNIMPLEMENTED", "not through Ray"),
            (lambda: client.infer("tiny", [big()]), "RESOURCE_EXHAUSTED", f"longer than {MIB} bytes"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                call()
            assert caught.value.status() == f"StatusCode.{status}" and words in caught.value.message()


def big():
    return triton_grpc.InferInput("images", [1], "BYTES").set_data_from_numpy(
        np.array([b"x" * (2 * MIB)], dtype=object)
    )


def test_limits_of_the_application_hold_behind_the_proxy(deployed, pictures):
    assert httpx.post(f"{URL}/v1/classify", content=b"x" * (2 * MIB), timeout=30).status_code == 413
    many = [("f", (f"{n}", data)) for n, data in enumerate(pictures[:5])]
    assert httpx.post(f"{URL}/v1/classify", files=many, timeout=30).status_code == 400
    bad = httpx.post(f"{URL}/v1/classify", content=b"no picture", timeout=30)
    assert bad.status_code == 400 and "not an image" in bad.json()["error"]


def test_a_new_bundle_without_a_failed_request(deployed, tiny, pictures):
    """Two replicas, clients that never stop, version 1 to version 2."""
    stop, found, lock = threading.Event(), [], threading.Lock()

    def ask():
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{URL}/v1/classify", content=pictures[0])
                    row = (answer.status_code, answer.json().get("version"))
                except Exception as error:
                    row = (repr(error), None)
                with lock:
                    found.append(row)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        serve.run(build(Arguments(bundle=f"tiny:2={tiny}", replicas=2, max_body=1, max_images=4)), name="one")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and {version for _, version in found[-20:]} != {"2"}:
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in found} == {200}
    assert found[0][1] == "1" and {version for _, version in found[-20:]} == {"2"}


@pytest.mark.slow  # Ray tries three times
def test_a_bundle_that_cannot_be_served_is_said(cluster, tmp_path):
    from ray.serve.schema import ApplicationStatus

    with pytest.raises(RuntimeError):
        serve.run(build(Arguments(bundle=f"x={tmp_path}")), name="broken", route_prefix="/broken")
    state = serve.status().applications["broken"]
    assert state.status == ApplicationStatus.DEPLOY_FAILED
    assert "BundleError" in str(state.deployments["classifier"].message)
    serve.delete("broken")


def test_grpc_with_two_applications_is_refused_in_words(deployed, tiny):
    serve.run(build(Arguments(bundle=f"tiny={tiny}")), name="two", route_prefix="/two")
    try:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{GRPC}") as client:
            with pytest.raises(InferenceServerException, match="Application metadata not set"):
                client.is_server_live()
            assert client.is_server_live(headers={"application": "two"})
    finally:
        serve.delete("two")


def test_calls_are_those_of_the_service():
    from infer.serve.v2_grpc import V2Grpc

    assert set(CALLS) == {name for name in vars(V2Grpc) if name[0].isupper()} - {"ModelStreamInfer"}
