"""What a server takes at most. Nothing that a client can make grow is without a bound here."""

from __future__ import annotations

from dataclasses import dataclass

from infer.errors import InputError
from infer.serve.refusal import Refusal

MIB = 1 << 20
#: A phone's photo has 12 to 50 megapixels; decoded, 50 take 200 MB for the time of the decoding.
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Attributes:
        max_body: bytes of a request's body, compressed or not; more is refused before it is read (413).
        max_buffered: bytes of all bodies in memory at a time; more are refused (429).
        max_pixels: of one encoded image.
        max_images: of one request.
        queue: images that are decoded, wait or are under way; more are refused (429). None: for each model
            256, or what fills its device four times, whichever is more.
        timeout: seconds from a request's headers to its answer (408 while its body is read, 504 afterwards).
        header_timeout: seconds that a connection may take for the headers of a request.
        max_header: bytes of a request's line and headers (431).
        max_connections: open at a time (503).
        keep_alive: seconds that an idle connection stays open.
        max_models: versions of models that are loaded at a time.
        max_model_memory: bytes that loaded models may take; None for no bound. See :mod:`infer.serve.models`.
    """

    max_body: int = 32 * MIB
    max_buffered: int = 512 * MIB
    max_pixels: int = MAX_PIXELS
    max_images: int = 128
    queue: int | None = None
    timeout: float = 30.0
    header_timeout: float = 10.0
    max_header: int = 64 << 10
    max_connections: int = 1024
    keep_alive: int = 30
    max_models: int = 16
    max_model_memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_body", "max_buffered", "max_pixels", "max_images", "max_header", "max_connections"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.queue is not None and self.queue < 1:
            raise InputError(f"queue: expected at least 1 image, found {self.queue}")
        if self.timeout <= 0 or self.header_timeout <= 0:
            raise InputError(f"timeout: expected more than 0 seconds, found {min(self.timeout, self.header_timeout)}")
        if self.max_buffered < self.max_body:
            raise InputError(
                f"max_buffered: expected at least max_body ({self.max_body} bytes), found {self.max_buffered}"
            )


class Budget:
    """A number of things that are there at a time. Used by the event loop alone, so it needs no lock."""

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.used = total, what, 0

    def take(self, count: int, retry_after: int = 1) -> None:
        """Take ``count``.

        Raises:
            Refusal: 429, there is no room for so many now.
        """
        if self.used + count > self.total:
            raise Refusal(
                429,
                f"{self.what}: {self.used} of {self.total} are taken, there is no room for {count} more now; try again",
                retry_after=retry_after,
            )
        self.used += count

    def give_back(self, count: int) -> None:
        """Give ``count`` back."""
        self.used -= count
