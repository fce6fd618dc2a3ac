"""What a request is refused with: an HTTP status, one line, and how gRPC calls the same."""

from __future__ import annotations

from infer.names import printable

#: HTTP status to the name of the gRPC status that says the same (grpc/doc/statuscodes.md).
GRPC_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}


class Refusal(Exception):
    """A request that gets no result.

    Attributes:
        status: of HTTP.
        message: one line for the client; it holds no path of this machine.
        retry_after: seconds after which another try makes sense; None where none does.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        self.message = printable(" ".join(message.split()))
        super().__init__(self.message)
        self.status, self.retry_after = status, retry_after

    @property
    def grpc_name(self) -> str:
        """Name of the gRPC status."""
        return GRPC_NAMES.get(self.status, "UNKNOWN")


class Gone(Refusal):
    """The client left before its answer was there; nobody reads this."""

    def __init__(self) -> None:
        super().__init__(499, "the client left before the answer")
