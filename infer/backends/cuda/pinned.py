"""Pinned memory that callers fill themselves, so that decoding writes where the device reads."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.backends.cuda.ring import Ring
from infer.backends.cuda.staging import Staging
from infer.errors import InputError, IResNetError


class PinnedBatch:
    """A staging buffer in the hands of the caller: fill :attr:`images`, then submit.

    Made by :meth:`infer.backends.tensorrt.TensorRTBackend.acquire`.

    Leaving a ``with`` block without :meth:`submit` gives the buffer back. Not for several threads at once, but any
    thread may submit.
    """

    def __init__(self, ring: Ring, staging: Staging, rows: int) -> None:
        self._ring, self._rows = ring, rows
        self._staging: Staging | None = staging
        ring.hold(staging)

    @property
    def images(self) -> NDArray[np.uint8]:
        """Pinned uint8 ``[rows, H, W, 3]``, with what an earlier batch has left in it.

        Only to be touched before :meth:`submit`: afterwards the device reads it, then another batch fills it.
        """
        if self._staging is None:
            raise InputError("this batch is submitted or released; acquire another")
        return self._staging.images[: self._rows]

    def submit(self, rows: int | None = None) -> Future[Outputs]:
        """Start the batch; as the backend's ``submit``, and nothing is copied on the host.

        Args:
            rows: run only the first so many; None for all.

        Raises:
            InputError: submitted or released already, closed, or ``rows`` out of range.
            DeviceError: an earlier batch broke the context.
        """
        rows = self._rows if rows is None else rows
        if not 1 <= rows <= self._rows:
            raise InputError(f"expected 1 to {self._rows} images, found {rows}")
        return self._ring.submit(self._give_up(), rows)

    def release(self) -> None:
        """Give the buffer back unused; harmless after :meth:`submit`."""
        if self._staging is not None:
            with contextlib.suppress(IResNetError):  # closed or broken: the buffer is taken back all the same
                self._ring.release(self._give_up())

    def _give_up(self) -> Staging:
        staging, self._staging = self._staging, None
        if staging is None:
            raise InputError("this batch is submitted or released; acquire another")
        self._ring.take_back(staging)
        return staging

    def __enter__(self) -> PinnedBatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()
