"""From images to activation ranges to a calibration cache.

:func:`calibration.streaming.collect` streams images and gives :class:`Statistics`; those give scales by any method;
scales with their provenance are a :class:`CalibrationCache`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.cache import CalibrationCache as CalibrationCache
    from calibration.cache import Coverage as Coverage
    from calibration.cache import check_matches as check_matches
    from calibration.cache import read_cache as read_cache
    from calibration.cache import write_cache as write_cache
    from calibration.provenance import Provenance as Provenance
    from calibration.statistics import Statistics as Statistics

# `collect` is missing on purpose: the package attribute of that name is the module.
_HOMES = {
    "CalibrationCache": "cache",
    "Coverage": "cache",
    "Provenance": "provenance",
    "Statistics": "statistics",
    "check_matches": "cache",
    "read_cache": "cache",
    "write_cache": "cache",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"calibration.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
