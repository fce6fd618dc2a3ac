"""The model table: what each name is, its official figures and where its weights come from.

Official checkpoints are the Google Drive files linked from https://github.com/iduta/iresnet. Their top-1
figures are those of the paper's repository; top-5 comes from an independent evaluation of the same files
and is given where it is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine_build.network.architecture import Architecture
from infer.bundle.preprocessing import IMAGENET, Preprocessing
from infer.errors import InputError

if TYPE_CHECKING:
    from engine_build.network.iresnet import IResNet

PUBLISHED = "github.com/iduta/iresnet (top-1); an independent evaluation of the same files (top-5)"
SHIPPED_DIR = Path(__file__).parents[1] / "shipped"


@dataclass(frozen=True)
class Model:
    """One row of the table.

    Attributes:
        name: what ``MODEL=`` takes.
        arch: shape of the network.
        width: channel multiplier.
        num_classes: outputs of the classifier.
        preprocessing: from a decoded image to the input of the network.
        top1, top5: official ImageNet accuracy in percent, None where none is published.
        drive_id: Google Drive id of the official checkpoint, None where none was released.
        shipped: folder with weights, labels and images that come with this package, or None.
    """

    name: str
    arch: Architecture
    width: float = 1.0
    num_classes: int = 1000
    preprocessing: Preprocessing = field(default=IMAGENET)
    top1: float | None = None
    top5: float | None = None
    drive_id: str | None = None
    shipped: Path | None = None


def _group(depths: tuple[int, int, int, int]) -> Architecture:
    return Architecture("group", depths, (8, 16, 32, 64))


def _group_fix(depths: tuple[int, int, int, int]) -> Architecture:
    return Architecture("group", depths, (64, 64, 64, 64))


_D50, _D101, _D152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)

FASHION = Preprocessing(64, 64, mean=(0.2860,) * 3, std=(0.3530,) * 3, interpolation="bilinear")


def _official(
    name: str, arch: Architecture, drive_id: str | None = None, top1: float | None = None, top5: float | None = None
) -> Model:
    return Model(name, arch, top1=top1, top5=top5, drive_id=drive_id)


def _bottleneck(*depths: int) -> Architecture:
    first, second, third, fourth = depths
    return Architecture("bottleneck", (first, second, third, fourth))


_MODELS = (
    _official("iresnet18", Architecture("basic", (2, 2, 2, 2))),
    _official("iresnet34", Architecture("basic", (3, 4, 6, 3))),
    _official("iresnet50", _bottleneck(*_D50), "1Waw3ob8KPXCY9iCLdAD6RUA0nvVguc6K", 77.31, 93.588),
    _official("iresnet101", _bottleneck(*_D101), "1cZ4XhwZfUOm_o0WZvenknHIqgeqkY34y", 78.64, 94.238),
    _official("iresnet152", _bottleneck(*_D152), "10heFLYX7VNlaSrDy4SZbdOOV9xwzwyli", 79.34, 94.508),
    _official("iresnet200", _bottleneck(3, 24, 36, 3), "1Ao-f--jNU7MYPqSW8UMonXVrq3mkLRpW", 79.48, 94.626),
    _official("iresnet302", _bottleneck(4, 34, 58, 4), "1UcyvLhLzORJZBUQDNJdsx3USCloXZT6V"),
    _official("iresnet404", _bottleneck(4, 46, 80, 4), "1hEOHErsD6AF1b3qQi56mgxvYDneTvMIq"),
    _official("iresnet1001", _bottleneck(4, 155, 170, 4)),  # in the official code, without weights
    _official("iresgroup50", _group(_D50), "1mCcUKTLbJfjLr2ZiUZPT89wlNf6WxWr_"),
    _official("iresgroup101", _group(_D101), "1i_btVQzQeXFgHFfDi5nTEb_fb7gCtqLG"),
    _official("iresgroup152", _group(_D152), "1rXDMj-yWcKEiO3LILLZlarh69HEibXMc"),
    _official("iresgroupfix50", _group_fix(_D50), "12oeCmPhaID2s3Doay8ZXMehnaaWqa_ek"),
    _official("iresgroupfix101", _group_fix(_D101), "1A8MIGI1ZEIfaB1bn_NN4QkoHKGRGxW_i"),
    _official("iresgroupfix152", _group_fix(_D152), "1s-4zKwbwlAJruSm-OFYmw96_qew7F2nw"),
    Model(
        "iresnet50_fashion",
        _bottleneck(*_D50),
        width=0.25,
        num_classes=10,
        preprocessing=FASHION,
        shipped=SHIPPED_DIR / "iresnet50_fashion",
    ),
)

MODELS: dict[str, Model] = {model.name: model for model in _MODELS}


def find_model(name: str) -> Model:
    """The row called ``name``.

    Raises:
        InputError: no such row; the message lists the names.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise InputError(f"unknown model {name!r}; known: {', '.join(MODELS)}") from None


def create_model(name: str, num_classes: int | None = None, width: float | None = None, seed: int = 0) -> IResNet:
    """The network called ``name`` as a torch module on the CPU in eval mode, initialised from ``seed``.

    Args:
        name: a row of the table.
        num_classes: outputs of the classifier, C; None takes the row's.
        width: channel multiplier; None takes the row's.
        seed: seed of the initialisation.

    Returns:
        A module that takes float32 ``[N, 3, H, W]``, RGB, normalised with the row's mean and standard deviation, H and
        W a multiple of 32 (224 in the published networks), and gives logits float32 ``[N, C]``. Its ``state_dict`` has
        the keys and shapes of the official checkpoints.

    Raises:
        InputError: unknown name, or a width that gives fractional channel counts.
    """
    import torch

    from engine_build.network.iresnet import IResNet, initialise

    row = find_model(name)
    with torch.device("meta"):
        model = IResNet(
            row.arch, row.num_classes if num_classes is None else num_classes, row.width if width is None else width
        )
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()
    initialise(model, seed)
    return model.eval()


def shape_only(row: Model) -> IResNet:
    """The network of ``row`` in eval mode without memory for its weights (torch's meta device): made in no time."""
    import torch

    from engine_build.network.iresnet import IResNet

    with torch.device("meta"):
        return IResNet(row.arch, row.num_classes, row.width).eval()


def count_parameters(model: IResNet) -> int:
    """Learned parameters; BN statistics are buffers and do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(row: Model, size: int | None = None) -> int:
    """Multiply-accumulates of the convolutions and the linear layer for one image of ``size`` x ``size``.

    Counted on shapes alone (torch's meta device), so it costs no arithmetic. ``size`` None takes the row's crop.
    """
    import torch

    total = 0

    def count(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        total += output[0].numel() * weight[0].numel()

    size = row.preprocessing.crop if size is None else size
    model = shape_only(row)
    with torch.device("meta"), torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                module.register_forward_hook(count)
        model(torch.empty(1, 3, size, size))
    return total
