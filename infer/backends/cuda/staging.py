"""Pinned staging buffers of one batch on its way through a slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs
from infer.backends.cuda import driver
from infer.backends.cuda.buffers import Layout, PinnedBuffer

if TYPE_CHECKING:
    from infer.backends.cuda.slots import Slot


class Staging:
    """Pinned input and outputs of a batch, and the event of its end.

    Each slot has two, so that a batch waits in the stream while the one before it is still copied back: the device
    then never waits for the host. Belongs to one thread at a time, which fills :attr:`images`, launches, waits and
    collects; the ring sees to that. Needs a current context to be made, used and closed.

    Args:
        slot: whose stream the batch goes through.
        layout: shapes.
        max_batch: rows.
        spin: let waiting threads spin (lowest latency, one busy core) instead of block.

    Attributes:
        images: pinned uint8 ``[max_batch, H, W, 3]``, the input of the next launch.
        flat: the same bytes in one dimension.
        outputs: pinned bytes of the outputs, laid out by :meth:`~infer.backends.cuda.buffers.Layout.place`.
        done: handle of the event recorded behind the batch.
    """

    def __init__(self, slot: Slot, layout: Layout, max_batch: int, *, spin: bool) -> None:
        self.slot, self._layout = slot, layout
        self._buffers: list[PinnedBuffer] = []
        self.done = driver.create_event(spin=spin)
        try:
            for size in (max_batch * layout.image_bytes, layout.place(max_batch).total):
                self._buffers.append(PinnedBuffer(size))
        except BaseException:
            self.close()
            raise
        self.flat, self.outputs = (buffer.array for buffer in self._buffers)
        self.images: NDArray[np.uint8] = self.flat.reshape(max_batch, *layout.image)

    def launch(self, rows: int) -> None:
        """See :meth:`infer.backends.cuda.slots.Slot.launch`."""
        self.slot.launch(self, rows)

    def wait(self) -> None:
        """Wait until the last launch is done; the GIL is free meanwhile."""
        driver.synchronize_event(self.done)

    def collect(self, rows: int) -> Outputs:
        """Copies of the outputs of the last launch, after :meth:`wait`."""
        return self._layout.outputs(self.outputs[: self._layout.place(rows).total].copy(), rows)

    def close(self, *, broken: bool = False) -> list[PinnedBuffer]:
        """Release everything; see :meth:`infer.backends.cuda.slots.Slot.close`."""
        for name in ("images", "flat", "outputs"):
            self.__dict__.pop(name, None)
        if broken:
            return []
        driver.destroy_event(self.done)
        shown = [buffer for buffer in self._buffers if buffer.shown]
        for buffer in self._buffers:
            if buffer not in shown:
                buffer.free()
        self.forget()
        return shown

    def forget(self) -> None:
        """Drop what pycuda owns."""
        self._buffers.clear()
