"""The v2 protocol through Ray Serve's gRPC proxy, which routes each call to the method of its name at a replica.

Ray pickles what it deserialised, and the messages that ``tritonclient`` carries cannot be pickled: here they stay bytes
until they are at the replica. ``grpc_servicer_functions`` of Ray's gRPC options has to be :data:`SERVICER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc import service_pb2 as pb

if TYPE_CHECKING:
    from ray.serve.grpc_util import RayServegRPCContext

    from infer.serve.v2_grpc import V2Grpc

SERVICER = "infer.serve.ray_grpc.add_servicer"
_SERVICE = "inference.GRPCInferenceService"
#: Calls, and whether they are answered; a load reaches one replica alone, so that replicas would no longer be alike.
CALLS = {
    "ServerLive": True, "ServerReady": True, "ModelReady": True, "ServerMetadata": True, "ModelMetadata": True,
    "ModelConfig": True, "ModelStatistics": True, "RepositoryIndex": True, "ModelInfer": True,
    "RepositoryModelLoad": False, "RepositoryModelUnload": False,
}  # fmt: skip
_BESIDE_TENSORS = 4096  # bytes of a message, as in infer.serve.v2_grpc


def add_servicer(servicer: Any, server: Any) -> None:
    """Register the calls at Ray's proxy; called by Ray, which puts its own routing in place of ``servicer``."""
    handlers = {name: grpc.unary_unary_rpc_method_handler(_routed) for name in CALLS}  # messages stay bytes
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))


def _routed(request: bytes, context: Any) -> bytes:
    raise NotImplementedError("Ray Serve routes this call")


async def answer(calls: V2Grpc, name: str, request: bytes, context: RayServegRPCContext, max_body: int) -> Any:
    """One call at a replica.

    Args:
        calls: of the replica's application.
        name: of :data:`CALLS`.
        request: the message, serialised.
        context: of Ray's proxy.
        max_body: bytes; Ray's proxy takes messages of any length.

    Returns:
        The message that answers, or the error is set in ``context`` and raised, as Ray wants it.
    """
    over = Context(context)
    if not CALLS[name]:
        await over.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name}: not through Ray; deploy with other bundles instead")
    if len(request) > max_body + _BESIDE_TENSORS:
        text = f"message: longer than {max_body} bytes, the limit of this server"
        await over.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    try:
        message = getattr(pb, f"{name}Request").FromString(request)
    except Exception:  # DecodeError of whichever protobuf is there
        await over.abort(grpc.StatusCode.INVALID_ARGUMENT, f"message: expected a {name}Request")
    return await getattr(calls, name)(message, over)


class Context:
    """What the calls need of a gRPC context, from that of Ray's proxy."""

    def __init__(self, context: RayServegRPCContext) -> None:
        self._context = context

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Of the client."""
        return list(self._context.invocation_metadata())

    def peer(self) -> str:
        """The client."""
        return str(self._context.peer())

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the call: Ray answers with the code that was set when an error came."""
        self._context.set_code(code)
        self._context.set_details(details)
        raise RuntimeError(details)
