"""Pinned and device memory of one slot, and how the outputs of a batch lie in it.

Outputs of a batch lie one behind the other, each on a multiple of 256 bytes, and the offsets follow the number of
rows. So one copy brings back all outputs of the valid rows and nothing else.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import Outputs

ALIGNMENT = 256
"""Bytes; what TensorRT asks of the memory it is given, and what cuMemAlloc gives."""


def align(size: int) -> int:
    """``size`` rounded up to :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class OutputOffsets:
    """Byte offsets of the outputs of a batch, and the bytes of all of them."""

    logits: int
    scores: int
    classes: int
    total: int


@dataclass(frozen=True)
class Layout:
    """Shapes of the network's tensors.

    Attributes:
        image: ``(H, W, 3)`` of a uint8 image.
        num_classes: columns of the logits.
        top_k: columns of the scores and classes.
    """

    image: tuple[int, int, int]
    num_classes: int
    top_k: int

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        height, width, channels = self.image
        return height * width * channels

    def place(self, rows: int) -> OutputOffsets:
        """Where the outputs of ``rows`` images lie: the small ones first, then the logits."""
        small = align(4 * rows * self.top_k)
        return OutputOffsets(classes=0, scores=small, logits=2 * small, total=2 * small + 4 * rows * self.num_classes)

    def outputs(self, block: NDArray[np.uint8], rows: int) -> Outputs:
        """The outputs of ``rows`` images as views of ``block``, uint8 of ``place(rows).total`` bytes."""
        at, k = self.place(rows), self.top_k
        return Outputs(
            logits=block[at.logits : at.total].view(np.float32).reshape(rows, self.num_classes),
            scores=block[at.scores : at.scores + 4 * rows * k].view(np.float32).reshape(rows, k),
            classes=block[at.classes : at.classes + 4 * rows * k].view(np.int32).reshape(rows, k),
        )


class PinnedBuffer:
    """Page-locked host memory as a uint8 array; only from such memory are copies truly asynchronous.

    Made with ``pagelocked_empty``: registering existing memory crashes in pycuda. Needs a current context to be made
    and to be freed. Its array may be given to callers, who may keep it.
    """

    def __init__(self, size: int) -> None:
        import pycuda.driver as cuda

        self.array: NDArray[np.uint8] = cuda.pagelocked_empty(size, np.uint8)
        self._allocation: Any = self.array.base

    @property
    def shown(self) -> bool:
        """Whether an array of somebody else still shows it."""
        # Every view keeps the array alive, so: our reference and the argument.
        return sys.getrefcount(self.array) > 2

    def give_up(self, gone: Callable[[PinnedBuffer], None]) -> None:
        """Have ``gone`` called when the last array that shows it goes, perhaps at once; on any thread."""
        self._watch = weakref.ref(self.array, lambda _: gone(self))
        del self.array

    def free(self) -> None:
        """Free the memory, which nobody shows any more."""
        self.__dict__.pop("array", None)
        self._allocation.free()
