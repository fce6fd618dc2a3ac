"""Second moments of what each layer reads, as its int8 kernel sees it: the statistics that rounding weights well needs.

For every layer the rows of its im2col matrix are taken, at most 64 an image at places that the image's own hash
chooses, rounded to the integers that the layer's Q/DQ pair makes of them, and their products are summed. Integers of 8
bits keep such sums exact: of at most 1,024 rows in float32 (1,024 x 128 x 128 = 2^24), which is what a matrix product
is given at a time, and of all rows in int64. So the result is the same, bit for bit, in any order and batch.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.int8 import HIGHEST, LOWEST
from calibration.onnx_index import Index, attribute
from calibration.session import ActivationSession
from calibration.streaming import default_threads
from infer.errors import InputError

if TYPE_CHECKING:
    import onnx

ROWS = 64
_EXACT = 1024


@dataclass(frozen=True)
class LayerInput:
    """How a layer reads its input tensor.

    Attributes:
        tensor: of the float graph.
        scale: of its integers.
        offset: by how much it is moved down before it is rounded.
        kernel, strides, dilations: ``(rows, columns)`` of a convolution's window; None for a matrix product.
        pads: ``(top, left, bottom, right)``; None for as many as keep the size (``SAME_UPPER``).
        groups: of the convolution.
    """

    tensor: str
    scale: float
    offset: float = 0.0
    kernel: tuple[int, int] | None = None
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    groups: int = 1

    def rows(self, values: NDArray[np.float32], chosen: Callable[[int], NDArray[np.intp]]) -> NDArray[np.int8]:
        """Rows of the im2col matrix as integers, int8 ``[rows, groups, K]``, K in the order (channel, row, column).

        Args:
            values: the tensor for one image, ``[1, C, H, W]`` or ``[1, ..., K]``.
            chosen: places to take of so many.
        """
        if self.kernel is None:
            rows = values.reshape(-1, 1, values.shape[-1])
            return self._rounded(rows[chosen(len(rows))])
        image, (height, width) = values[0], values.shape[2:]
        top, left, bottom, right = self._pads(height, width)
        reach = [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]
        down = (height + top + bottom - reach[0]) // self.strides[0] + 1
        across = (width + left + right - reach[1]) // self.strides[1] + 1
        places = chosen(down * across)
        first = [places // across * self.strides[0] - top, places % across * self.strides[1] - left]
        steps = [np.arange(n) * d for n, d in zip(self.kernel, self.dilations, strict=True)]
        y = np.repeat(first[0][:, None] + steps[0], self.kernel[1], axis=1)
        x = np.tile(first[1][:, None] + steps[1], (1, self.kernel[0]))
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        taken = self._rounded(image[:, np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)])
        taken *= inside  # padding is zero, and so is its integer
        return taken.transpose(1, 0, 2).reshape(len(places), self.groups, -1)

    def _pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        if self.pads is not None:
            return self.pads
        assert self.kernel is not None
        total = [
            max(0, (-(-size // stride) - 1) * stride + (window - 1) * step + 1 - size)
            for size, window, stride, step in zip(
                (height, width), self.kernel, self.strides, self.dilations, strict=True
            )
        ]
        return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2

    def _rounded(self, values: NDArray[np.float32]) -> NDArray[np.int8]:
        integers = np.rint((values - np.float32(self.offset)) / np.float32(self.scale))
        return np.clip(integers, LOWEST, HIGHEST).astype(np.int8)


def layer_inputs(
    index: Index, layers: Iterable[onnx.NodeProto], tensors: Mapping[str, tuple[float, float]]
) -> dict[str, LayerInput]:
    """How the named layers read their inputs; those are left out of which this module knows no im2col matrix.

    Args:
        index: the float graph.
        layers: Conv, Gemm and MatMul nodes with constant weights.
        tensors: scale and offset of each quantised tensor.
    """
    found = {}
    for node in layers:
        if node.input[0] not in tensors:
            continue
        scale, offset = tensors[node.input[0]]
        if node.op_type in ("Gemm", "MatMul"):
            found[node.name] = LayerInput(node.input[0], scale, offset)
            continue
        kernel = tuple(index.constants[node.input[1]].dims[2:])
        if node.op_type != "Conv" or len(kernel) != 2:
            continue
        automatic = attribute(node, "auto_pad", b"NOTSET")
        if automatic == b"SAME_LOWER":
            continue
        pads = {b"NOTSET": tuple(attribute(node, "pads", (0, 0, 0, 0))), b"VALID": (0, 0, 0, 0)}.get(automatic)
        found[node.name] = LayerInput(
            node.input[0],
            scale,
            offset,
            (kernel[0], kernel[1]),
            strides=tuple(attribute(node, "strides", (1, 1))),
            dilations=tuple(attribute(node, "dilations", (1, 1))),
            pads=pads,
            groups=attribute(node, "group", 1),
        )
    return found


class Moments:
    """Sums over the rows that one layer has read."""

    def __init__(self) -> None:
        self._summed = 0
        self._waiting: list[NDArray[np.int8]] = []
        self._sums: NDArray[np.int64] | None = None
        self._products: NDArray[np.int32] | None = None

    @property
    def rows(self) -> int:
        """How many rows were added."""
        return self._summed + sum(map(len, self._waiting))

    def add(self, rows: NDArray[np.int8]) -> None:
        """Add rows, int8 ``[N, groups, K]``."""
        if sum(map(len, self._waiting)) + len(rows) > _EXACT:
            self._sum_up()
        for at in range(0, len(rows), _EXACT):
            self._waiting.append(rows[at : at + _EXACT])

    def _sum_up(self) -> None:
        if not self._waiting:
            return
        block = np.concatenate(self._waiting).transpose(1, 0, 2).astype(np.float32)
        self._waiting = []
        self._summed += block.shape[1]
        if self._summed >= 1 << 17:  # of 128 x 128 each: 2^31
            raise InputError(f"second moments: expected fewer than {1 << 17} rows a layer; pass fewer images")
        if self._sums is None or self._products is None:
            groups, columns = block.shape[0], block.shape[2]
            self._sums = np.zeros((groups, columns), np.int64)
            self._products = np.zeros((groups, columns, columns), np.int32)
        self._sums += block.sum(axis=1).astype(np.int64)
        for group, part in enumerate(block):
            # The transposed view of one array: BLAS computes half of it.
            self._products[group] += (part.T @ part).astype(np.int32)

    def mean(self) -> NDArray[np.float64]:
        """Mean of the integers, ``[groups, K]``."""
        self._sum_up()
        assert self._sums is not None
        return self._sums / self.rows

    def covariance(self) -> NDArray[np.float64]:
        """Centred second moments of the integers, ``[groups, K, K]``."""
        mean = self.mean()
        assert self._products is not None
        moments = self._products / self.rows
        for group, centre in enumerate(mean):
            moments[group] -= np.outer(centre, centre)
        return moments


def collect_moments(
    graph: onnx.ModelProto,
    images: Iterable[NDArray[np.uint8]],
    layers: Mapping[str, LayerInput],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Moments]:
    """Stream images through the float graph and sum up what each layer reads.

    Args:
        graph: float32 graph with uint8 input ``[N, crop, crop, 3]``.
        images: one at a time, ``[1, crop, crop, 3]``.
        layers: what to look at.
        progress: called with 1 after each image.

    Raises:
        InputError: no images.
        GraphError: see :class:`calibration.session.ActivationSession`.
    """
    moments = {name: Moments() for name in layers}
    count = 0
    with ActivationSession(graph, [layer.tensor for layer in layers.values()]) as session, ExitStack() as stack:
        workers = default_threads()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="moments")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)

        def read(image: NDArray[np.uint8]) -> dict[str, NDArray[np.int8]]:
            places = _Places(image)
            values = session.run(image)
            return {name: layer.rows(values[layer.tensor], places) for name, layer in layers.items()}

        for rows in _in_order(pool, read, images, workers):
            for name, part in rows.items():
                moments[name].add(part)
            count += 1
            progress(1)
    if not count:
        raise InputError("no images to take second moments of; expected at least one")
    return moments


class _Places:
    """Which places of an image are taken: a choice by its own hash, the same for all layers of one size."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self._seed = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")
        self._known: dict[int, NDArray[np.intp]] = {}

    def __call__(self, count: int) -> NDArray[np.intp]:
        if count not in self._known:
            chosen = np.random.default_rng((self._seed, count)).permutation(count)[:ROWS]
            self._known[count] = np.sort(chosen).astype(np.intp)
        return self._known[count]


def _in_order(pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
