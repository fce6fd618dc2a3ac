"""From an engine bundle to predictions. Imports nothing heavy until a bundle is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer.predictions import Prediction as Prediction
    from infer.runner import Runner as Runner
    from infer.runner import open_bundle as open_bundle

_LAZY = {"open_bundle": "infer.runner", "Runner": "infer.runner", "Prediction": "infer.predictions"}
__all__ = ["Prediction", "Runner", "open_bundle"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
