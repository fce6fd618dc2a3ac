"""From an iResNet checkpoint to a verified engine bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine_build.network.zoo import create_model as create_model

__version__ = "0.1.0"
__all__ = ["create_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from engine_build.network import zoo

        return getattr(zoo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
