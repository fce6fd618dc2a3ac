"""The shapes of the networks, free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from infer.errors import InputError

STEM_CHANNELS = 64
STAGE_PLANES = (64, 128, 256, 512)


@dataclass(frozen=True)
class Architecture:
    """Shape of one network.

    Attributes:
        kind: ``basic`` (two 3x3), ``bottleneck`` (1x1, 3x3, 1x1 with expansion 4) or ``group``
            (1x1, grouped 3x3, 1x1; four times the inner channels of a bottleneck, halved at the output).
        depths: number of blocks in each of the four stages, each at least 2.
        groups: groups of the 3x3 convolution in each stage; 1 except for ``group``.
    """

    kind: str
    depths: tuple[int, int, int, int]
    groups: tuple[int, int, int, int] = (1, 1, 1, 1)

    def stage_channels(self, stage: int, width: float) -> tuple[int, int]:
        """``(inner, outer)`` channels of the blocks of ``stage`` (0 to 3) at a ``width`` multiplier."""
        planes = scaled_channels(STAGE_PLANES[stage], width)
        if self.kind == "basic":
            return planes, planes
        if self.kind == "bottleneck":
            return planes, planes * 4
        return planes * 4, planes * 2


def scaled_channels(channels: int, width: float) -> int:
    """``channels`` times ``width``.

    Raises:
        InputError: that is no whole number.
    """
    scaled = channels * width
    if scaled < 1 or scaled != int(scaled):
        raise InputError(
            f"width {width} gives {scaled:g} channels where the full model has {channels}; "
            "pass a width that makes every channel count a whole number, such as 0.25 or 0.5"
        )
    return int(scaled)
