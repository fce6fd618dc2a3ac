"""From images to activation ranges to a calibration cache.

:func:`calibrate` runs images through a graph once and gives a :class:`CalibrationCache`, scales with their provenance.
:func:`calibration.streaming.collect` is the pass by itself: its :class:`Statistics` give scales by any method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infer import __version__ as __version__

if TYPE_CHECKING:
    from calibration.cache import CalibrationCache as CalibrationCache
    from calibration.cache import check_matches as check_matches
    from calibration.cache import read_cache as read_cache
    from calibration.cache import write_cache as write_cache
    from calibration.from_images import Calibrated as Calibrated
    from calibration.from_images import calibrate as calibrate
    from calibration.provenance import Provenance as Provenance
    from calibration.request import Request as Request
    from calibration.statistics import Statistics as Statistics

_HOMES = {
    "Calibrated": "calibration.from_images",
    "CalibrationCache": "calibration.cache",
    "Provenance": "calibration.provenance",
    "Request": "calibration.request",
    "Statistics": "calibration.statistics",
    "calibrate": "calibration.from_images",
    "check_matches": "calibration.cache",
    "read_cache": "calibration.cache",
    "write_cache": "calibration.cache",
}
__all__ = [
    "Calibrated",
    "CalibrationCache",
    "Provenance",
    "Request",
    "Statistics",
    "__version__",
    "calibrate",
    "check_matches",
    "read_cache",
    "write_cache",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
