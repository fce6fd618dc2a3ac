"""Runtime, engine and execution context of the stand-in."""

from __future__ import annotations

import ctypes
import json
import threading
import weakref
from typing import Any

from cuda_emulator.emulator import Emulator
from trt_stand_in.api import Guarded
from trt_stand_in.auxiliary import AuxiliaryStreams
from trt_stand_in.kernels import Launch
from trt_stand_in.plan import StandInPlan, read_plan


class Counters:
    """What tests ask of the stand-in and the API does not tell."""

    compiled = 0  # kernels that TensorRT for RTX compiled
    in_background = 0  # of those, by a thread of its own: LAZY, which is what the real one does unless told otherwise
    executions = 0  # execution contexts alive


class Loggers:
    """The first logger of a module, which is used for everything; TensorRT does not keep it alive."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._first: weakref.ref[Any] | None = None

    def register(self, logger: Any) -> None:
        if self._first is None:
            self._first = weakref.ref(logger)
        elif self._first() is not logger:
            text = "The logger passed into createInferRuntime differs from one already registered"
            self.log("WARNING", text)

    def log(self, severity: str, message: str) -> None:
        first = self._first() if self._first is not None else None
        if first is None:
            self._emulator.report("a message to a TensorRT logger that was freed")  # really a crash
            return
        first.log(getattr(type(first), severity), message)


class _Memory:
    """Device memory of a TensorRT object."""

    def __init__(self, emulator: Emulator, size: int) -> None:
        self.emulator, self.pointer = emulator, ctypes.c_uint64()
        self.status = emulator.lib.cuMemAlloc_v2(ctypes.byref(self.pointer), ctypes.c_size_t(size)) if size else 0

    def free(self) -> None:
        if self.pointer.value and self.emulator.lib.cuMemFree_v2(self.pointer) == 201:
            self.emulator.report("a TensorRT object was destroyed without a current context")
        self.pointer.value = 0


class Runtime(Guarded):
    """See the real class of this name."""

    _emulator: Emulator
    _loggers: Loggers

    def __init__(self, logger: Any) -> None:
        version = ctypes.c_int()
        self._emulator.lib.cuDriverGetVersion(ctypes.byref(version))
        if version.value < 12000:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._loggers.register(logger)
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        count = ctypes.c_int()
        if self._emulator.lib.cuDeviceGetCount(ctypes.byref(count)):
            # Full TensorRT crashes here; the caller should have asked the driver first.
            raise RuntimeError("the stand-in's runtime was used without a CUDA driver")
        try:
            plan = read_plan(bytes(serialized_engine))
        except (ValueError, TypeError, KeyError) as error:
            return self._refuse(f"Serialization assertion magicTag == kMagic failed: {error}")
        if (plan.module, plan.version) != (self._api.module, self._api.version):
            return self._refuse(
                f"The engine plan file is not compatible with this version of TensorRT ({plan.version})"
            )
        if plan.host_code and not self.engine_host_code_allowed:
            return self._refuse("The engine contains host code, which IRuntime::getEngineHostCodeAllowed() forbids")
        memory = _Memory(self._emulator, plan.weights_bytes)
        if memory.status:
            return self._refuse(
                f"[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime ({memory.status}: out of memory)"
            )
        return self._classes["ICudaEngine"](self._emulator, plan, memory)

    def _refuse(self, message: str) -> None:
        self._loggers.log("ERROR", message)


class ICudaEngine(Guarded):
    """See the real class of this name."""

    def __init__(self, emulator: Emulator, plan: StandInPlan, memory: _Memory) -> None:
        self._emulator, self._plan, self._memory = emulator, plan, memory

    @property
    def num_io_tensors(self) -> int:
        return len(self._plan.tensors)

    @property
    def device_memory_size_v2(self) -> int:
        return self._scratch(self._plan.max_batch)

    def _scratch(self, rows: int) -> int:
        return self._plan.scratch_bytes + rows * self._plan.scratch_per_image

    def get_tensor_name(self, index: int) -> str:
        return self._plan.tensors[index][0]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._module.TensorIOMode
        names = [tensor for tensor, _ in self._plan.tensors]
        if name not in names:
            return mode.NONE
        return mode.INPUT if name == names[0] else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._module.DataType, dict(self._plan.tensors)[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        k = self._plan.top_k
        return {"images": (-1, *self._plan.image), "logits": (-1, self._plan.num_classes)}.get(name, (-1, k))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        sizes = (self._plan.min_batch, self._plan.max_batch, self._plan.max_batch)
        return [(size, *self._plan.image) for size in sizes]

    def create_runtime_config(self) -> Any:
        return self._classes["IRuntimeConfig"]()

    def create_execution_context(self, argument: Any = None) -> Any:
        strategies = self._module.ExecutionContextAllocationStrategy
        config = argument if isinstance(argument, IRuntimeConfig) else None
        strategy = config._strategy if config is not None else argument
        assert strategy == strategies.USER_MANAGED, "the stand-in only makes contexts with memory from outside"
        memory = _Memory(self._emulator, self._plan.context_bytes)
        if memory.status:
            self._loggers.log("ERROR", f"Error Code 1: Cuda Runtime ({memory.status}: out of memory)")
            return None
        return self._classes["IExecutionContext"](self, memory, config)

    def __del__(self) -> None:
        self._memory.free()


class IExecutionContext(Guarded):
    """See the real class of this name."""

    def __init__(self, engine: ICudaEngine, memory: _Memory, config: Any) -> None:
        self._engine, self._memory, self._config = engine, memory, config
        self._rows = 0
        self._partition = engine._plan.max_batch
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._seen: set[int] = set()
        self._busy = threading.Lock()
        self._aux = AuxiliaryStreams(engine._emulator, engine._plan.aux_streams)
        Counters.executions += 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        plan = self._engine._plan
        if name != "images" or tuple(shape[1:]) != plan.image or not plan.min_batch <= shape[0] <= plan.max_batch:
            return self._fail(f"Static dimension mismatch while setting input shape for {name}: {shape}")
        self._rows = shape[0]
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in dict(self._engine._plan.tensors) or memory % 256:
            return self._fail(f"set_tensor_address: {name} at {memory:#x}")
        self._addresses[name] = int(memory)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        if self._engine._plan.resizable:
            self._partition = self._rows
        return self._engine._scratch(self._partition)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self._scratch = (int(memory), int(size))

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._busy.acquire(blocking=False):
            self._engine._emulator.report("one execution context used by two threads at once")
            return False
        try:
            return self._execute(int(stream_handle))
        finally:
            self._busy.release()

    def _execute(self, stream: int) -> bool:
        plan, emulator = self._engine._plan, self._engine._emulator
        needed = self._engine._scratch(self._partition)
        if stream in (0, 1, 2):
            emulator.report("a network enqueued on the default stream")
        if self._rows == 0 or set(self._addresses) != set(dict(plan.tensors)):
            return self._fail("enqueueV3: a shape or an address is not set")
        if self._rows > self._partition or self._scratch[1] < needed:
            return self._fail(
                f"enqueueV3: {self._scratch[1]} bytes of device memory, {needed} needed for {self._rows} rows"
            )
        status = ctypes.c_int()
        emulator.lib.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status))
        if status.value and (self._rows not in self._seen or not plan.capturable):
            return self._fail("Cask convolution execution: operation not permitted when stream is capturing")
        if self._rows not in self._seen:
            self._seen.add(self._rows)
            if self._config is not None:
                self._config._compile(self._rows)
        call = Launch(
            emulator,
            plan.graph,
            self._rows,
            plan.image,
            plan.num_classes,
            plan.top_k,
            **self._addresses,
            scratch=self._scratch[0],
            scratch_bytes=self._engine._scratch(self._rows),
        )
        if code := self._aux.launch(call, stream, captured=bool(status.value)):
            return self._fail(f"IExecutionContext::enqueueV3: Error Code 1: Cuda Driver ({code})")
        return True

    def _fail(self, message: str) -> bool:
        self._loggers.log("ERROR", message)
        return False

    def __del__(self) -> None:
        Counters.executions -= 1
        self._aux.close()
        self._memory.free()


class IRuntimeConfig(Guarded):
    """See the real class of this name."""

    def __init__(self) -> None:
        self._strategy: Any = None
        self._cache: Any = None
        if "cuda_graph_strategy" in self._api.attributes("IRuntimeConfig"):
            self.cuda_graph_strategy = self._module.CudaGraphStrategy.DISABLED
            kernels = self._module.DynamicShapesKernelSpecializationStrategy
            self.dynamic_shapes_kernel_specialization_strategy = kernels.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> Any:
        return self._classes["IRuntimeCache"]()

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return True

    def _compile(self, rows: int) -> None:
        """A kernel for a batch size, unless the cache has it."""
        if "create_runtime_cache" not in self._api.attributes("IRuntimeConfig"):
            return
        kernels = self._cache._kernels if self._cache is not None else set()
        strategy = self.dynamic_shapes_kernel_specialization_strategy
        if strategy != self._module.DynamicShapesKernelSpecializationStrategy.NONE and rows not in kernels:
            kernels.add(rows)
            Counters.compiled += 1
            Counters.in_background += strategy == self._module.DynamicShapesKernelSpecializationStrategy.LAZY


class IRuntimeCache(Guarded):
    """See the real class of this name."""

    def __init__(self) -> None:
        self._kernels: set[int] = set()

    def serialize(self) -> bytes:
        return json.dumps({"version": self._api.version, "kernels": sorted(self._kernels)}).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            found = json.loads(bytes(blob))
        except ValueError:
            return False
        if not isinstance(found, dict) or found.get("version") != self._api.version:
            return False
        self._kernels = set(found["kernels"])
        return True
