"""Known answers of a running server: ours, which speaks Triton's protocol; asked over HTTP and gRPC."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("uvicorn")

from serving import running

from infer.backends import openvino
from infer.errors import BundleError, InputError, KnownAnswersError, TargetUnavailableError
from infer.export.ask import ask, require_passed
from infer.export.cli import app
from infer.serve.options import ServeOptions, Source


@pytest.fixture(scope="module")
def server(tiny):
    with running(ServeOptions((Source(tiny, "tiny-fp32"),))) as started:
        yield started


@pytest.fixture(params=["http", "grpc"])
def url(request, server):
    return server.url if request.param == "http" else f"grpc://{server.grpc}"


def test_a_server_that_computes_the_bundle_passes(tiny, url):
    found = ask(tiny, url, "tiny-fp32", batches=(1, 3, 8))
    assert [one.batch for one in found] == [1, 3, 8] and all(one.passed for one in found)
    require_passed(found, url, "tiny-fp32")
    assert ask(tiny, url, "tiny-fp32", "1")[0].passed


def test_a_server_that_computes_something_else_is_named(tiny, url, monkeypatch):
    original = openvino.Pool._run

    def shifted(self, request, batch, count):
        outputs = original(self, request, batch, count)
        return outputs._replace(logits=np.roll(outputs.logits, 1, axis=1))

    monkeypatch.setattr(openvino.Pool, "_run", shifted)
    found = ask(tiny, url, "tiny-fp32")
    assert not any(one.passed for one in found) and "WRONG" in str(found[0])
    with pytest.raises(
        KnownAnswersError, match=r"model tiny-fp32, batch 1: -?\d.* it serves another bundle or version"
    ):
        require_passed(found, url, "tiny-fp32")


def test_servers_that_give_no_answer(tiny, own, url):
    with pytest.raises(TargetUnavailableError, match="nothing_of_that_name"):
        ask(tiny, url, "nothing_of_that_name")
    with pytest.raises(TargetUnavailableError, match="9"):
        ask(tiny, url, "tiny-fp32", "9")
    scheme = url.partition(":")[0]
    with pytest.raises(TargetUnavailableError):
        ask(tiny, f"{scheme}://127.0.0.1:9", "tiny-fp32")
    with pytest.raises(InputError, match="expected http://HOST:PORT or grpc://HOST:PORT, found 'localhost'"):
        ask(tiny, "localhost", "tiny-fp32")


def test_a_model_of_other_pictures(tiny, shipped, url):
    with pytest.raises(TargetUnavailableError, match=r"expected \[N, 32, 32, 3\], found"):
        ask(shipped("fp32"), url, "tiny-fp32")


def test_a_bundle_without_answers(own, tiny, url):
    from triton_configs import change

    with pytest.raises(BundleError, match="has no known answers"):
        ask(change(own(tiny), known_answers=None), url, "tiny-fp32")


def test_the_command(tiny, url, monkeypatch):
    run = CliRunner().invoke
    done = run(app, ["ask", str(tiny), url, "--batch", "2"])
    assert done.exit_code == 0 and done.stdout.startswith("batch 2: passed, ")
    done = run(app, ["ask", str(tiny), url, "--name", "tiny-fp32", "--version", "1", "--json"])
    assert [one["passed"] for one in json.loads(done.stdout)] == [True, True]
    original = openvino.Pool._run

    def nothing(self, request, batch, count):
        return original(self, request, batch, count)._replace(logits=np.full((len(batch), 10), np.nan, np.float32))

    monkeypatch.setattr(openvino.Pool, "_run", nothing)
    done = run(app, ["ask", str(tiny), url, "--json"])
    assert done.exit_code == KnownAnswersError.exit_code
    assert [one["sqnr_db"] for one in json.loads(done.stdout)] == [None, None]
