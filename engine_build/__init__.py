"""From an iResNet checkpoint to a verified engine bundle.

folder, manifest = build(BuildOptions("iresnet101", precision="int8", weights=path))
network = create_model("iresnet101")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infer import __version__ as __version__

if TYPE_CHECKING:
    from engine_build.build_bundle import BuildOptions as BuildOptions
    from engine_build.build_bundle import build as build
    from engine_build.network.zoo import create_model as create_model

_HOMES = {
    "BuildOptions": "engine_build.build_bundle",
    "build": "engine_build.build_bundle",
    "create_model": "engine_build.network.zoo",
}
__all__ = ["BuildOptions", "__version__", "build", "create_model"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
