"""Options that the commands share, and the parsing of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from calibration.from_images import Request
from engine_build.network.zoo import MODELS
from infer.bundle import BatchProfile
from infer.bundle.preprocessing import Preprocessing
from infer.errors import BundleError, InputError

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model of the table (see: models), or a name for --onnx.")
]
WeightsOption = Annotated[
    Path | None, typer.Option(help="Checkpoint: .safetensors, .pth or .pt. None: search, then download.")
]
OnnxOption = Annotated[Path | None, typer.Option(help="Your own float ONNX classifier, input [N, 3, H, W].")]
ClassesOption = Annotated[int | None, typer.Option(help="Outputs; None: as the checkpoint.")]
WidthOption = Annotated[float | None, typer.Option(help="Channel multiplier of the network.")]
ResizeOption = Annotated[int | None, typer.Option(help="Short side after resizing, pixels.")]
CropOption = Annotated[int | None, typer.Option(help="Side of the centre crop, the input of the network, pixels.")]
MeanOption = Annotated[str | None, typer.Option(help="Normalisation, R,G,B for values in 0..1.")]
StdOption = Annotated[str | None, typer.Option(help="Normalisation, R,G,B for values in 0..1.")]
InterpolationOption = Annotated[str | None, typer.Option(help="bilinear or bicubic.")]
RequireOption = Annotated[bool, typer.Option(help="Fail rather than build from random weights.")]
OfflineOption = Annotated[bool, typer.Option(help="Do not try to download weights.")]
SeedOption = Annotated[int, typer.Option(help="Of random weights and of the choice of calibration images.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", "-d", help="Calibration images: folder, tar file or glob pattern; repeat for several."),
]
ImagesOption = Annotated[int, typer.Option(min=1, help="Calibration images, classes as even as they allow.")]
MethodOption = Annotated[str, typer.Option(help="How ranges are chosen: mse, percentile, minmax or entropy.")]
PercentileOption = Annotated[float | None, typer.Option(help="Of the method percentile, such as 99.99.")]
MaxDropOption = Annotated[
    float,
    typer.Option(help="For auto: points of top-1 that int8 may cost against FP32; of agreement, without labels."),
]
BudgetDataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="For auto: images to measure the drop on, with class folders or other labels; None: calibration images."
    ),
]
BudgetImagesOption = Annotated[
    int, typer.Option(min=1, help="For auto: how many of them at most, classes as even as they allow.")
]
MinSqnrOption = Annotated[
    float | None,
    typer.Option(
        help="dB of float32's logits that the typed graph must keep, or the build fails; None: by precision, "
        "docs/gates.md."
    ),
]


def calibration_request(
    data: list[str] | None, images: int, method: str, percentile: float | None, seed: int
) -> Request:
    """The calibration that the options ask for.

    Raises:
        InputError: a percentile for another method.
    """
    if percentile is not None and method != "percentile":
        raise InputError(f"--percentile belongs to --method percentile, not to {method}")
    parameters = {} if percentile is None else {"percentile": percentile}
    return Request(tuple(data or ()), images, method, parameters, seed)


def parse_batch(text: str) -> BatchProfile:
    """``128`` or ``1,32,128`` as a batch profile.

    Raises:
        InputError: anything else, or not 1 <= min <= opt <= max.
    """
    try:
        sizes = [int(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes = [1, min(32, sizes[0]), sizes[0]]
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise InputError(f"batch: expected MAX or MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, found {text!r}")
    return BatchProfile(min=sizes[0], opt=sizes[1], max=sizes[2])


def _floats(name: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name}: expected three numbers such as 0.485,0.456,0.406, found {text!r}") from None


def preprocessing_of(
    model: str,
    onnx: Path | None,
    resize: int | None,
    crop: int | None,
    mean: str | None,
    std: str | None,
    interpolation: str | None,
) -> Preprocessing | None:
    """The model's pre-processing with the changes that the options ask for; None when they ask for none.

    Raises:
        InputError: a value that cannot be.
    """
    changes: dict[str, Any] = {
        "resize": resize,
        "crop": crop,
        "mean": _floats("mean", mean),
        "std": _floats("std", std),
        "interpolation": interpolation,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if not changes:
        return None
    base = Preprocessing() if onnx is not None or model not in MODELS else MODELS[model].preprocessing
    try:
        return Preprocessing.from_json({**base.to_json(), **changes})
    except BundleError as error:  # the same checks as for a manifest, but here the options are wrong
        raise InputError(str(error).removeprefix("preprocessing.")) from None
