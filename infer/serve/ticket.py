"""One request on its way through a model: rows come back in any order, and it is done when all have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from infer.backends.base import Outputs
from infer.errors import ImageError


class Piece(NamedTuple):
    """Some consecutive rows of a ticket and what became of them.

    Attributes:
        first: index of the first row.
        rows: how many.
        result: outputs of these rows; an ImageError for an image that cannot be decoded; any other exception for a
            batch that failed; None for rows that nobody waits for any more.
        wait: seconds between being ready for the device and being sent to it.
        infer: seconds on the device.
    """

    first: int
    rows: int
    result: Outputs | Exception | None
    wait: float = 0.0
    infer: float = 0.0


class Ticket:
    """What a request waits for. Made and changed in the event loop; other threads send it :class:`Piece` s.

    Args:
        loop: of the request.
        rows: images of the request, at least 1.
        on_done: called in the loop when every row is accounted for, also of a ticket that was given up.

    Attributes:
        rows: images of the request.
        settled: is done when every row is accounted for, or when the ticket was given up.
        abandoned: nobody waits any more; rows that have not been started need not be. Read by any thread.
        decode: seconds of decoding, the longest of its images.
    """

    __slots__ = ("_missing", "_on_done", "abandoned", "decode", "loop", "pieces", "rows", "settled")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, rows: int, on_done: Callable[[int], None] | None = None
    ) -> None:
        self.loop, self.rows, self._on_done = loop, rows, on_done
        self.settled: asyncio.Future[None] = loop.create_future()
        self.pieces: list[Piece] = []
        self._missing = rows
        self.abandoned = False
        self.decode = 0.0

    def add(self, piece: Piece) -> None:
        """Note a piece; in the event loop only."""
        self.pieces.append(piece)
        self._missing -= piece.rows
        if self._missing:
            return
        if not self.settled.done():
            self.settled.set_result(None)
        if self._on_done is not None:
            self._on_done(self.rows)

    def give_up(self) -> None:
        """Nobody waits any more, unless it is done; in the event loop only."""
        if self._missing:
            self.abandoned = True
            if not self.settled.done():
                self.settled.set_result(None)

    @property
    def wait(self) -> float:
        """Longest wait for the device of its rows, seconds."""
        return max((piece.wait for piece in self.pieces), default=0.0)

    @property
    def infer(self) -> float:
        """Longest time on the device of its rows, seconds."""
        return max((piece.infer for piece in self.pieces), default=0.0)

    def failures(self) -> dict[int, ImageError]:
        """Rows that could not be decoded.

        Raises:
            Exception: what a batch failed with, if one did.
        """
        found: dict[int, ImageError] = {}
        for piece in self.pieces:
            if isinstance(piece.result, ImageError):
                found[piece.first] = piece.result
            elif isinstance(piece.result, Exception):
                raise piece.result
        return found

    def outputs(self) -> Outputs | None:
        """Outputs of the rows that have some, in order; None where no row has."""
        good = sorted((piece.first, piece.result) for piece in self.pieces if isinstance(piece.result, Outputs))
        if not good:
            return None
        if len(good) == 1:
            return good[0][1]
        return Outputs(*(np.concatenate(arrays) for arrays in zip(*(result for _, result in good), strict=True)))


def deliver(pieces: Iterable[tuple[Ticket, Piece]]) -> None:
    """Hand pieces to their tickets from any thread, with one call into each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Piece]]] = {}
    for ticket, piece in pieces:
        loops.setdefault(ticket.loop, []).append((ticket, piece))
    for loop, mine in loops.items():
        try:
            loop.call_soon_threadsafe(_add, mine)
        except RuntimeError:  # the loop was closed: nobody waits
            continue


def _add(pieces: list[tuple[Ticket, Piece]]) -> None:
    for ticket, piece in pieces:
        ticket.add(piece)
