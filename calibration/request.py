"""What to calibrate with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from calibration.choices import DEFAULT_LIMIT, DEFAULT_METHOD, Method


@dataclass(frozen=True)
class Request:
    """What to calibrate with.

    Attributes:
        data: images: files, folders, tar files, glob patterns.
        limit: how many are used at most; classes (folders) as even as they allow.
        method: one of :data:`calibration.choices.METHODS`.
        parameters: of the method, such as ``{"percentile": 99.99}``.
        seed: of the choice of images.
    """

    data: tuple[str, ...]
    limit: int = DEFAULT_LIMIT
    method: Method = DEFAULT_METHOD
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
