"""The server on a GPU target: pinned memory, many requests at once, and a context that breaks."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_emulator.emulator import ILLEGAL_ADDRESS, REFUSED, Emulator

from infer.backends.base import GpuOptions
from infer.errors import DeviceError
from infer.runner import open_bundle

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")


def asked(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    one = {"name": "images", "datatype": "UINT8", "shape": pixels.shape, "data": pixels.ravel().tolist()}
    return {"inputs": [one]}


async def with_server(bundle: Path, use: Any) -> Any:
    """``await use(client, service)`` on a served bundle, without sockets."""
    from infer.serve.app import application
    from infer.serve.options import ServeOptions, Source

    options = ServeOptions((Source(bundle, "m"),), target="tensorrt", gpu=GpuOptions(slots=2, max_batch=8))
    app = application(options)
    async with app.router.lifespan_context(app):
        await app.state.service.loaded()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await use(client, app.state.service)


def test_requests_share_batches_in_pinned_memory(
    bundle: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bundle(bundle, target="onnxruntime") as reference:
        pixels = np.random.default_rng(0).integers(0, 256, (40, *reference.manifest.inputs[0].shape[1:]), np.uint8)
        expected = reference.infer(pixels).logits
    from infer.backends.tensorrt import TensorRTBackend

    lent, give = [], TensorRTBackend.try_acquire

    def note(self: Any, rows: int) -> Any:
        lent.append(give(self, rows))
        return lent[-1]

    monkeypatch.setattr(TensorRTBackend, "try_acquire", note)
    emulator.delays(20, 200, 20)
    cuts = [0, 1, 3, 4, 9, 21, 22, 40]

    async def use(client: Any, service: Any) -> Any:
        parts = [pixels[a:b] for a, b in pairwise(cuts)]
        answers = await asyncio.gather(*(client.post("/v2/models/m/infer", json=asked(part)) for part in parts))
        return answers, service.models.find("m").metrics.totals

    answers, totals = asyncio.run(with_server(bundle, use))
    for answer, (a, b) in zip(answers, pairwise(cuts), strict=True):
        found = np.array(answer.json()["outputs"][0]["data"]).reshape(b - a, -1)
        np.testing.assert_allclose(found, expected[a:b], atol=1e-4)
    assert any(buffer is not None for buffer in lent)
    assert totals.images == 40 and 8 in totals.sizes and sum(one.count for one in totals.sizes.values()) < 12


def test_a_batch_that_fails_is_503_and_the_server_goes_on(bundle: Path, emulator: Emulator) -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)

    async def use(client: Any, service: Any) -> Any:
        emulator.fail("cuEventRecord", code=REFUSED)
        first = await client.post("/v2/models/m/infer", json=asked(pixels))
        return first, await client.post("/v2/models/m/infer", json=asked(pixels)), service.ready

    first, second, ready = asyncio.run(with_server(bundle, use))
    assert (first.status_code, second.status_code, ready) == (503, 200, True)
    assert first.json() == {"error": "the device could not take this batch; try again"}


def test_a_broken_context_makes_it_not_ready(bundle: Path, emulator: Emulator) -> None:
    """Under ``iresnet serve`` the process ends then; see tests/infer/serve/test_run.py."""
    pixels = np.zeros((2, 32, 32, 3), np.uint8)

    async def use(client: Any, service: Any) -> Any:
        emulator.fail("op:compute", code=ILLEGAL_ADDRESS)
        first = await client.post("/v2/models/m/infer", json=asked(pixels))
        for _ in range(200):
            if service.failure is not None:
                break
            await asyncio.sleep(0.01)
        ready = await client.get("/v2/health/ready"), await client.get("/v2/health/live")
        later = await client.post("/v2/models/m/infer", json=asked(pixels))
        service.models.find("m").close()  # the process would end; the emulator wants its memory back
        return first, ready, later, isinstance(service.failure, DeviceError) and service.failure.sticky

    first, ready, later, sticky = asyncio.run(with_server(bundle, use))
    assert first.status_code == 500 and "illegal" not in first.text
    assert [one.status_code for one in ready] == [503, 503] and later.status_code == 503
    assert sticky
