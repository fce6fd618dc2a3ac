"""An inference request of the v2 protocol, from checked images to columns; the same for HTTP and gRPC."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from infer.backends.base import Outputs
from infer.errors import ImageError
from infer.serve.model import Model, refusal_of
from infer.serve.refusal import Refusal
from infer.serve.tensors import Column, Images, Wanted, columns
from infer.serve.ticket import Ticket
from infer.serve.v2_model import note_request


async def run(
    model: Model,
    images: Images,
    wanted: Sequence[Wanted],
    wait: Callable[[Ticket], Awaitable[None]],
    field: str,
) -> tuple[list[Column], Ticket]:
    """Queue the images and wait for them.

    Args:
        model: what runs them.
        images: checked.
        wanted: outputs.
        wait: waits for the ticket, and raises Refusal when it will not any longer.
        field: what errors call the images.

    Raises:
        Refusal: the queue is full, the time is over, an image cannot be decoded (400, it names the image), or the model
            failed.
    """
    started = time.perf_counter()
    ticket = queue(model, images, field)
    good = False
    try:
        await wait(ticket)
        outputs = result_of(ticket)
        good = True
    finally:
        note_request(model, good, time.perf_counter() - started, ticket.wait, ticket.decode)
    return columns(outputs, wanted, model.labels), ticket


def queue(model: Model, images: Images, field: str) -> Ticket:
    """Start the images.

    Raises:
        Refusal: 429, the queue is full.
    """
    if images.pixels is not None:
        return model.pixels(images.pixels)
    files = images.files or []
    return model.files(files, [f"{field}[{number}]" for number in range(len(files))])


def result_of(ticket: Ticket) -> Outputs:
    """Outputs of every row.

    Raises:
        Refusal: 400 where an image cannot be decoded, 500 or 503 where the model failed.
    """
    failures = failures_of(ticket)
    if failures:
        error = failures[min(failures)]
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise Refusal(400, f"{error}{more}")
    outputs = ticket.outputs()
    if outputs is None:
        raise Refusal(500, "the model gave no result")
    return outputs


def failures_of(ticket: Ticket) -> dict[int, ImageError]:
    """Images that cannot be decoded.

    Raises:
        Refusal: 500 or 503, the model failed.
    """
    try:
        return ticket.failures()
    except Exception as error:
        raise refusal_of(error) from error
