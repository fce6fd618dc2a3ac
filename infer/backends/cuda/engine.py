"""A TensorRT plan, deserialised and checked, and the execution contexts made from it.

The same code runs TensorRT 10, 11 and TensorRT for RTX. Execution contexts get their scratch memory from outside, so
that all of them share one allocation. Everything here needs the CUDA context of the device to be current.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from infer.backends.cuda.buffers import Layout, OutputOffsets, align
from infer.backends.cuda.gpus import driver_version
from infer.backends.cuda.logger import process_logger
from infer.bundle.tensors import CLASSES, INPUT, LOGITS, OUTPUTS, SCORES
from infer.errors import BundleError, DeviceError, DeviceMemoryError, IResNetError, TargetUnavailableError
from infer.files import write_bytes

RTX = "tensorrt_rtx"
_LOG = logging.getLogger(__name__)
_DTYPES = {INPUT: "UINT8", LOGITS: "FLOAT", SCORES: "FLOAT", CLASSES: "INT32"}


class Engine:
    """A deserialised plan.

    Args:
        plan: the file.
        target: ``tensorrt`` or ``tensorrt_rtx``, also the name of the module.
        cuda_graphs: TensorRT for RTX only: let it capture graphs by itself.
        runtime_cache: TensorRT for RTX only: file for the kernels it compiles on this GPU, read if it is there.
        specialization: TensorRT for RTX only: when it compiles for a batch size, ``eager`` or ``none``.
        host_code: see :class:`~infer.backends.base.GpuOptions`.

    Raises:
        TargetUnavailableError: the plan is not for this version of TensorRT or this GPU.
        DeviceMemoryError: the weights do not fit.
        BundleError: the plan's inputs or outputs are not those of a classifier of this project.

    Attributes:
        layout: shapes of its tensors.
        largest_batch: of its profile.
        graphs_inside: it captures CUDA graphs by itself.
        specialized: it compiles kernels for single batch sizes while it runs.
    """

    def __init__(
        self,
        plan: Path,
        target: str,
        *,
        cuda_graphs: bool,
        runtime_cache: Path | None,
        specialization: str = "eager",
        host_code: bool = False,
    ) -> None:
        self._trt: Any = importlib.import_module(target)
        self._logger = process_logger(self._trt)
        self._logger.take_errors()  # of whatever this thread did before
        self._runtime: Any = self._make_runtime(target)
        self._runtime.engine_host_code_allowed = host_code
        self.graphs_inside = target == RTX and cuda_graphs
        self.specialized = target == RTX
        self._cache_file = runtime_cache if target == RTX else None
        self._cached = b""
        self._specialization = specialization
        self._cache: Any = None
        self._config: Any = None
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise self.error(
                f"{plan}: {target} {self._trt.__version__} cannot load this plan; build it again with this version, "
                "on this GPU",
                TargetUnavailableError,
            )
        try:
            self.layout, self.largest_batch = self._read_tensors(plan)
            if target == RTX:
                self._config = self._make_rtx_config()
        except BaseException:
            self.close()  # now, while the context is current
            raise

    def _make_runtime(self, target: str) -> Any:
        try:
            runtime = self._trt.Runtime(self._logger)
        except TypeError as error:  # "factory function returned nullptr": CUDA could not be initialised
            raise self.error(
                f"{target} {self._trt.__version__} cannot use the installed NVIDIA driver (CUDA "
                f"{driver_version() or 'unknown'}): update the driver, or install a {target} for it; {error}",
                TargetUnavailableError,
            ) from error
        return runtime

    def _read_tensors(self, plan: Path) -> tuple[Layout, int]:
        # No local name for the engine: the traceback of an error would keep it alive beyond its context.
        trt = self._trt
        found = {self._engine.get_tensor_name(index): None for index in range(self._engine.num_io_tensors)}
        for name, dtype in _DTYPES.items():
            mode = trt.TensorIOMode.INPUT if name == INPUT else trt.TensorIOMode.OUTPUT
            if name not in found or self._engine.get_tensor_mode(name) != mode:
                raise BundleError(f"{plan}: expected the tensor {name!r}, found {', '.join(found)}; build it again")
            if self._engine.get_tensor_dtype(name) != getattr(trt.DataType, dtype):
                raise BundleError(f"{plan}: expected {name!r} as {dtype}, found {self._engine.get_tensor_dtype(name)}")
        if len(found) != len(_DTYPES):
            raise BundleError(f"{plan}: expected the tensors {', '.join(_DTYPES)}, found {', '.join(found)}")
        image = tuple(self._engine.get_tensor_shape(INPUT))[1:]
        logits, scores, classes = (tuple(self._engine.get_tensor_shape(name)) for name in OUTPUTS)
        if len(image) != 3 or image[2] != 3 or min(image) < 1 or len(logits) != 2 or scores != classes:
            raise BundleError(
                f"{plan}: expected images [N, H, W, 3], logits [N, C], scores and classes [N, k], found "
                f"{list(image)}, {list(logits)}, {list(scores)}, {list(classes)} behind the batch"
            )
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT, 0)
        if smallest[0] > 1:
            raise BundleError(f"{plan}: expected a profile from batch 1, found one from {smallest[0]}; build it again")
        return Layout((image[0], image[1], image[2]), logits[1], scores[1]), int(largest[0])

    def _make_rtx_config(self) -> Any:
        trt, config = self._trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategy = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if self.graphs_inside else strategy.DISABLED
        kernels = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(kernels, self._specialization.upper())
        if self._cache_file is not None:
            self._cache = config.create_runtime_cache()
            if self._cache_file.is_file():
                self._cached = self._cache_file.read_bytes()
                if not self._cache.deserialize(self._cached):
                    _LOG.info("%s was made by another GPU or version and is replaced", self._cache_file)
                    self._cached = b""
            config.set_runtime_cache(self._cache)
        return config

    def save_runtime_cache(self) -> None:
        """Write the kernels compiled since the engine was opened; a folder that cannot be written is no error."""
        if self._cache is None or self._cache_file is None:
            return
        data = bytes(self._cache.serialize())
        if data != self._cached:
            try:
                write_bytes(self._cache_file, data)
                self._cached = data
            except OSError as error:
                _LOG.info("the kernels compiled for this GPU are not kept: %s", error)

    def make_execution(self) -> Execution:
        """An execution context without scratch memory.

        Raises:
            DeviceMemoryError, DeviceError: TensorRT made none.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy if self._config is None else self._config)
        if context is None:
            raise self.error("TensorRT made no execution context", DeviceError)
        return Execution(self, context)

    def scratch_bytes(self, execution: Execution, max_batch: int) -> int:
        """Scratch memory that an execution of at most ``max_batch`` images needs, a multiple of 256."""
        if max_batch >= self.largest_batch:
            return align(int(self._engine.device_memory_size_v2))
        return align(execution.scratch_bytes(max_batch))

    def error(self, text: str, kind: type[IResNetError]) -> IResNetError:
        """``text`` with what TensorRT logged since the last error; out of memory is told from the rest."""
        said = "; ".join(self._logger.take_errors())
        if any(word in said.lower() for word in ("out of memory", "outofmemory", "cudaerrormemoryallocation")):
            kind = DeviceMemoryError
        return kind(f"{text} ({said})" if said else text)

    def close(self) -> None:
        """Drop the engine and the runtime; every execution must be gone before."""
        self._cache = self._config = None
        self._engine = None
        self._runtime = None


class Execution:
    """One execution context with what is bound to it. Not thread-safe; one batch at a time on the device."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine, self._context = engine, context
        self._rows = 0
        self._bound: tuple[int, int, int, int] | None = None

    def scratch_bytes(self, max_batch: int) -> int:
        """Bytes of scratch memory for ``max_batch`` images, less than the profile's largest batch needs."""
        self._set_rows(max_batch)
        return int(self._context.update_device_memory_size_for_shapes())

    def use_scratch(self, pointer: int, size: int) -> None:
        """Use this device memory for every execution from now on."""
        self._context.set_device_memory(pointer, size)

    def _set_rows(self, rows: int) -> None:
        if rows != self._rows:
            self._rows = 0
            if not self._context.set_input_shape(INPUT, (rows, *self._engine.layout.image)):
                raise self._engine.error(f"TensorRT refused a batch of {rows}", DeviceError)
            self._rows = rows

    def bind(self, rows: int, images: int, logits: int, scores: int, classes: int) -> None:
        """Set the batch and the device addresses of the tensors; cheap when nothing has changed."""
        self._set_rows(rows)
        bound = (images, logits, scores, classes)
        if bound != self._bound:
            self._bound = None
            for name, address in zip((INPUT, *OUTPUTS), bound, strict=True):
                if not self._context.set_tensor_address(name, address):
                    raise self._engine.error(f"TensorRT refused the address of {name!r}", DeviceError)
            self._bound = bound

    def bind_block(self, rows: int, images: int, block: int, at: OutputOffsets) -> None:
        """:meth:`bind` with the outputs in one block."""
        self.bind(rows, images, block + at.logits, block + at.scores, block + at.classes)

    def enqueue(self, stream: int) -> None:
        """Run the bound batch on a stream; returns before it has run."""
        if not self._context.execute_async_v3(stream):
            raise self._engine.error("TensorRT could not enqueue the batch", DeviceError)

    def close(self) -> None:
        """Drop the context."""
        self._context = None
