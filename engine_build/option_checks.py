"""Options that cannot be used, refused before any work is done."""

from __future__ import annotations

import math

from calibration.request import Request
from calibration.thresholds import check_method
from engine_build.quantise.int8 import Int8Options
from engine_build.source import SourceOptions
from infer.errors import InputError
from infer.sources import iter_records

_MOST_SEED = 2**63 - 1  # torch takes no more


def check_source(options: SourceOptions) -> None:
    """Refuse a width or seed that no network can have, and what a graph of the user's own has already.

    Raises:
        InputError: says which.
    """
    if options.width is not None and not 0 < options.width < math.inf:
        raise InputError(f"width: expected a number above 0, such as 0.25, found {options.width}")
    check_seed(options.seed)
    if options.onnx is not None:
        for name in ("weights", "num_classes", "width"):
            if (value := getattr(options, name)) is not None:
                raise InputError(f"{name}: an ONNX graph has its own, found {value}; leave the option out")


def check_seed(seed: int) -> None:
    """Raises:
    InputError: a seed that the generators do not take.
    """
    if not 0 <= seed <= _MOST_SEED:
        raise InputError(f"seed: expected a whole number from 0 to 2^63 - 1, found {seed}")


def check_request(request: Request) -> None:
    """Refuse an unknown method, a number of images that is none, and data without a single image.

    Raises:
        InputError: says which.
    """
    check_method(request.method, request.parameters)
    if request.limit < 1:
        raise InputError(f"calibration images: expected at least 1, found {request.limit}")
    check_seed(request.seed)
    check_data(request.data)


def check_data(data: tuple[str, ...]) -> None:
    """Raises:
    InputError: ``data`` is not empty, but holds no image.
    """
    if data:
        next(iter_records(data))


def check_calibration(options: Int8Options) -> None:
    """As :func:`check_request`; and the cache that is to be used has to be there.

    Raises:
        InputError: says what is wrong.
    """
    if options.cache is None:
        check_request(options.calibration)
    elif not options.cache.is_file():
        raise InputError(f"no calibration cache at {options.cache}; make one with `iresnet calibrate`")
