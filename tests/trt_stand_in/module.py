"""A module object that poses as ``tensorrt`` 10.16 or 11.4 or ``tensorrt_rtx`` 1.7. For tests only.

It has the runtime: plans are loaded and executed on streams of the emulated CUDA driver. Any name that the real
bindings of that version lack is refused.
"""

from __future__ import annotations

import enum
import importlib.machinery
import types
from typing import Any

from cuda_emulator.emulator import Emulator
from trt_stand_in import runtime
from trt_stand_in.api import Api, bind

_ENUMS = (
    "CudaGraphStrategy",
    "DataType",
    "DynamicShapesKernelSpecializationStrategy",
    "ExecutionContextAllocationStrategy",
    "TensorIOMode",
)
_CLASSES = (
    runtime.Runtime,
    runtime.ICudaEngine,
    runtime.IExecutionContext,
    runtime.IRuntimeConfig,
    runtime.IRuntimeCache,
)


class _Module(types.ModuleType):
    _api: Api

    def __getattr__(self, name: str) -> Any:
        if name in self._api.names:
            raise NotImplementedError(f"the stand-in has no {self.__name__}.{name}")
        raise AttributeError(f"{self.__name__} {self._api.version} has no attribute {name!r}")


class _Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """See the real class of this name; subclasses have attributes of their own.

    The first logger that a module gets is the one it keeps; when that is freed, the next message crashes.
    """

    Severity = _Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = _Severity

    def log(self, severity: _Severity, msg: str) -> None:
        raise NotImplementedError


def make_module(key: str, emulator: Emulator) -> types.ModuleType:
    """The stand-in for one version, see :data:`~trt_stand_in.api.VERSIONS`; put it into ``sys.modules``."""
    api = Api(key)
    module = _Module(api.module)
    module._api = api
    module.__spec__ = importlib.machinery.ModuleSpec(api.module, None)
    module.__version__ = api.version
    module.ILogger = ILogger
    for name in _ENUMS:
        if name in api.names:
            setattr(module, name, enum.Enum(name, api.members(name), module=api.module))
    classes = {cls.__name__: bind(api, cls) for cls in _CLASSES if cls.__name__ in api.names}
    loggers = runtime.Loggers(emulator)
    for name, cls in classes.items():
        cls._classes, cls._module, cls._emulator = classes, module, emulator
        cls._loggers = loggers
        setattr(module, name, cls)
    return module
