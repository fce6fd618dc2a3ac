"""Models by name and version, loaded and unloaded while requests run."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from infer.errors import BundleError, InputError, UntrainedError
from infer.serve.limits import Limits
from infer.serve.models import name_sources, repository_sources
from infer.serve.options import ServeOptions, Source, parse_source


@pytest.fixture
def repository(tiny, tmp_path):
    """``alone`` is a bundle, ``many`` has versions 1 and 10; the rest is none."""
    root = tmp_path / "secret-repository"
    shutil.copytree(tiny, root / "alone")
    for version in ("1", "10"):
        shutil.copytree(tiny, root / "many" / version)
    (root / "many" / "x").mkdir()
    (root / "empty").mkdir()
    shutil.copytree(tiny, root / "damaged")
    (root / "damaged" / "labels.txt").write_text("no such labels\n")
    (root / "a name with spaces").mkdir()
    return root


def ask(server, model, pixels, version=""):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        made = triton.InferInput("images", pixels.shape, "UINT8").set_data_from_numpy(pixels)
        return client.infer(model, [made], model_version=version)


def test_load_and_unload(serve, repository, tiny, pixels, runner):
    with serve(Source(tiny, "tiny"), repository=repository) as server, server.client() as http:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        index = {(m["name"], m["version"]): m["state"] for m in client.get_model_repository_index()}
        assert index == {
            ("tiny", "1"): "READY", ("alone", "1"): "UNAVAILABLE", ("damaged", "1"): "UNAVAILABLE",
            ("many", "1"): "UNAVAILABLE", ("many", "10"): "UNAVAILABLE",
        }  # fmt: skip
        assert not client.is_model_ready("many")
        client.load_model("many")
        assert client.is_model_ready("many", "10") and client.get_model_metadata("many")["versions"] == ["1", "10"]
        assert ask(server, "many", pixels[:1]).get_response()["model_version"] == "10"
        answer = ask(server, "many", pixels, "1")
        assert np.array_equal(answer.as_numpy("classes"), runner.infer(pixels).classes)
        assert http.post("/v1/classify", content=b"x").json()["error"].startswith("model: expected the name of one of")
        client.unload_model("many")
        with pytest.raises(
            InferenceServerException, match=r"\[404\] model: there is no model 'many' here; loaded: tiny"
        ):
            ask(server, "many", pixels[:1])
        with pytest.raises(InferenceServerException, match="is not loaded"):
            client.unload_model("many")
        # what the server was started with can be unloaded, and comes back
        client.unload_model("tiny")
        assert client.is_server_ready() and not client.is_model_ready("tiny")
        client.load_model("tiny")
        assert client.is_model_ready("tiny")
        with triton_grpc.InferenceServerClient(server.grpc) as grpc_client:
            grpc_client.load_model("alone")
            assert grpc_client.is_model_ready("alone")
            grpc_client.unload_model("alone")
            for name in ("none", "../secret-repository/alone", "many/1", ".", ""):
                with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                    grpc_client.load_model(name)


@pytest.mark.parametrize(
    "name", ["none", "empty", "..", "../alone", "%2e%2e", "a name with spaces", "x.encoded", "a" * 300]
)
def test_what_the_repository_does_not_have(serve, repository, tiny, name):
    with serve(Source(tiny, "tiny"), repository=repository) as server, server.client() as http:
        answer = http.post(f"/v2/repository/models/{name}/load")
        assert answer.status_code == 404 and "secret" not in answer.text


def test_a_damaged_bundle_is_named_without_its_path(serve, repository, tiny, pixels, caplog):
    with serve(Source(tiny, "tiny"), repository=repository) as server, server.client() as http:
        answer = http.post("/v2/repository/models/damaged/load")
        assert answer.status_code == 400 and "secret" not in answer.text
        assert answer.json()["error"] == "model: 'damaged' cannot be loaded (BundleError); the server's log says why"
        assert str(repository / "damaged") in caplog.text
        assert ask(server, "tiny", pixels[:1]).as_numpy("logits").shape == (1, 10)


def test_loading_again_while_requests_run(serve, repository, tiny, pixels, runner):
    """Not one request fails, and the old engine is closed."""
    expected = runner.infer(pixels[:2]).classes
    failures, done, stop = [], [0], threading.Event()

    def load_it(server):
        while not stop.is_set():
            try:
                found = ask(server, "tiny", pixels[:2]).as_numpy("classes")
                assert np.array_equal(found, expected)
                done[0] += 1
            except Exception as error:
                failures.append(error)

    with serve(Source(tiny, "tiny"), repository=repository) as server, server.client() as http:
        olds = [server.model("tiny")]
        threads = [threading.Thread(target=load_it, args=(server,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            assert http.post("/v2/repository/models/tiny/load").status_code == 200
            olds.append(server.model("tiny"))
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures and done[0] > 10
        deadline = time.monotonic() + 5
        while server.service.models._retiring and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len({id(model) for model in olds}) == 4
        assert [model.runner.backend._closed for model in olds] == [True, True, True, False]


def test_bounds_of_loaded_models(serve, repository, tiny):
    with (
        serve(Source(tiny, "tiny"), repository=repository, limits=Limits(max_models=2)) as server,
        server.client() as http,
    ):
        assert http.post("/v2/repository/models/alone/load").status_code == 200
        answer = http.post("/v2/repository/models/many/load")
        assert answer.status_code == 507 and "2 versions are loaded, the limit is 2" in answer.json()["error"]
        assert http.post("/v2/repository/models/alone/unload").status_code == 200
        answer = http.post("/v2/repository/models/many/load")  # the second version is one too many: none stays
        assert answer.status_code == 507
        assert [m["name"] for m in http.get("/v1/models").json()["models"]] == ["tiny"]
    size = sum(path.stat().st_size for path in tiny.glob("openvino.*") if path.is_file())
    limits = Limits(max_model_memory=200 << 20)
    with serve(Source(tiny, "tiny"), repository=repository, limits=limits) as server, server.client() as http:
        assert server.model("tiny").memory >= size
        server.model("tiny").memory = 200 << 20
        answer = http.post("/v2/repository/models/alone/load")
        assert (
            answer.status_code == 507
            and "'alone' does not fit, loaded models may take 209715200" in answer.json()["error"]
        )


def test_what_cannot_be_served_ends_the_start(serve, tiny, untrained, tmp_path):
    for source, error, message in (
        (Source(tmp_path, "x"), BundleError, "is not a bundle"),
        (Source(untrained, "x"), UntrainedError, "its predictions mean nothing"),
    ):
        with serve(source, ready=False) as server:
            thread_error = wait_for_error(server)
            assert isinstance(thread_error, error) and message in str(thread_error)
            assert server.service.state == "failed" and not server.service.ready


def wait_for_error(server):
    deadline = time.monotonic() + 20
    while server.server.error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return server.server.error


def test_too_small_for_what_it_is_started_with(serve, tiny):
    with serve(Source(tiny, "a"), Source(tiny, "b"), limits=Limits(max_models=1), ready=False) as server:
        assert "1 versions are loaded, the limit is 1" in str(wait_for_error(server))
        assert isinstance(server.server.error, InputError)


def test_names_of_sources(tiny):
    named = name_sources((Source(tiny), Source(tiny), Source(tiny, "x", "4"), Source(tiny, "x")))
    assert [(s.name, s.version) for s in named] == [("tiny-fp32", "1"), ("tiny-fp32", "2"), ("x", "4"), ("x", "5")]
    with pytest.raises(InputError, match="model x: version 4 is there twice"):
        name_sources((Source(tiny, "x", "4"), Source(tiny, "x", "4")))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("engines/x", Source(Path("engines/x"))),
        ("./a=b", Source(Path("./a=b"))),
        ("name=engines/x", Source(Path("engines/x"), "name")),
        ("na-me:3=a=b", Source(Path("a=b"), "na-me", "3")),
    ],
)
def test_a_source_as_text(text, source):
    assert parse_source(text) == source


@pytest.mark.parametrize("text", ["a b=x", "=x", "a:0=x", "a:b=x", "a:=x", "a=", "a.encoded=x", ".a=x"])
def test_a_source_that_cannot_be(text):
    with pytest.raises(InputError):
        parse_source(text)


def test_folders_of_a_repository(repository):
    found = {path.name: [s.version for s in repository_sources(path)] for path in repository.iterdir()}
    assert found == {"alone": ["1"], "many": ["1", "10"], "empty": [], "damaged": ["1"], "a name with spaces": []}
    assert repository_sources(repository / "none") == []


def test_nothing_to_serve():
    with pytest.raises(InputError, match="expected a bundle to serve, or --repository"):
        ServeOptions(())


def test_a_server_without_models_is_ready_for_them(serve, repository):
    from serving import running

    with running(ServeOptions((), repository=repository)) as server, server.client() as http:
        assert http.get("/v2/health/ready").status_code == 200
        assert http.post("/v1/classify", content=b"x").json() == {
            "error": "model: there is no model '' here; loaded: none"
        }
        assert http.post("/v2/repository/models/alone/load").status_code == 200
        assert http.get("/v1/models").json()["models"][0]["name"] == "alone"
