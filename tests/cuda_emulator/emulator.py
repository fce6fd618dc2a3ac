"""The emulated CUDA driver as a test sees it: delays, failures, memory, the timeline, hazards."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

H2D, D2H, COMPUTE, D2D, MEMSET, HOST = range(6)
ENGINE_H2D, ENGINE_D2H, ENGINE_COMPUTE = range(3)
_COUNTED = (
    "contexts",
    "streams",
    "events",
    "device_allocations",
    "device_bytes",
    "pinned_allocations",
    "pinned_bytes",
    "graphs",
    "executable_graphs",
    "operations",
    "stack_depth",
    "retained",
)
OUT_OF_MEMORY, ILLEGAL_ADDRESS, LAUNCH_FAILED, NOT_SUPPORTED = 2, 700, 719, 801
REFUSED = 304
"""A failure of one call, behind which the context is as it was."""


class _Row(ctypes.Structure):
    _fields_ = (
        ("stream", ctypes.c_uint32),
        ("kind", ctypes.c_int32),
        ("graph", ctypes.c_uint64),
        ("enqueued", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("finish", ctypes.c_int64),
        ("bytes", ctypes.c_uint64),
        ("pageable", ctypes.c_int32),
        ("engine", ctypes.c_int32),
    )


class Access(ctypes.Structure):
    """Bytes a kernel reads or writes."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("write", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


class RowKernel(ctypes.Structure):
    """Arguments of the built-in kernel, see ``emu_launch_row_kernel``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("images", "logits", "scores", "classes", "scratch"),
            *("rows", "row_bytes", "num_classes", "k", "scratch_bytes"),
        )
    )


KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)


@dataclass(frozen=True)
class Operation:
    """One operation of the timeline; times in ms, ``graph`` is 0 for work that no graph launched."""

    stream: int
    kind: int
    graph: int
    enqueued: float
    start: float
    finish: float
    bytes: int
    pageable: bool


class Emulator:
    """Control of one process's emulated driver. Load it before ``pycuda.driver`` is imported."""

    def __init__(self, library: Path) -> None:
        self.lib = lib = ctypes.CDLL(str(library))
        lib.emu_set_delay.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_double]
        lib.emu_set_memory.argtypes = [ctypes.c_size_t]
        lib.emu_fail.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_int]
        lib.emu_calls.argtypes, lib.emu_calls.restype = [ctypes.c_char_p], ctypes.c_long
        lib.emu_live.restype = ctypes.c_longlong
        lib.emu_trace_read.argtypes, lib.emu_trace_read.restype = [ctypes.c_void_p, ctypes.c_long], ctypes.c_long
        lib.emu_hazard.argtypes = [ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t]
        lib.emu_hazard.restype = ctypes.c_long
        lib.emu_report_hazard.argtypes = [ctypes.c_char_p]
        lib.emu_host_bytes.argtypes = [ctypes.c_uint64, ctypes.c_size_t]
        lib.emu_host_bytes.restype = ctypes.c_void_p
        lib.emu_launch.argtypes = [
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.POINTER(Access), ctypes.c_int),
            *(KERNEL, ctypes.c_void_p),
        ]
        lib.emu_launch_row_kernel.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(RowKernel)]

    def enable(self, on: bool = True) -> None:
        """Offer a device; without this ``cuInit`` finds none."""
        self.lib.emu_enable(int(on))

    def reset(self) -> None:
        """No delays, failures, trace or hazards; one device with 8 GiB."""
        self.lib.emu_drain()
        self.fail_clear()
        for kind in range(6):
            self.delay(kind)
        for engine in range(3):
            self.lib.emu_set_engine_width(engine, 1)
        self.memory(8 << 30)
        self.devices(1)
        self.driver_version(13.0)
        self.recycle_streams(False)
        self.lib.emu_trace(0)
        self.clear_hazards()

    def delay(self, kind: int, milliseconds: float = 0.0, bytes_per_second: float = 0.0) -> None:
        """Time of each operation of ``kind``: a fixed part, and one for its bytes (0: infinitely fast)."""
        self.lib.emu_set_delay(kind, round(milliseconds * 1e6), bytes_per_second)

    def delays(self, h2d: float, compute: float, d2h: float) -> None:
        """Fixed times in ms of the three stages of a batch."""
        self.delay(H2D, h2d)
        self.delay(COMPUTE, compute)
        self.delay(D2H, d2h)

    def engine_width(self, engine: int, width: int) -> None:
        """How many operations an engine runs at once."""
        self.lib.emu_set_engine_width(engine, width)

    def memory(self, size: int) -> None:
        """Device memory in bytes."""
        self.lib.emu_set_memory(size)

    def devices(self, count: int) -> None:
        """How many devices there are."""
        self.lib.emu_set_device_count(count)

    def driver_version(self, version: float) -> None:
        """CUDA version of the driver."""
        major, minor = divmod(round(10 * version), 10)
        self.lib.emu_set_driver_version(1000 * major + 10 * minor)  # as cuDriverGetVersion has it

    def recycle_streams(self, on: bool = True) -> None:
        """Give the handle of a stream that was destroyed to the next one; otherwise no handle comes twice."""
        self.lib.emu_recycle_streams(int(on))

    def fail(self, name: str, *, skip: int = 0, count: int = 1, code: int | None = None, sticky: bool = False) -> None:
        """Let ``count`` calls of a driver function fail after ``skip`` good ones (-1: all)."""
        if code is None:
            code = LAUNCH_FAILED if sticky or name.startswith("op:") else REFUSED
        self.lib.emu_fail(name.encode(), skip, count, code, int(sticky))

    def fail_clear(self) -> None:
        """Forget all failures that were asked for."""
        self.lib.emu_fail_clear()

    def calls(self, name: str) -> int:
        """How often a driver function was called."""
        return int(self.lib.emu_calls(name.encode()))

    def live(self) -> dict[str, int]:
        """What exists now: contexts, streams, memory and so on."""
        return {name: int(self.lib.emu_live(index)) for index, name in enumerate(_COUNTED)}

    def drain(self) -> None:
        """Wait until nothing is under way."""
        self.lib.emu_drain()

    @contextlib.contextmanager
    def tracing(self) -> Iterator[list[Operation]]:
        """Record the timeline; the list is filled when the block ends."""
        operations: list[Operation] = []
        self.lib.emu_trace(1)
        try:
            yield operations
        finally:
            self.drain()
            rows = (_Row * self.lib.emu_trace_read(None, 0))()
            self.lib.emu_trace_read(rows, len(rows))
            self.lib.emu_trace(0)
            for r in rows:
                times = (r.enqueued * 1e-6, r.start * 1e-6, r.finish * 1e-6)
                operations.append(Operation(r.stream, r.kind, r.graph, *times, r.bytes, bool(r.pageable)))

    def hazards(self) -> list[str]:
        """Races and misuse seen so far, each once."""
        text = ctypes.create_string_buffer(1000)
        found = []
        for index in range(self.lib.emu_hazard(-1, None, 0)):
            self.lib.emu_hazard(index, text, len(text))
            found.append(text.value.decode())
        return found

    def report(self, text: str) -> None:
        """Add a hazard."""
        self.lib.emu_report_hazard(text.encode())

    def clear_hazards(self) -> None:
        """Forget the hazards."""
        self.lib.emu_hazards_clear()

    def break_contexts(self, code: int = ILLEGAL_ADDRESS) -> None:
        """Give every context a sticky error."""
        self.lib.emu_break_context(code)

    def host_view(self, address: int, size: int) -> ctypes.Array[ctypes.c_uint8]:
        """The bytes behind a device address."""
        found = self.lib.emu_host_bytes(address, size)
        if not found:
            raise ValueError(f"{size} bytes at {address:#x} are not inside one device allocation")
        return (ctypes.c_uint8 * size).from_address(found)


_loaded: list[Emulator] = []


def load() -> Emulator:
    """The emulator of this process, built and loaded on the first call."""
    if not _loaded:
        from cuda_emulator.build import build_emulator

        _loaded.append(Emulator(build_emulator()))
    return _loaded[0]
