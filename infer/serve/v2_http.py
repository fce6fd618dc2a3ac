"""The v2 protocol over HTTP, with Triton's binary extension."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infer.serve.endpoint import answer_json, route
from infer.serve.exchange import Exchange
from infer.serve.json_body import decode
from infer.serve.model import Model
from infer.serve.refusal import Refusal
from infer.serve.service import Service
from infer.serve.tensors import (
    DATATYPES,
    Column,
    Images,
    Wanted,
    check_input,
    flag,
    from_json,
    from_raw,
    refuse_shared_memory,
    wanted,
)
from infer.serve.v2_infer import run
from infer.serve.v2_model import model_config, model_metadata, model_statistics, server_metadata

HEADER_LENGTH = "inference-header-content-length"
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class InputTensor(msgspec.Struct):
    """An element of ``inputs``."""

    name: str
    datatype: str
    shape: list[Size]
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class OutputTensor(msgspec.Struct):
    """An element of ``outputs``."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """The JSON of an inference request."""

    inputs: list[InputTensor]
    id: str = ""
    outputs: list[OutputTensor] = []
    parameters: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(InferRequest)


class V2Http:
    """The routes of the protocol."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Inference first: routes are looked for in order."""
        made: list[Route] = []

        def add(method: str, path: str, name: str, handle: Any, *, public: bool = False) -> None:
            made.append(route(self._service, method, path, name, handle, public=public))

        for at in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            add("POST", f"{at}/infer", "infer", self.infer)
        add("GET", "/v2/health/live", "live", self.live, public=True)
        add("GET", "/v2/health/ready", "ready", self.ready, public=True)
        add("GET", "/v2", "server", self.server)
        add("GET", "/v2/models/stats", "stats", self.all_statistics)
        for at in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            add("GET", f"{at}/ready", "model_ready", self.model_ready)
            add("GET", f"{at}/config", "config", self.config)
            add("GET", f"{at}/stats", "stats", self.statistics)
            add("GET", at, "metadata", self.metadata)
        add("POST", "/v2/repository/index", "index", self.index)
        add("POST", "/v2/repository/models/{model}/load", "load", self.load)
        add("POST", "/v2/repository/models/{model}/unload", "unload", self.unload)
        return made

    async def live(self, exchange: Exchange, request: Request) -> Response:
        """200 as long as the server can answer at all; 503 once it is about to end by a failure."""
        return answer_json({"live": self._service.failure is None}, 200 if self._service.failure is None else 503)

    async def ready(self, exchange: Exchange, request: Request) -> Response:
        """200 while it is ready, else 503."""
        return answer_json(
            {"ready": self._service.ready, "state": self._service.state}, 200 if self._service.ready else 503
        )

    async def server(self, exchange: Exchange, request: Request) -> Response:
        """Metadata of the server."""
        return answer_json(server_metadata())

    async def model_ready(self, exchange: Exchange, request: Request) -> Response:
        """200 where this version is loaded and the server is ready."""
        model = self._find(request)
        return answer_json({"name": model.name, "ready": self._service.ready}, 200 if self._service.ready else 503)

    async def metadata(self, exchange: Exchange, request: Request) -> Response:
        """Metadata of a model."""
        name = request.path_params["model"]
        return answer_json(model_metadata(self._find(request), name, self._service.models.versions(name)))

    async def config(self, exchange: Exchange, request: Request) -> Response:
        """Triton's configuration of a model."""
        service = self._service
        name = request.path_params["model"]
        return answer_json(model_config(self._find(request), name, service.limits, service.options.max_delay))

    async def statistics(self, exchange: Exchange, request: Request) -> Response:
        """Statistics of a version."""
        return answer_json({"model_stats": [model_statistics(self._find(request))]})

    async def all_statistics(self, exchange: Exchange, request: Request) -> Response:
        """Statistics of every model."""
        return answer_json({"model_stats": [model_statistics(model) for model in self._service.models.loaded()]})

    async def index(self, exchange: Exchange, request: Request) -> Response:
        """What is loaded and what could be."""
        await exchange.body()
        return answer_json([row._asdict() for row in await self._service.models.index()])

    async def load(self, exchange: Exchange, request: Request) -> Response:
        """Load a model, or load it again."""
        await exchange.body()
        await self._service.models.load(request.path_params["model"])
        return answer_json({})

    async def unload(self, exchange: Exchange, request: Request) -> Response:
        """Unload a model."""
        await exchange.body()
        await self._service.models.unload(request.path_params["model"])
        return answer_json({})

    def _find(self, request: Request) -> Model:
        return self._service.models.find(request.path_params["model"], request.path_params.get("version"))

    async def infer(self, exchange: Exchange, request: Request) -> Response:
        """Run images."""
        self._service.require_usable()
        self._find(request)  # before the body is read
        body = await exchange.body()
        model = self._find(request)  # as it is now: it may have been loaded again meanwhile
        header, data = split_body(body, exchange.headers.get(HEADER_LENGTH.encode()))
        asked = decode_request(header)
        exchange.notes["model"] = f"{model.name}/{model.version}"
        images, outputs = read_request(asked, data, model, self._service)
        columns, ticket = await run(model, images, outputs, exchange.wait, "inputs[0].data")
        exchange.notes |= {"images": ticket.rows, "wait_ms": round(1e3 * ticket.wait, 2)}
        return answer(asked.id, request.path_params["model"], model.version, columns)


def split_body(body: bytes, header_length: bytes | None) -> tuple[memoryview, memoryview]:
    """The JSON of a request and the binary data behind it.

    Raises:
        Refusal: 400.
    """
    view = memoryview(body)
    if header_length is None:
        return view, view[len(view) :]
    if not header_length.isdigit() or len(header_length) > 12 or int(header_length) > len(view):
        raise Refusal(400, f"{HEADER_LENGTH}: expected at most {len(view)}, the length of the body")
    length = int(header_length)
    return view[:length], view[length:]


def decode_request(data: memoryview) -> InferRequest:
    """The JSON of a request.

    Raises:
        Refusal: 400; names the field.
    """
    asked = decode(_DECODER, data)
    if len(asked.inputs) != 1:
        raise Refusal(400, f"inputs: expected 1, found {len(asked.inputs)}")
    return asked


def read_request(asked: InferRequest, data: memoryview, model: Model, service: Service) -> tuple[Images, list[Wanted]]:
    """The images of a request and what it wants to know.

    Raises:
        Refusal: 400 or 413; names the field.
    """
    tensor = asked.inputs[0]
    field = "inputs[0]"
    refuse_shared_memory(field, tensor.parameters)
    rows = check_input(field, tensor.name, tensor.datatype, tensor.shape, model.shape, service.limits)
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if not bytes(tensor.data):
            raise Refusal(400, f"{field}.data: expected numbers or texts, or parameters.binary_data_size; found none")
        if len(data):
            raise Refusal(400, f"body: {len(data)} bytes behind the JSON that no input has as its binary_data_size")
        images = from_json(f"{field}.data", tensor.datatype, rows, bytes(tensor.data), model.shape)
    else:
        name = f"{field}.parameters.binary_data_size"
        if not isinstance(size, int) or isinstance(size, bool) or size != len(data):
            raise Refusal(400, f"{name}: expected {len(data)}, the bytes behind the JSON, found {size!r:.32}")
        images = from_raw(f"{field}.data", tensor.datatype, rows, data, model.shape)
    binary = flag("parameters.binary_data_output", asked.parameters.get("binary_data_output", False))
    if not asked.outputs:
        return images, [Wanted(name, binary) for name in DATATYPES]
    outputs = [
        wanted(f"outputs[{number}]", one.name, one.parameters, binary, model.shape)
        for number, one in enumerate(asked.outputs)
    ]
    if len({one.name for one in outputs}) != len(outputs):
        raise Refusal(400, "outputs: expected each name once")
    return images, outputs


def answer(request_id: str, name: str, version: str, columns: list[Column]) -> Response:
    """The answer: JSON, and behind it the outputs that are wanted as binary data."""
    binary: list[bytes] = []
    outputs: list[dict[str, Any]] = []
    for column in columns:
        one: dict[str, Any] = {"name": column.wanted.name, "datatype": column.datatype, "shape": column.shape}
        if column.wanted.binary:
            binary.append(column.raw())
            one["parameters"] = {"binary_data_size": len(binary[-1])}
        elif column.array is not None:
            one["data"] = column.array.ravel().tolist()
        else:
            one["data"] = [text.decode() for text in column.texts]
        outputs.append(one)
    content: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
    if request_id:
        content["id"] = request_id
    header = msgspec.json.encode(content)
    if not binary:
        return Response(header, media_type="application/json")
    return Response(
        b"".join([header, *binary]),
        headers={HEADER_LENGTH: str(len(header))},
        media_type="application/octet-stream",
    )
