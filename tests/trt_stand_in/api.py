"""The public names of one version of TensorRT's Python bindings, and classes that refuse all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LISTS = Path(__file__).resolve().parents[1] / "trt_api"
VERSIONS = {
    "tensorrt-10": ("tensorrt", "10.16.1.11"),
    "tensorrt-11": ("tensorrt", "11.4.0.106"),
    "tensorrt_rtx": ("tensorrt_rtx", "1.7.1.116"),
}


class Api:
    """The names of one version."""

    def __init__(self, key: str) -> None:
        self.module, self.version = VERSIONS[key]
        names: dict[str, Any] = json.loads((LISTS / f"{self.module}-{self.version}.json").read_text())
        self.names = names

    def attributes(self, cls: str) -> frozenset[str]:
        """Attributes of a class, none when the version lacks the class."""
        return frozenset(self.names.get(cls, {}).get("attributes", ()))

    def members(self, enum: str) -> list[str]:
        """Members of an enumeration."""
        return list(self.names[enum]["members"])


class Guarded:
    """Base of the classes of the stand-in: a name that the version lacks raises AttributeError, also when it is set,
    and one that the version has and the stand-in does not raises NotImplementedError."""

    _api: Api
    _class: str

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            type(self)._require(name)
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        type(self)._require(name)
        raise NotImplementedError(f"the stand-in has no {self._class}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            type(self)._require(name)
        object.__setattr__(self, name, value)

    @classmethod
    def _require(cls, name: str) -> None:
        if name not in cls._api.attributes(cls._class):
            raise AttributeError(f"{cls._class} of {cls._api.module} {cls._api.version} has no attribute {name!r}")


def bind(api: Api, cls: type[Guarded]) -> type[Guarded]:
    """``cls`` as the class of its name in ``api``."""
    return type(cls.__name__, (cls,), {"_api": api, "_class": cls.__name__})
