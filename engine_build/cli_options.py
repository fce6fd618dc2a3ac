"""Options that the commands share, grouped as ``--help`` shows them, and the parsing of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import typer

from calibration.choices import Method, Residual
from calibration.request import Request
from engine_build.choices import Rounding
from engine_build.network.zoo import MODELS
from infer.bundle import BatchProfile
from infer.bundle.preprocessing import IMAGENET, Preprocessing
from infer.choices import Interpolation, Precision, Target
from infer.errors import InputError

_WEIGHTS, _PIXELS, _INT8, _AUTO, _TENSORRT = (
    "Weights",
    "Pre-processing of your own graph",
    "int8, fp8 and auto: calibration",
    "auto: the budget",
    "TensorRT",
)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model of the table (see: models), or a name for --onnx.")
]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", "-p", help="Of the layers; auto: int8 within --max-drop.")
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        metavar="[auto|" + "|".join(get_args(Target)) + "],...",
        help="One or several with commas; auto: all that can be built here.",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the bundle; None: engines/MODEL-PRECISION.")
]
LabelsOption = Annotated[Path | None, typer.Option(help="Class names, one a line.")]
SeedOption = Annotated[int, typer.Option(help="Of random weights and of the choice of calibration images.")]
MinSqnrOption = Annotated[
    float | None,
    typer.Option(
        help="dB of float32's logits that the typed graph must keep, or the build fails; None: by precision, "
        "docs/gates.md."
    ),
]

WeightsOption = Annotated[
    Path | None,
    typer.Option(help="Checkpoint: .safetensors, .pth or .pt. None: search, then download.", rich_help_panel=_WEIGHTS),
]
WeightsKeyOption = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        help="Which of several sets of weights in the checkpoint, such as state_dict_ema; None: the one that fits "
        "and is no average.",
        rich_help_panel=_WEIGHTS,
    ),
]
OnnxOption = Annotated[
    Path | None, typer.Option(help="Your own float ONNX classifier, input [N, 3, H, W].", rich_help_panel=_WEIGHTS)
]
ClassesOption = Annotated[int | None, typer.Option(help="Outputs; None: as the checkpoint.", rich_help_panel=_WEIGHTS)]
WidthOption = Annotated[float | None, typer.Option(help="Channel multiplier.", rich_help_panel=_WEIGHTS)]
RequireOption = Annotated[
    bool,
    typer.Option("--require-weights", help="Fail rather than build from random weights.", rich_help_panel=_WEIGHTS),
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Do not try to download weights.", rich_help_panel=_WEIGHTS)
]

ResizeOption = Annotated[int | None, typer.Option(help="Short side after resizing, pixels.", rich_help_panel=_PIXELS)]
CropOption = Annotated[
    int | None,
    typer.Option(help="Side of the centre crop, the input of the network, pixels.", rich_help_panel=_PIXELS),
]
MeanOption = Annotated[
    str | None, typer.Option(help="Normalisation, R,G,B for values in 0..1.", rich_help_panel=_PIXELS)
]
StdOption = Annotated[
    str | None, typer.Option(help="Normalisation, R,G,B for values in 0..1.", rich_help_panel=_PIXELS)
]
InterpolationOption = Annotated[Interpolation | None, typer.Option(help="Antialiased.", rich_help_panel=_PIXELS)]

DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        help="Calibration images: folder, tar file or glob pattern; repeat for several.",
        rich_help_panel=_INT8,
    ),
]
LimitOption = Annotated[
    int,
    typer.Option(min=1, help="Calibration images at most, classes as even as they allow.", rich_help_panel=_INT8),
]
MethodOption = Annotated[Method, typer.Option(help="How ranges are chosen.", rich_help_panel=_INT8)]
PercentileOption = Annotated[
    float | None, typer.Option(help="Of the method percentile, such as 99.99.", rich_help_panel=_INT8)
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Calibration cache to use, and no other.", rich_help_panel=_INT8)
]
AcceptOption = Annotated[
    bool,
    typer.Option("--accept-cache", help="Take a cache of another graph or of unknown origin.", rich_help_panel=_INT8),
]
ResidualOption = Annotated[
    Residual,
    typer.Option(help="Inputs of residual additions to quantise; identity: the shortcut.", rich_help_panel=_INT8),
]
RoundingOption = Annotated[
    Rounding,
    typer.Option(
        help="Of int8 weights: by what each layer reads of calibration images, or to nearest.", rich_help_panel=_INT8
    ),
]

MaxDropOption = Annotated[
    float,
    typer.Option(
        help="Points of top-1 that int8 may cost against FP32; of agreement, without labels.", rich_help_panel=_AUTO
    ),
]
BudgetDataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Images to measure the drop on, with class folders or other labels; None: calibration images.",
        rich_help_panel=_AUTO,
    ),
]
BudgetLimitOption = Annotated[
    int, typer.Option(min=1, help="Of them at most, classes as even as they allow.", rich_help_panel=_AUTO)
]

MinBatchOption = Annotated[int, typer.Option(min=1, help="Smallest batch of the plan.", rich_help_panel=_TENSORRT)]
OptBatchOption = Annotated[
    int | None,
    typer.Option(min=1, help="Batch the plan is tuned for; None: 32, or the largest.", rich_help_panel=_TENSORRT),
]
MaxBatchOption = Annotated[int, typer.Option(min=1, help="Largest batch of the plan.", rich_help_panel=_TENSORRT)]
WorkspaceOption = Annotated[
    int | None, typer.Option(min=1, help="Scratch memory in MiB; None: all there is.", rich_help_panel=_TENSORRT)
]
CapabilityOption = Annotated[
    str | None,
    typer.Option(
        help="GPUs of a TensorRT-RTX plan, such as 8.6,8.9,12.0; None: every one from 8.0.", rich_help_panel=_TENSORRT
    ),
]
VersionOption = Annotated[
    bool, typer.Option("--version-compatible", help="Later versions load the plan too.", rich_help_panel=_TENSORRT)
]
HardwareOption = Annotated[
    bool,
    typer.Option("--hardware-compatible", help="Other GPUs from 8.0 load the plan too.", rich_help_panel=_TENSORRT),
]
TimingOption = Annotated[Path, typer.Option(help="Kept between builds.", rich_help_panel=_TENSORRT)]
LevelOption = Annotated[
    int | None,
    typer.Option(
        min=0, max=5, help="More builds longer for a faster plan; None: TensorRT's 3.", rich_help_panel=_TENSORRT
    ),
]
Tf32Option = Annotated[
    bool, typer.Option("--tf32/--no-tf32", help="fp32 layers may multiply in TF32.", rich_help_panel=_TENSORRT)
]
AuxStreamsOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Streams beside the caller's; 0 saves memory; None: TensorRT chooses.", rich_help_panel=_TENSORRT
    ),
]
AvgTimingOption = Annotated[
    int | None,
    typer.Option(min=1, help="Runs averaged to time a kernel; None: TensorRT's 1.", rich_help_panel=_TENSORRT),
]


def calibration_request(
    data: list[str] | None, limit: int, method: Method, percentile: float | None, seed: int
) -> Request:
    """The calibration that the options ask for.

    Raises:
        InputError: a percentile for another method.
    """
    if percentile is not None and method != "percentile":
        raise InputError(f"--percentile belongs to --method percentile, not to {method}")
    parameters = {} if percentile is None else {"percentile": percentile}
    return Request(tuple(data or ()), limit, method, parameters, seed)


def parse_targets(text: str) -> tuple[str, ...]:
    """``openvino,tensorrt`` as names.

    Raises:
        InputError: one that is none, or ``auto`` beside others.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    known = ("auto", *get_args(Target))
    for name in names:
        if name not in known:
            raise InputError(f"--target: expected one of {', '.join(known)}, found {name!r}")
    if "auto" in names and len(names) > 1:
        raise InputError("--target: auto is every target that can be built here; pass it alone")
    return names


def batch_profile(smallest: int, tuned: int | None, largest: int) -> BatchProfile:
    """The batch sizes of a plan.

    Raises:
        InputError: not min <= opt <= max.
    """
    tuned = min(max(32, smallest), largest) if tuned is None else tuned
    if not smallest <= tuned <= largest:
        raise InputError(
            f"batch: expected --min-batch <= --opt-batch <= --max-batch, found {smallest}, {tuned}, {largest}"
        )
    return BatchProfile(min=smallest, opt=tuned, max=largest)


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
    base = IMAGENET if onnx is not None or model not in MODELS else MODELS[model].preprocessing
    for name, value in changes.items():
        try:
            base = msgspec.convert({**base.to_json(), name: value}, Preprocessing)
        except msgspec.ValidationError as error:  # the checks of a manifest, at an option
            raise InputError(f"--{name} {value}: {error}") from None
    return base
