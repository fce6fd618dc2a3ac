"""The application as a whole: without uvicorn, its metrics, its log, its description."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import threading

import httpx
import pytest
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from infer.serve.access_log import AccessLog
from infer.serve.app import application
from infer.serve.options import ServeOptions, Source


def test_any_asgi_server_will_do(tiny, pictures, runner):
    """httpx as the server: lifespan, one request, the end."""
    app = application(ServeOptions((Source(tiny, "tiny"),)))

    async def main():
        async with app.router.lifespan_context(app):
            assert not app.state.service.ready
            await app.state.service.loaded()
            assert app.state.service.ready
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                answer = await client.post("/v1/classify", content=pictures[0])
                return answer.json(), (await client.get("/v2/health/ready")).status_code

    content, status = asyncio.run(main())
    assert status == 200 and not app.state.service.ready
    assert content["predictions"][0]["top"][0]["label"] == runner.classify(pictures[:1])[0].top[0].label


def test_not_ready_while_models_load(serve, pictures, monkeypatch):
    from infer.serve import opening

    hold, warm = threading.Event(), opening.warm_up

    def warm_up(runner):
        hold.wait(20)
        warm(runner)

    monkeypatch.setattr(opening, "warm_up", warm_up)
    with serve(ready=False) as server, server.client() as http:
        assert http.get("/v2/health/live").status_code == 200
        assert http.get("/v2/health/ready").json() == {"ready": False, "state": "loading"}
        answer = http.post("/v1/classify", content=pictures[0])
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        hold.set()
        while http.get("/v2/health/ready").status_code != 200:
            pass
        assert http.post("/v1/classify", content=pictures[0]).status_code == 200


def test_ready_means_that_every_batch_size_is_compiled(serve):
    with serve() as server:
        backend = server.model("tiny").runner.backend
        assert server.service.ready and set(backend._pools) == set(backend.compiled_batches) == {1, 2, 4, 8}


def families(text):
    return {
        (s.name, *sorted(s.labels.values())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }


def test_metrics(serve, pictures, pixels):
    with serve() as server, server.client() as http:
        http.post("/v1/classify", files=[("f", p) for p in pictures[:5]] + [("f", b"bad")])
        http.post("/v1/classify", content=b"bad")
        http.get("/nothing/of/that/name")
        found = families(http.get("/metrics").text)
    assert found["iresnet_requests_total", "200", "classify", "http"] == 1
    assert found["iresnet_requests_total", "400", "classify", "http"] == 1
    assert found["iresnet_requests_total", "404", "http", "other"] == 1  # names that clients choose are no labels
    assert found["iresnet_batch_images_sum", "1", "tiny"] == 5
    assert found["iresnet_images_total", "1", "good", "tiny"] == 5
    assert found["iresnet_images_total", "1", "tiny", "undecodable"] == 2
    assert found["iresnet_stage_seconds_count", "1", "decode", "tiny"] == 5
    assert (
        found["iresnet_stage_seconds_count", "1", "infer", "tiny"] == found["iresnet_batch_images_count", "1", "tiny"]
    )
    assert found["iresnet_queue_images", "1", "tiny"] == 0 and found["iresnet_ready",] == 1
    assert any(key[0] == "iresnet_model_info" and "openvino" in key for key in found)


def test_each_request_has_a_line_in_the_log(serve, pictures, monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
    with serve(access_log=True) as server, server.client() as http:
        http.post("/v1/classify", content=pictures[0], headers={"x-request-id": "mine"})
        http.post("/v1/classify?top=x%0ay", content=b"x")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    good, bad = lines
    assert (good["id"], good["status"], good["method"], good["path"]) == ("mine", 200, "POST", "/v1/classify")
    assert good["model"] == "tiny/1" and good["images"] == 1 and good["bytes"] == len(pictures[0]) and good["ms"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", good["time"])
    assert (bad["status"], bad["error"]) == (400, "top: expected a number from 1, found 'x\\ny'")


def test_a_log_that_nobody_reads_stops_nothing():
    class Stuck(io.RawIOBase):
        def __init__(self):
            self.go, self.written = threading.Event(), 0

        def write(self, data):
            self.go.wait(10)
            self.written += bytes(data).count(b"\n")
            return len(data)

    stream, dropped = Stuck(), []
    log = AccessLog(stream, lambda: dropped.append(1))
    for number in range(12_000):
        log.write({"id": number})
    assert dropped
    stream.go.set()
    log.close()
    assert stream.written == 12_000 - len(dropped)


def test_the_description_is_openapi_and_names_every_route(tiny_server):
    with tiny_server.client() as http:
        document = http.get("/openapi.json").json()
    validate(document)
    app = tiny_server.server.config.loaded_app
    while not hasattr(app, "routes"):
        app = app.app
    routes = {(route.path, method.lower()) for route in app.routes for method in route.methods - {"HEAD"}}
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    versions = {
        (p.replace("{model}", "{model}/versions/{version}"), m) for p, m in described if p.startswith("/v2/models/")
    }
    assert described <= routes
    assert routes - described - versions == {("/", "get"), ("/openapi.json", "get"), ("/v2/models/stats", "get")}
    assert "33554432 bytes" in document["paths"]["/v1/classify"]["post"]["responses"]["413"]["description"]


def test_the_extra_brings_no_ray_and_no_framework():
    code = "import sys, infer.serve.run; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=None)
    assert not set(done.stdout.split()) & {"ray", "torch", "onnx", "onnxruntime", "openvino", "fastapi", "pydantic"}


def test_a_missing_package_names_the_extra(tiny):
    code = (
        "import sys; sys.modules['starlette'] = None\n"
        f"from infer.cli import app; app(['serve', {str(tiny)!r}], prog_name='infer')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "pip install 'iresnet-trt[serve]'" in done.stderr


@pytest.mark.parametrize("path", ["/v1/classify/", "/v2/", "/v2/models/tiny/", "/%00", "/v2/models/%2F..%2F..%2Fetc"])
def test_odd_paths(tiny_server, path):
    with tiny_server.client() as http:
        answer = http.get(path)
        assert answer.status_code in (404, 405) and list(answer.json()) == ["error"]
