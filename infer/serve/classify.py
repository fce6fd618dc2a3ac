"""``POST /v1/classify``: images in, names out, for people and their programs."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infer.predictions import Prediction, rank
from infer.serve.endpoint import answer_json, route
from infer.serve.exchange import Exchange
from infer.serve.json_body import decode
from infer.serve.model import Model
from infer.serve.multipart import read_parts
from infer.serve.refusal import Refusal
from infer.serve.service import Service
from infer.serve.tensors import from_base64
from infer.serve.v2_infer import failures_of

_OPTIONS = ("model", "version", "top")
_DIGITS = re.compile(r"[0-9]{1,6}")


class JsonBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of a request: one image or several, in base64."""

    image: str | None = None
    images: list[str] | None = None
    model: str | None = None
    version: str | int | None = None
    top: int | None = None


_DECODER = msgspec.json.Decoder(JsonBody)


class Asked(NamedTuple):
    """What a request wants.

    Attributes:
        files: encoded images.
        names: of the rows of the answer.
        alone: the body is one image, whose failure is that of the request.
    """

    files: list[bytes | memoryview]
    names: list[str]
    alone: bool
    model: str | None
    version: str | None
    top: int | None


class Classify:
    """The route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """``POST /v1/classify`` and ``GET /v1/models``."""
        return [
            route(self._service, "POST", "/v1/classify", "classify", self.classify),
            route(self._service, "GET", "/v1/models", "models", self.models),
        ]

    async def models(self, exchange: Exchange, request: Request) -> Response:
        """What is loaded, for people."""
        service = self._service
        loaded = [describe(model) for model in service.models.loaded()] if service.state != "loading" else []
        return answer_json({"state": service.state, "models": loaded})

    async def classify(self, exchange: Exchange, request: Request) -> Response:
        """Name what is on images. Of several, one that cannot be read has a row with the reason."""
        service = self._service
        service.require_usable()
        options = read_options(request.scope["query_string"])
        if options.get("model") or not service.models.several:
            service.models.find(options.get("model"), options.get("version"))  # before the body is read
        kind = exchange.headers.get(b"content-type", b"")
        asked = read_body(await exchange.body(), kind.decode("latin-1"), options, service.limits.max_images)
        model = service.models.find(asked.model, asked.version)
        exchange.notes |= {"model": f"{model.name}/{model.version}", "images": len(asked.files)}
        ticket = model.files(asked.files, asked.names)
        await exchange.wait(ticket)
        failures = failures_of(ticket)
        if failures and asked.alone:
            raise Refusal(400, str(failures[0]))
        good = [name for number, name in enumerate(asked.names) if number not in failures]
        outputs = ticket.outputs()
        rows = iter([] if outputs is None else rank(good, outputs, model.labels, asked.top))
        predictions = [
            Prediction(name, error=str(failures[number])) if number in failures else next(rows)
            for number, name in enumerate(asked.names)
        ]
        stages = {"decode": ticket.decode, "wait": ticket.wait, "infer": ticket.infer}
        exchange.notes["wait_ms"] = round(1e3 * ticket.wait, 2)
        timing = ", ".join(f"{name};dur={1e3 * seconds:.2f}" for name, seconds in stages.items())
        content = {
            "model": model.name,
            "version": model.version,
            "predictions": [prediction.to_json() for prediction in predictions],
        }
        return answer_json(content, headers={"server-timing": timing})


def describe(model: Model) -> dict[str, Any]:
    """A model for people: no path."""
    runner = model.runner
    return {
        "name": model.name,
        "version": model.version,
        "network": runner.manifest.model.name,
        "precision": runner.manifest.precision,
        "target": runner.target,
        "device": runner.backend.device,
        "classes": model.shape.classes,
        "best": model.shape.best,
        "side": model.shape.side,
        "trained": runner.manifest.model.trained,
    }


def read_options(query: bytes) -> dict[str, str]:
    """``model``, ``version`` and ``top`` of a query.

    Raises:
        Refusal: 400, something else, or one of them twice.
    """
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=16) if query else []
    except ValueError:
        raise Refusal(400, "query: expected model, version and top") from None
    for name, value in pairs:
        if name not in _OPTIONS:
            raise Refusal(400, f"query: expected model, version and top, found {name[:64]!r}")
        if name in found:
            raise Refusal(400, f"{name}: expected once")
        found[name] = value
    return found


def read_body(body: bytes, kind: str, options: dict[str, str], most: int) -> Asked:
    """The images of a request, by its content type: multipart, JSON, and anything else is an image.

    Raises:
        Refusal: 400; names the field.
    """
    media = kind.partition(";")[0].strip().lower()
    top: int | None = None
    model, version = options.get("model"), options.get("version")
    if "top" in options:
        if not _DIGITS.fullmatch(options["top"]):
            raise Refusal(400, f"top: expected a number from 1, found {options['top'][:32]!r}")
        top = int(options["top"])
    names: list[str]
    files: list[bytes | memoryview]
    if media == "multipart/form-data":
        parts = read_parts(body, kind, most)
        files, names = [part.data for part in parts], [part.name for part in parts]
    elif media == "application/json":
        asked = decode(_DECODER, body)
        model, version = asked.model or model, version if asked.version is None else str(asked.version)
        top = top if asked.top is None else asked.top
        files, names = _texts(asked, most)
    else:
        if not body:
            raise Refusal(400, "body: empty, expected an image")
        files, names = [body], ["image"]
    if top is not None and top < 1:
        raise Refusal(400, f"top: expected a number from 1, found {top}")
    return Asked(files, names, media not in ("multipart/form-data", "application/json"), model, version, top)


def _texts(asked: JsonBody, most: int) -> tuple[list[bytes | memoryview], list[str]]:
    if (asked.image is None) == (asked.images is None):
        raise Refusal(400, "image, images: expected one of both")
    if asked.image is not None:
        return [from_base64("image", asked.image)], ["image"]
    texts = asked.images or []
    if not 1 <= len(texts) <= most:
        raise Refusal(400, f"images: expected 1 to {most}, found {len(texts)}")
    names = [f"images[{number}]" for number in range(len(texts))]
    return [from_base64(name, text) for name, text in zip(names, texts, strict=True)], names
