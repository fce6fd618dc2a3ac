"""TensorRT-RTX posing as TensorRT 10 or 11: real parsing and building, behind the names that version really has.

Full TensorRT needs a GPU and libraries that are not everywhere. The builder's code is the same for all three, so
here the RTX module answers in place of the other, every name is held against that version's own list, and the parts RTX
lacks (timing cache, hardware compatibility) are played.
"""

from __future__ import annotations

import ctypes
import importlib
import json
from pathlib import Path

API = {
    path.name.removesuffix(".json"): json.loads(path.read_text())
    for path in sorted((Path(__file__).parents[3] / "trt_api").glob("*.json"))
}
VERSIONS = {
    "10.16": API["tensorrt-10.16.1.11"],
    "11.4": API["tensorrt-11.4.0.106"],
    "rtx": API["tensorrt_rtx-1.7.1.116"],
}
_PASSED_THROUGH = {"ILogger", "IProgressMonitor", "IHostMemory", "Dims"}  # subclassed, or read as buffer or sequence


class PosingModule:
    """Put it into ``sys.modules`` as ``tensorrt``.

    Attributes:
        calls: what was played instead of passed on, as tuples.
        cache_gpu: the GPU whose timing caches fit.
        when_timed: called when a finished build asks for its timings.
    """

    def __init__(self, version):
        self._api = VERSIONS[version]
        self._real = importlib.import_module("tensorrt_rtx")
        self.__version__ = {"10.16": "10.16.1.11", "11.4": "11.4.0.106"}[version]
        self.calls = []
        self.cache_gpu = b"this gpu"
        self.when_timed = lambda: None
        self.logger = None

    def __getattr__(self, name):
        if name not in self._api:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        real = getattr(self._real, name)
        if "members" in self._api[name]:
            return PosingEnum(self, name, real)
        if name in _PASSED_THROUGH or not isinstance(real, type):
            return real

        def construct(*args, **kwargs):
            if name == "Builder":
                self.logger = args[0]
            return PosingObject(self, name, real(*map(unwrap, args), **kwargs))

        return construct


class PosingEnum:
    def __init__(self, module, name, real):
        self._module, self._name, self._real = module, name, real

    def __getattr__(self, member):
        if member not in self._module._api[self._name]["members"]:
            raise AttributeError(f"TensorRT {self._module.__version__}: {self._name} has no {member}")
        return getattr(self._real, member)


class PosingObject:
    def __init__(self, module, name, real):
        self.__dict__.update(_module=module, _name=name, _real=real, _played=None)

    def _check(self, attribute):
        if attribute not in self._module._api[self._name]["attributes"]:
            raise AttributeError(f"TensorRT {self._module.__version__}: {self._name} has no {attribute}")

    def __getattr__(self, attribute):
        self._check(attribute)
        if played := getattr(self, f"_play_{attribute}", None) if attribute in PLAYED else None:
            return played
        value = getattr(self._real, attribute)
        if not callable(value):
            return self._wrap(value)
        return lambda *args, **kwargs: self._wrap(value(*map(unwrap, args), **kwargs))

    def __setattr__(self, attribute, value):
        self._check(attribute)
        if attribute == "hardware_compatibility_level":
            self._module.calls.append((attribute, value.name))
        else:
            setattr(self._real, attribute, unwrap(value))

    def _wrap(self, value):
        name = type(value).__name__
        if name in _PASSED_THROUGH or "attributes" not in self._module._api.get(name, {}):
            return value
        return PosingObject(self._module, name, value)

    def _play_set_flag(self, flag):
        self._module.calls.append(("set_flag", flag.name))  # RTX cannot build version-compatible plans in this way

    def _play_create_timing_cache(self, stored):
        stored = bytes(stored)
        if stored and not stored.startswith(b"timings of "):
            self._module.logger.log(self._module.ILogger.ERROR, "deserializeTimingCache: Error Code 2: bad magic")
            return None
        return PlayedCache(stored)

    def _play_set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache.content and not cache.content.startswith(b"timings of " + self._module.cache_gpu):
            self._module.logger.log(self._module.ILogger.ERROR, "setTimingCache: Error Code 1: other device")
            return False
        self.__dict__["_played"] = cache
        self._module.calls.append(("set_timing_cache", cache.content))
        return True

    def _play_get_timing_cache(self):
        if self._played is None:
            return None
        self._module.when_timed()
        start = self._played.content or b"timings of " + self._module.cache_gpu + b":"
        return PlayedCache(start + b" one more build")


PLAYED = {"set_flag", "create_timing_cache", "set_timing_cache", "get_timing_cache"}


class PlayedCache:
    """``timings of GPU:`` and what was timed, each behind a space."""

    def __init__(self, content):
        self.content = content

    def combine(self, other, ignore_mismatch):
        assert ignore_mismatch is False
        (own, _, ours), (gpu, _, theirs) = (cache.content.partition(b":") for cache in (self, other))
        if own != gpu:
            return False
        if theirs not in ours:
            self.content += theirs
        return True

    def serialize(self):
        return memoryview(self.content)


def unwrap(value):
    return value._real if isinstance(value, PosingObject) else value


class PlayedDriver:
    """``libcuda`` with one GPU per entry of ``gpus``, ``("NVIDIA L4", (8, 9))``; ``init`` is what cuInit returns."""

    def __init__(self, gpus, init=0):
        self.gpus, self.init = gpus, init

    def cuInit(self, _flags):
        return self.init

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device, ordinal):
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        ctypes.memmove(buffer, self.gpus[device.value][0].encode() + b"\0", len(self.gpus[device.value][0]) + 1)
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.gpus[device.value][1][{75: 0, 76: 1}[attribute]]
        return 0
