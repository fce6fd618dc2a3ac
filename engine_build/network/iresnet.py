"""Improved Residual Networks in PyTorch: iResNet, iResGroup and iResGroupFix.

Source: Duta, Liu, Zhu, Shao, "Improved Residual Networks for Image and Video Recognition", 2020
(https://arxiv.org/abs/2004.04989). Three changes against ResNet:

* **Stages.** Each stage has one start block, middle blocks and one end block. The start block ends its
  branch with a BN before the addition, the end block applies BN and ReLU after the addition, and a
  middle block is pre-activated (BN, ReLU, conv ...). The signal on the shortcut path of a stage therefore
  meets no ReLU until the end of the stage but one: it is signed and it grows with depth, which is what the fp16
  and int8 code of this project has to respect. The second block of a stage has no leading BN, and the official code
  applies its leading ReLU in place: its shortcut carries ``ReLU(x)``, and every official checkpoint was trained so.
* **Projection shortcut.** A down-sampling shortcut is a 3x3/2 max-pool, then a 1x1 convolution with
  stride 1, then BN: the pool chooses the activation, the convolution sees every position.
* **No stem max-pool**; stage 1 has stride 2 instead.

Parameter names, order and shapes equal those of the official checkpoints, so that they load strictly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from engine_build.network.architecture import STEM_CHANNELS, Architecture, scaled_channels
from infer.errors import InputError


def _conv(kernel: int, cin: int, cout: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


class ResidualBlock(nn.Module):
    """One block of a stage: ``branch(x) + shortcut(x)`` with the BNs that its place in the stage asks for.

    Args:
        convs: ``(kernel, in, out, stride, groups)`` of each convolution of the branch.
        leading_bn: whether a BN stands before the first ReLU (middle and end blocks but the first).
        start: first block of the stage: no leading activation, BN after the last convolution.
        end: last block of the stage: BN and ReLU after the addition.
        downsample: the shortcut, or None for the identity.
    """

    def __init__(
        self,
        convs: Sequence[tuple[int, int, int, int, int]],
        *,
        leading_bn: bool,
        start: bool,
        end: bool,
        downsample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.start, self.end, self.depth = start, end, len(convs)
        if leading_bn:
            self.bn0 = nn.BatchNorm2d(convs[0][1])
        for number, (kernel, cin, cout, stride, groups) in enumerate(convs, 1):
            self.add_module(f"conv{number}", _conv(kernel, cin, cout, stride, groups))
            if number < self.depth or start or end:
                self.add_module(f"bn{number}", nn.BatchNorm2d(cout))
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, C, H, W]`` float to ``[N, C', H', W']`` float."""
        out = x
        if not self.start:
            if hasattr(self, "bn0"):
                out = self.relu(self.bn0(x))
            else:
                x = out = self.relu(x)  # the shortcut too: in the official code this ReLU works in place
        for number in range(1, self.depth):
            out = getattr(self, f"conv{number}")(out)
            out = self.relu(getattr(self, f"bn{number}")(out))
        out = getattr(self, f"conv{self.depth}")(out)
        last_bn: nn.Module | None = getattr(self, f"bn{self.depth}", None)
        if self.start and last_bn is not None:
            out = last_bn(out)
        out = out + (x if self.downsample is None else self.downsample(x))
        if self.end and last_bn is not None:
            out = self.relu(last_bn(out))
        return out


class IResNet(nn.Module):
    """A whole network: stem, four stages, global average pool, linear classifier.

    Args:
        arch: the shape of the network.
        num_classes: outputs of the classifier.
        width: multiplier of every channel count.
    """

    def __init__(self, arch: Architecture, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes must be at least 1, found {num_classes}")
        if min(arch.depths) < 2:
            raise InputError(f"every stage needs a start and an end block, found depths {arch.depths}")
        channels = scaled_channels(STEM_CHANNELS, width)
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        for stage in range(4):
            blocks, channels = _stage(arch, stage, channels, width)
            self.add_module(f"layer{stage + 1}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised images ``[N, 3, H, W]`` float to logits ``[N, num_classes]`` float."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(arch: Architecture, stage: int, cin: int, width: float) -> tuple[nn.Sequential, int]:
    inner, outer = arch.stage_channels(stage, width)
    groups = arch.groups[stage]
    if inner % groups:
        raise InputError(
            f"stage {stage + 1}: {inner} channels cannot be split into {groups} groups; use a larger width"
        )
    blocks: list[nn.Module] = []
    for index in range(arch.depths[stage]):
        start, stride = index == 0, 2 if index == 0 else 1
        if arch.kind == "basic":
            convs = [(3, cin, inner, stride, 1), (3, inner, outer, 1, 1)]
        else:
            convs = [(1, cin, inner, 1, 1), (3, inner, inner, stride, groups), (1, inner, outer, 1, 1)]
        blocks.append(
            ResidualBlock(
                convs,
                leading_bn=index >= 2,
                start=start,
                end=index == arch.depths[stage] - 1,
                downsample=_shortcut(cin, outer) if start else None,
            )
        )
        cin = outer
    return nn.Sequential(*blocks), outer


def _shortcut(cin: int, cout: int) -> nn.Module:
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return pool if cin == cout else nn.Sequential(pool, _conv(1, cin, cout), nn.BatchNorm2d(cout))


def initialise(model: nn.Module, seed: int = 0) -> None:
    """Fill ``model`` in place with the paper's initialisation, the same for the same ``seed`` everywhere.

    He normal (fan-out) for convolutions, the linear layer uniform in +-1/sqrt(fan-in), BN at identity.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
