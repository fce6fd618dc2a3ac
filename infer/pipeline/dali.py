"""JPEG files decoded, resized and cropped on an NVIDIA GPU, by NVIDIA DALI (optional: nvidia-dali-cuda130).

Only plain JPEG files go this way, see :func:`plan_file`; :mod:`infer.pipeline.device` decodes the others on the host.
"""

from __future__ import annotations

import io
import logging
import re
import textwrap
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infer.bundle.preprocessing import Preprocessing
from infer.errors import InputError, TargetUnavailableError
from infer.images import MAX_PIXELS, open_image, upright_turn
from infer.images.jpeg import MAX_SCANS, SCAN, read_header
from infer.images.resize import plan_axes

_LOG = logging.getLogger(__name__)
# Among coded pixels 0xFF is followed by 0, by the number of a restart, or by another 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_END, _BETWEEN_SCANS = 0xD9, (0xC4, 0xDA, 0xDB, 0xDD, 0xFE)


class PlannedFile(NamedTuple):
    """A JPEG file and the part of it that the network sees.

    Attributes:
        data: the encoded bytes.
        start: float32 ``[2]``: top and left edge, in pixels of the decoded image.
        end: float32 ``[2]``: bottom and right edge.
    """

    data: bytes
    start: NDArray[np.float32]
    end: NDArray[np.float32]


def plan_file(data: object, spec: Preprocessing, name: str) -> PlannedFile | None:
    """The plan for a plain JPEG file; None for what the host must decode.

    Plain is: 8-bit YCbCr in 4:4:4, 4:2:2, 4:2:0 or 4:4:0, no more pixels and scans than allowed, upright, nothing but
    scans up to an end marker, and at least as large as the crop once it is resized.

    Raises:
        ImageError: the metadata cannot be read; the message starts with ``name``.
    """
    if not isinstance(data, bytes) or not data.startswith(b"\xff\xd8\xff"):
        return None
    header = read_header(data)
    if header is None or not header.plain or not 0 < header.size[0] * header.size[1] <= MAX_PIXELS:
        return None
    if (header.progressive and data.count(SCAN) > MAX_SCANS) or not _ends(data, header.scan):
        return None
    if header.metadata and upright_turn(open_image(io.BytesIO(data), name)) is not None:
        return None
    x, y = plan_axes(*header.size, spec)
    if not x.length == y.length == spec.crop:
        return None
    (left, right), (top, bottom) = x.edges(), y.edges()
    return PlannedFile(data, np.array([top, left], np.float32), np.array([bottom, right], np.float32))


def _ends(data: bytes, at: int) -> bool:
    """Whether scans from ``at`` on lead to an end marker. DALI decodes much that is damaged without an error."""
    while (found := _MARKER.search(data, at)) is not None:
        if (marker := data[found.end() - 1]) == _END:
            return True
        if marker not in _BETWEEN_SCANS:
            return False
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
    return False


def require_dali(spec: Preprocessing) -> str:
    """The version of DALI.

    Raises:
        TargetUnavailableError: it is not installed or does not load.
        InputError: it has not the filter of ``spec``.
    """
    if spec.interpolation != "bilinear":
        # It has bicubic, but does not round and clip between the passes as Pillow does: up to 6 levels on photos.
        raise InputError(
            f"decoding with DALI: expected a bilinear model, this one is {spec.interpolation}; use the host"
        )
    try:
        import nvidia.dali
    except ImportError as error:
        raise TargetUnavailableError(
            f"decoding with DALI: nvidia.dali is not installed or does not load ({error}); "
            "pip install nvidia-dali-cuda130 (nvidia-dali-cuda120 for a driver of CUDA 12), or decode on the host"
        ) from error
    return str(nvidia.dali.__version__)


class Decoder:
    """Batches of plain JPEG files to network inputs, in order, several under way. For one thread at a time.

    Args:
        spec: the model's pre-processing, bilinear.
        batch: the largest batch.
        device: ordinal of the GPU; None decodes on the CPU by the same graph, into host memory.
        threads: CPU threads of DALI.

    Raises:
        TargetUnavailableError: no DALI, or it does not start on this device.
        InputError: see :func:`require_dali`.
    """

    def __init__(self, spec: Preprocessing, batch: int, *, device: int | None, threads: int) -> None:
        require_dali(spec)
        self._spec, self._batch, self._device, self._threads = spec, batch, device, threads
        self._started: deque[tuple[Sequence[PlannedFile], bool]] = deque()
        self._warned = False
        self._pipeline = self._build()

    def start(self, files: Sequence[PlannedFile]) -> None:
        """Start a batch of 1 to ``batch`` files."""
        # After a batch that could not be fed, DALI's inputs may be out of step: nothing more until it is built again.
        sound = all(fed for _, fed in self._started)
        self._started.append((files, sound and self._feed(files)))

    def finish(self) -> Any | None:
        """Wait for the batch that was started first.

        Returns:
            uint8 ``[N, crop, crop, 3]``, written and the caller's to keep: with ``__cuda_array_interface__`` and DLPack
            on a GPU, an array interface on the CPU. None: DALI failed the batch, one bad file is enough.
        """
        _, fed = self._started.popleft()
        if fed:
            try:
                # Without a stream this waits on the host. The dynamic executor never writes to an output that is held.
                return self._pipeline.outputs()[0].as_tensor()
            except Exception as error:  # of many types, by what fails inside
                self._warn(error)
        # A pipeline is no longer valid after an error, and what it had under way is lost.
        waiting = [files for files, _ in self._started]
        self._started.clear()
        self._pipeline = self._build()
        for files in waiting:
            self.start(files)
        return None

    def close(self) -> None:
        """Release DALI's threads and memory but the outputs that are held."""
        self._started.clear()
        self._pipeline = None

    def _feed(self, files: Sequence[PlannedFile]) -> bool:
        try:
            self._pipeline.feed_input("data", [np.frombuffer(file.data, np.uint8) for file in files])
            self._pipeline.feed_input("start", [file.start for file in files])
            self._pipeline.feed_input("end", [file.end for file in files])
            self._pipeline.schedule_run()
        except Exception as error:  # an earlier batch may have failed meanwhile
            self._warn(error)
            return False
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _LOG.warning("DALI failed a batch (%s); batches that it fails are decoded on the host", _cause(error))

    def _build(self) -> Any:
        from nvidia.dali import Pipeline, fn, types

        # A queue of one: only then does each schedule_run() start just one batch.
        pipeline = Pipeline(
            batch_size=self._batch,
            num_threads=self._threads,
            device_id=self._device,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipeline:
            data = fn.external_source(name="data", dtype=types.UINT8, ndim=1)
            start, end = (fn.external_source(name=name, dtype=types.FLOAT, ndim=1) for name in ("start", "end"))
            image = fn.decoders.image(
                data,
                device="cpu" if self._device is None else "mixed",
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # as libjpeg-turbo does
            )
            side = self._spec.crop
            # Only the crop is computed, with the weights of the whole image; DALI's own plan of the long side rounds
            # otherwise than torchvision.
            pixels = fn.resize(image, size=[side, side], roi_start=start, roi_end=end, antialias=True)
            pipeline.set_outputs(pixels)
        try:
            pipeline.build()
        except Exception as error:
            where = "the CPU" if self._device is None else f"GPU {self._device}"
            raise TargetUnavailableError(
                f"decoding with DALI: it does not start on {where} ({_cause(error)}); decode on the host"
            ) from error
        return pipeline


def _cause(error: Exception) -> str:
    """The line of DALI's report that says what happened."""
    lines = [line.strip(" :") for line in str(error).rpartition("encountered:")[2].splitlines()]
    found = next((line for line in lines if line and "pipeline object is no longer" not in line), type(error).__name__)
    return textwrap.shorten(found, 200)
