"""From an engine bundle to predictions. Imports nothing heavy until a bundle is opened.

with open_bundle("engines/iresnet101-fp16") as runner:
    predictions = runner.classify(["cat.jpg"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infer.backends.base import GpuOptions as GpuOptions
    from infer.backends.base import Outputs as Outputs
    from infer.errors import AccuracyError as AccuracyError
    from infer.errors import BuildError as BuildError
    from infer.errors import BundleError as BundleError
    from infer.errors import DeviceError as DeviceError
    from infer.errors import DeviceMemoryError as DeviceMemoryError
    from infer.errors import GraphError as GraphError
    from infer.errors import ImageError as ImageError
    from infer.errors import InconclusiveError as InconclusiveError
    from infer.errors import InputError as InputError
    from infer.errors import IResNetError as IResNetError
    from infer.errors import KnownAnswersError as KnownAnswersError
    from infer.errors import MissingDependencyError as MissingDependencyError
    from infer.errors import ProcessError as ProcessError
    from infer.errors import TargetUnavailableError as TargetUnavailableError
    from infer.errors import UnsupportedError as UnsupportedError
    from infer.errors import UntrainedError as UntrainedError
    from infer.errors import WeightsError as WeightsError
    from infer.predictions import Prediction as Prediction
    from infer.runner import Runner as Runner
    from infer.runner import open_bundle as open_bundle

__version__ = "0.1.0"

_HOMES = {
    "AccuracyError": "infer.errors",
    "BuildError": "infer.errors",
    "BundleError": "infer.errors",
    "DeviceError": "infer.errors",
    "DeviceMemoryError": "infer.errors",
    "GpuOptions": "infer.backends.base",
    "GraphError": "infer.errors",
    "IResNetError": "infer.errors",
    "ImageError": "infer.errors",
    "InconclusiveError": "infer.errors",
    "InputError": "infer.errors",
    "KnownAnswersError": "infer.errors",
    "MissingDependencyError": "infer.errors",
    "Outputs": "infer.backends.base",
    "Prediction": "infer.predictions",
    "ProcessError": "infer.errors",
    "Runner": "infer.runner",
    "TargetUnavailableError": "infer.errors",
    "UnsupportedError": "infer.errors",
    "UntrainedError": "infer.errors",
    "WeightsError": "infer.errors",
    "open_bundle": "infer.runner",
}
__all__ = [
    "AccuracyError",
    "BuildError",
    "BundleError",
    "DeviceError",
    "DeviceMemoryError",
    "GpuOptions",
    "GraphError",
    "IResNetError",
    "ImageError",
    "InconclusiveError",
    "InputError",
    "KnownAnswersError",
    "MissingDependencyError",
    "Outputs",
    "Prediction",
    "ProcessError",
    "Runner",
    "TargetUnavailableError",
    "UnsupportedError",
    "UntrainedError",
    "WeightsError",
    "__version__",
    "open_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
