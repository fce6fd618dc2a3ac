"""The v2 protocol over gRPC: the servicer that NVIDIA's ``tritonclient[grpc]`` carries, in the event loop of HTTP."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from infer.serve.exchange import is_request_id
from infer.serve.model import Model
from infer.serve.refusal import Refusal
from infer.serve.service import Service
from infer.serve.tensors import DATATYPES, Column, Images, Wanted, check_input, from_raw, refuse_shared_memory, wanted
from infer.serve.ticket import Ticket
from infer.serve.v2_infer import run
from infer.serve.v2_model import model_config, model_metadata, model_statistics, server_metadata

_LOG = logging.getLogger(__name__)
_PUBLIC = ("ServerLive", "ServerReady")


class V2Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The calls of the protocol. Those of Triton's extensions that are not here are UNIMPLEMENTED."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """As long as the server has not failed."""
        return await self._call(context, "ServerLive", self._live)

    async def _live(self) -> Any:
        return pb.ServerLiveResponse(live=self._service.failure is None)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether the server is ready."""
        return await self._call(context, "ServerReady", self._ready)

    async def _ready(self) -> Any:
        return pb.ServerReadyResponse(ready=self._service.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether a model is loaded and the server ready."""

        async def ready() -> Any:
            self._find(request)
            return pb.ModelReadyResponse(ready=self._service.ready)

        return await self._call(context, "ModelReady", ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name, version, extensions."""

        async def metadata() -> Any:
            return pb.ServerMetadataResponse(**server_metadata())

        return await self._call(context, "ServerMetadata", metadata)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Inputs and outputs of a model."""

        async def metadata() -> Any:
            found = model_metadata(self._find(request), request.name, self._service.models.versions(request.name))
            return ParseDict(found, pb.ModelMetadataResponse())

        return await self._call(context, "ModelMetadata", metadata)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Triton's configuration of a model."""

        async def config() -> Any:
            service = self._service
            found = model_config(self._find(request), request.name, service.limits, service.options.max_delay)
            return ParseDict({"config": found}, pb.ModelConfigResponse())

        return await self._call(context, "ModelConfig", config)

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        """Triton's statistics of a model, or of all."""

        async def statistics() -> Any:
            models = [self._find(request)] if request.name else self._service.models.loaded()
            found = {"model_stats": [model_statistics(model) for model in models]}
            return ParseDict(found, pb.ModelStatisticsResponse())

        return await self._call(context, "ModelStatistics", statistics)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """What is loaded and could be."""

        async def index() -> Any:
            rows = [row._asdict() for row in await self._service.models.index()]
            if request.ready:
                rows = [row for row in rows if row["state"] == "READY"]
            return ParseDict({"models": rows}, pb.RepositoryIndexResponse())

        return await self._call(context, "RepositoryIndex", index)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Load a model, or load it again."""

        async def load() -> Any:
            await self._service.models.load(request.model_name)
            return pb.RepositoryModelLoadResponse()

        return await self._call(context, "RepositoryModelLoad", load)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Unload a model."""

        async def unload() -> Any:
            await self._service.models.unload(request.model_name)
            return pb.RepositoryModelUnloadResponse()

        return await self._call(context, "RepositoryModelUnload", unload)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Run images."""

        async def infer() -> Any:
            return await self._infer(request)

        return await self._call(context, "ModelInfer", infer)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Run images request by request; what is refused is a message of the stream, which goes on."""
        await self._call(context, "ModelStreamInfer", self._ready)
        async for request in requests:
            try:
                yield pb.ModelStreamInferResponse(infer_response=await self._infer(request))
            except Refusal as refusal:
                empty = pb.ModelInferResponse(id=request.id)
                yield pb.ModelStreamInferResponse(error_message=refusal.message, infer_response=empty)

    async def _call(self, context: Any, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """Look at the token, make the answer, count it; a refusal ends the call with its status."""
        started = time.perf_counter()
        code = "OK"
        error = ""
        try:
            if name not in _PUBLIC:
                metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
                self._service.tokens.check(metadata.get("authorization"), metadata.get("x-api-key"))
            return await make()
        except Refusal as refusal:
            code, error = refusal.grpc_name, refusal.message
        except asyncio.CancelledError:
            code, error = "CANCELLED", "the client left before the answer"
            raise
        except Exception:
            _LOG.exception("%s failed", name)
            code, error = "INTERNAL", "internal error; the server's log says more"
        finally:
            self._note(context, name, code, error, time.perf_counter() - started)
        await context.abort(getattr(grpc.StatusCode, code), error)

    def _note(self, context: Any, name: str, code: str, error: str, seconds: float) -> None:
        self._service.metrics.request("grpc", name, code, seconds)
        if self._service.log.on:
            line = {"id": _id(context), "protocol": "grpc", "client": context.peer(), "method": name, "status": code}
            line["ms"] = round(1e3 * seconds, 2)
            self._service.log.write(line | ({"error": error} if error else {}))

    def _find(self, request: Any) -> Model:
        self._service.require_usable()
        return self._service.models.find(request.name, request.version)

    async def _infer(self, request: Any) -> Any:
        service = self._service
        service.require_usable()
        if not request.model_name:
            raise Refusal(400, "model_name: expected the name of a model")
        model = service.models.find(request.model_name, request.model_version)
        size = request.ByteSize()
        service.bodies.take(size, model.retry_after)
        try:
            images, outputs = read_request(request, model, service)
            columns, _ = await run(model, images, outputs, self._wait, "inputs[0].contents")
            return answer(request, model, columns)
        finally:
            service.bodies.give_back(size)

    async def _wait(self, ticket: Ticket) -> None:
        """Until it is done, its time is over, or the call is cancelled, which cancels this."""
        timer = ticket.loop.call_later(self._service.limits.timeout, ticket.give_up)
        try:
            await ticket.settled
        finally:
            timer.cancel()
            ticket.give_up()
        if ticket.abandoned:
            raise Refusal(504, f"no answer within {self._service.limits.timeout:g} seconds")


def _id(context: Any) -> str:
    """Of the client, ``x-request-id`` in the metadata; else one of ours."""
    given = next((value for key, value in context.invocation_metadata() or () if key == "x-request-id"), "")
    return given if isinstance(given, str) and is_request_id(given) else secrets.token_hex(8)


def read_request(request: Any, model: Model, service: Service) -> tuple[Images, list[Wanted]]:
    """The images of a ``ModelInferRequest`` and what it wants to know.

    Raises:
        Refusal: 400; names the field.
    """
    if len(request.inputs) != 1:
        raise Refusal(400, f"inputs: expected 1, found {len(request.inputs)}")
    tensor, field = request.inputs[0], "inputs[0]"
    refuse_shared_memory(field, parameters_of(tensor.parameters))
    rows = check_input(field, tensor.name, tensor.datatype, tensor.shape, model.shape, service.limits)
    if request.raw_input_contents:
        if len(request.raw_input_contents) != 1:
            raise Refusal(400, f"raw_input_contents: expected 1, found {len(request.raw_input_contents)}")
        images = from_raw("raw_input_contents[0]", tensor.datatype, rows, request.raw_input_contents[0], model.shape)
    else:
        images = _contents(f"{field}.contents", tensor, rows, model)
    if not request.outputs:
        return images, [Wanted(name) for name in DATATYPES]
    outputs = [
        wanted(f"outputs[{number}]", one.name, parameters_of(one.parameters), False, model.shape)
        for number, one in enumerate(request.outputs)
    ]
    if len({one.name for one in outputs}) != len(outputs):
        raise Refusal(400, "outputs: expected each name once")
    return images, outputs


def _contents(field: str, tensor: Any, rows: int, model: Model) -> Images:
    if tensor.datatype == "BYTES":
        files = list(tensor.contents.bytes_contents)
        if len(files) != rows:
            raise Refusal(400, f"{field}.bytes_contents: expected {rows} elements, found {len(files)}")
        return Images(files=files)
    values = tensor.contents.uint_contents
    expected = rows * model.shape.side * model.shape.side * 3
    if len(values) != expected:
        raise Refusal(400, f"{field}.uint_contents: expected {expected} numbers, found {len(values)}")
    try:
        return from_raw(field, tensor.datatype, rows, bytes(values), model.shape)
    except ValueError:
        raise Refusal(400, f"{field}.uint_contents: expected numbers from 0 to 255") from None


def parameters_of(parameters: Any) -> dict[str, object]:
    """Parameters as plain values."""
    found: dict[str, object] = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(value, kind)
    return found


def answer(request: Any, model: Model, columns: list[Column]) -> Any:
    """A ``ModelInferResponse`` with raw contents."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=model.version, id=request.id)
    for column in columns:
        response.outputs.add(name=column.wanted.name, datatype=column.datatype, shape=column.shape)
        response.raw_output_contents.append(column.raw())
    return response


def grpc_server(service: Service) -> Any:
    """A server of these calls without a port, bounded as HTTP is."""
    limits = service.limits
    # Messages are whole before anybody is asked; with eight times what bodies of HTTP may take, memory has a bound too.
    calls = min(limits.max_connections, max(1, 8 * limits.max_buffered // limits.max_body))
    # A message holds a few hundred bytes beside the tensors.
    options = [
        ("grpc.max_receive_message_length", limits.max_body + 4096),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_header),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=calls)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(V2Grpc(service), server)
    return server
