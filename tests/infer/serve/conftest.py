"""Servers that several tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("tritonclient.grpc")

from serving import Gate, encoded, running

from infer.serve.options import ServeOptions, Source


@pytest.fixture(scope="session")
def tiny_server(tiny):
    """One server for every test that only asks: model ``tiny`` in two versions."""
    with running(ServeOptions((Source(tiny, "tiny"), Source(tiny, "tiny")))) as server:
        yield server


@pytest.fixture(scope="session")
def runner(tiny):
    from infer import open_bundle

    with open_bundle(tiny) as opened:
        yield opened


@pytest.fixture
def gate(monkeypatch):
    """Stands before the device of every bundle: shut it, and batches wait."""
    from infer.backends.openvino import OpenVINOBackend

    made, submit = Gate(), OpenVINOBackend.submit

    def wait(self, batch):
        made.wait(len(batch))
        return submit(self, batch)

    monkeypatch.setattr(OpenVINOBackend, "submit", wait)
    yield made
    made.open()


@pytest.fixture
def serve(tiny):
    """``serve(**options)``: a server of its own with ``tiny``, as a context."""

    def start(*sources: Source, address=None, ready=True, **options):
        return running(ServeOptions(sources or (Source(tiny, "tiny"),), **options), address, ready=ready)

    return start


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Encoded images of several formats and sizes."""
    return [encoded(n, ("JPEG", "PNG", "WEBP")[n % 3], (50 + n, 40)) for n in range(12)]


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """uint8 ``[21, 32, 32, 3]``: more than two batches."""
    from small_models import pictures as make

    return make(21)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parents[3]
