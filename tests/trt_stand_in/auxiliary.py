"""A network that also runs on streams of its own, forked from the caller's and joined again by events."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import numpy as np
from trt_stand_in.kernels import Launch, launch


class AuxiliaryStreams:
    """The streams of one execution context; with none, the network runs on the caller's alone."""

    def __init__(self, emulator: Any, count: int) -> None:
        self._lib = emulator.lib
        self._streams = [ctypes.c_void_p() for _ in range(count)]
        self._events = [ctypes.c_void_p() for _ in range(count + 1)] if count else []
        for stream in self._streams:
            self._lib.cuStreamCreate(ctypes.byref(stream), 1)
        for event in self._events:
            self._lib.cuEventCreate(ctypes.byref(event), 2)

    def launch(self, call: Launch, stream: int, *, captured: bool) -> int:
        """Enqueue; each stream takes some of the rows, and some of the scratch memory."""
        parts = _split(call, 1 + len(self._streams))
        if not self._streams:
            return launch(call, stream, captured=captured)
        lib, caller = self._lib, ctypes.c_void_p(stream)
        code = int(lib.cuEventRecord(self._events[0], caller))
        for part, aux, event in zip(parts[1:], self._streams, self._events[1:], strict=True):
            code = code or int(lib.cuStreamWaitEvent(aux, self._events[0], 0))
            code = code or (launch(part, aux.value or 0, captured=captured) if part.rows else 0)
            code = code or int(lib.cuEventRecord(event, aux))
        code = code or (launch(parts[0], stream, captured=captured) if parts[0].rows else 0)
        for event in self._events[1:]:
            code = code or int(lib.cuStreamWaitEvent(caller, event, 0))
        return code

    def close(self) -> None:
        """Destroy streams and events."""
        for stream in self._streams:
            self._lib.cuStreamDestroy_v2(stream)
        for event in self._events:
            self._lib.cuEventDestroy_v2(event)


def _split(call: Launch, count: int) -> list[Launch]:
    parts, start = [], 0
    scratch = call.scratch_bytes // count // 8 * 8
    for number in range(count):
        rows = (call.rows - start) // (count - number)
        parts.append(
            dataclasses.replace(
                call,
                rows=rows,
                images=call.images + start * int(np.prod(call.image)),
                logits=call.logits + 4 * start * call.num_classes,
                scores=call.scores + 4 * start * call.top_k,
                classes=call.classes + 4 * start * call.top_k,
                scratch=call.scratch + number * scratch,
                scratch_bytes=scratch,
            )
        )
        start += rows
    return parts
