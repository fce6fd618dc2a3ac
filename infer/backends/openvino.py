"""The CPU target: OpenVINO, with static shapes, its own choice of streams and a model cache in the bundle.

A dynamic batch costs a quantised model about a quarter of its speed, so the graph is compiled once for each
power of two up to :data:`LARGEST_BATCH`, when it is first needed. A batch of one is compiled for latency (all
threads on one image), larger ones for throughput (independent streams).
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infer.backends.base import HostBackend, Outputs, PlanCheck
from infer.backends.cpu import cpu_flags, processor
from infer.backends.instruction_sets import instruction_set
from infer.backends.openvino_import import import_openvino
from infer.backends.openvino_pool import Pool
from infer.backends.signal_stack import signal_stack_kept
from infer.errors import KnownAnswersError, TargetUnavailableError

if TYPE_CHECKING:
    import openvino


LARGEST_BATCH = 8
MULTIPLYING = ("Convolution", "FullyConnected", "MatMul")
"""Types of the operations of a runtime graph that are convolutions and products."""
CACHE_FOLDER = "openvino.cache"
_HINT = "INFERENCE_PRECISION_HINT"
_FIRST_CONVERSION = threading.Lock()


def why_unavailable() -> str | None:
    """None when OpenVINO runs here, else one sentence that says what is missing."""
    from importlib.util import find_spec

    return None if find_spec("openvino") else "openvino is not installed; pip install openvino"


def make_core() -> openvino.Core:
    """A ``Core`` with its CPU plugin loaded, which leaves the thread's signal stack alone."""
    core: openvino.Core = import_openvino().Core()
    with signal_stack_kept():
        core.get_property("CPU", "FULL_DEVICE_NAME")
    return core


def computes_in(core: openvino.Core, precision: str) -> bool:
    """Whether this CPU computes in ``precision``: ``f32``, ``f16`` or ``bf16``.

    bf16 is ten times slower than float32 where it is emulated, and wrong under AVX2, so OpenVINO's list, which has it
    always, is not enough: the processor must have the instructions, and ``ONEDNN_MAX_CPU_ISA`` must allow them.
    """
    if _CAPABILITIES[precision] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    if precision != "bf16":
        return True
    flags = cpu_flags()
    return _allowed_isa() not in _ISA_WITHOUT_BF16 and (flags is None or not flags.isdisjoint(_BF16_FLAGS))


def _allowed_isa() -> str:
    """The instruction set that the user allows oneDNN at most, by its own name, empty for all."""
    variables = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    return next((value.upper() for name in variables if (value := os.environ.get(name))), "")


_CAPABILITIES = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")
_ISA_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def compiled_instruction_set(compiled: openvino.CompiledModel) -> str:
    """The instruction set of the kernels of a compiled model."""
    requirements = compiled_requirements(compiled)
    operations = (op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops())
    primitives = [str(info["primitiveType"].astype(str)) for info in operations if _kind(info) in MULTIPLYING]
    return instruction_set(primitives, requirements)


def compiled_requirements(compiled: openvino.CompiledModel) -> str:
    """OpenVINO's version and the instructions that a compiled model asks for, in OpenVINO's words; read in no time."""
    try:
        return str(compiled.get_property("RUNTIME_REQUIREMENTS"))
    except RuntimeError:  # an older OpenVINO
        return ""


def _kind(info: Any) -> str:
    return str(info["layerType"].astype(str)) if "layerType" in info else ""


class OpenVINOBackend(HostBackend):
    """An OpenVINO model on the CPU; see :class:`infer.backends.base.Backend`.

    Args:
        model: ``openvino.xml`` (with its ``.bin``) or an ONNX graph.
        options: OpenVINO properties for compilation, such as ``INFERENCE_PRECISION_HINT``; a CPU that would
            emulate the bf16 or f16 asked for computes in float32.
        cache: folder for compiled models; None, or a folder that cannot be written, compiles every time.
        threads: CPU threads; None lets OpenVINO decide.
        test: checks each batch size once it is compiled, before its first answer.

    Raises:
        TargetUnavailableError: OpenVINO is missing or refuses the model.
        KnownAnswersError: see ``test``.
    """

    target = "openvino"
    compiled_batches = tuple(1 << power for power in range(LARGEST_BATCH.bit_length()))

    def __init__(
        self,
        model: Path,
        options: dict[str, str] | None = None,
        cache: Path | None = None,
        threads: int | None = None,
        test: PlanCheck | None = None,
    ) -> None:
        super().__init__()
        if (missing := why_unavailable()) is not None:
            raise TargetUnavailableError(missing)
        _convert_once(import_openvino())
        self._core = make_core()
        self._options: dict[str, Any] = dict(options or {})
        hint = self._options.get(_HINT)
        if hint in ("bf16", "f16") and not computes_in(self._core, hint):  # built on another CPU
            self._options[_HINT] = "f32"
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        if cache is not None and _writable(cache):
            self._options["CACHE_DIR"] = str(cache)
        try:
            self._model = self._core.read_model(model)
        except RuntimeError as error:
            raise TargetUnavailableError(f"OpenVINO cannot read {model} ({_brief(error)})") from error
        self.input_shape = tuple(d.get_length() for d in list(self._model.input(0).partial_shape)[1:])
        self._lock = threading.Lock()
        self._pools: dict[int, Pool] = {}
        self._compiling: dict[int, threading.Lock] = {}
        self._refused: dict[int, KnownAnswersError] = {}
        self._closed, self._test = False, test
        self.max_batch = LARGEST_BATCH
        self._name = self._core.get_property("CPU", "FULL_DEVICE_NAME").strip()
        largest = self._pool(LARGEST_BATCH)
        self.in_flight = largest.size
        count = largest.compiled.get_property("INFERENCE_NUM_THREADS")
        self.device = f"CPU ({self._name}, {count} threads, {largest.size} streams)"

    def submit(self, batch: NDArray[np.uint8]) -> Future[Outputs]:
        """See :meth:`infer.backends.base.Backend.submit`.

        Raises:
            KnownAnswersError: batches of this size are compiled to something wrong.
        """
        count = len(batch)
        size = 1 << (count - 1).bit_length()
        if count < size:
            padded = np.zeros((size, *batch.shape[1:]), np.uint8)
            padded[:count] = batch
            batch = padded
        return self._pool(size).start(batch, count)

    def infer(self, batch: NDArray[np.uint8]) -> Outputs:
        """See :meth:`infer.backends.base.Backend.infer`."""
        return self.submit(batch).result()

    def runtime_model(self) -> openvino.Model:
        """The graph that really runs at the largest batch, with precisions and primitives in its ``rt_info``."""
        return self._pool(LARGEST_BATCH).compiled.get_runtime_model()

    @functools.cached_property
    def instruction_set(self) -> str:
        """What the multiplying kernels are made of here; see :mod:`infer.backends.instruction_sets`."""
        return compiled_instruction_set(self._pool(LARGEST_BATCH).compiled)

    def try_acquire(self, rows: int) -> None:
        """None: nothing would be gained, the batch is read where it is."""

    def close(self) -> None:
        """Wait for what is under way and release the models."""
        with self._lock:
            self._closed = True
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()

    def _pool(self, size: int) -> Pool:
        if (pool := self._ready(size)) is not None:
            return pool
        with self._lock:
            compiling = self._compiling.setdefault(size, threading.Lock())
        with compiling:  # other sizes are compiled meanwhile
            if (pool := self._ready(size)) is not None:
                return pool
            pool = self._compile(size)
            try:
                with self._lock:
                    self._require_open()
                    self._check(pool, size)
                    self._pools[size] = pool
            except BaseException as error:
                pool.close()
                if isinstance(error, KnownAnswersError):
                    self._refused[size] = error
                raise
            return pool

    def _ready(self, size: int) -> Pool | None:
        with self._lock:
            self._require_open()
            if (error := self._refused.get(size)) is not None:
                raise error
            return self._pools.get(size)

    def _require_open(self) -> None:
        if self._closed:
            raise TargetUnavailableError("this backend is closed")

    def _check(self, pool: Pool, size: int) -> None:
        if self._test is not None:
            self._test(size, lambda images: pool.start(images, len(images)).result(), self._machine(pool.compiled))

    def _machine(self, compiled: openvino.CompiledModel) -> Mapping[str, str]:
        """Everything that decides which kernels run."""
        instructions = compiled_requirements(compiled) or compiled_instruction_set(compiled)
        threads = compiled.get_property("INFERENCE_NUM_THREADS")
        options = sorted((key, str(value)) for key, value in self._options.items() if key != "CACHE_DIR")
        return {
            "device": self._name,
            "processor": processor(),
            "instructions": instructions,
            "library": f"openvino {import_openvino().__version__}",
            "options": str([*options, ("threads", threads)]),
        }

    def _compile(self, size: int) -> Pool:
        model = self._model.clone()
        model.reshape({0: [size, *self.input_shape]})
        hint = "LATENCY" if size == 1 else "THROUGHPUT"
        try:
            with _process.compiling:
                compiled = self._core.compile_model(model, "CPU", {"PERFORMANCE_HINT": hint, **self._options})
        except RuntimeError as error:
            raise TargetUnavailableError(f"OpenVINO cannot compile the model ({_brief(error)})") from error
        return Pool(compiled)


class _Process:
    """``compiling``: OpenVINO takes the C locale for the process while it reads its cache, and puts back what it found.

    Two threads at once would put back the C locale, for good, and Python then reads and writes files as ASCII.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """A lock that nobody holds: in a fork, the thread that held the old one is not there."""
        self.compiling = threading.Lock()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.renew)


def _convert_once(ov: Any) -> None:
    """Convert an array to a tensor and back.

    OpenVINO makes its tables of number types at the first conversion. When two threads do that at once, one waits for
    the other's table with the interpreter's lock, which the other needs: neither goes on.
    """
    with _FIRST_CONVERSION:
        for kind in (np.uint8, np.float32, np.int32):
            ov.Tensor(np.zeros(1, kind)).data.copy()


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
