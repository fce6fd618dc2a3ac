"""``iresnet export triton | deepstream``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infer.command_line import DebugOption, guarded, new_app
from infer.errors import InputError

app = new_app("export", "Hand a bundle to another server: Triton or DeepStream.")

BundleArgument = Annotated[Path, typer.Argument(help="Folder of a bundle.")]
LinkOption = Annotated[bool, typer.Option(help="Hard link to the plan in place of a copy.")]
UntrainedOption = Annotated[bool, typer.Option(help="Export although the weights are random.")]


@app.command(no_args_is_help=True)
@guarded
def triton(
    bundle: BundleArgument,
    repository: Annotated[Path, typer.Argument(help="Model repository; the model is added or replaced.")],
    name: Annotated[str | None, typer.Option(help="Of the model; None: <model>-<precision>.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="tensorrt, openvino or onnxruntime; None: the first there is.")
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies that run at once.")] = 2,
    queue_delay: Annotated[int, typer.Option(min=0, help="Microseconds to wait for a preferred batch.")] = 100,
    link: LinkOption = False,
    allow_untrained: UntrainedOption = False,
    debug: DebugOption = False,
) -> None:
    """Add a bundle to a Triton model repository."""
    from infer.export.triton import TritonOptions, export_triton

    options = TritonOptions(name, target, instances, queue_delay, link, allow_untrained)
    print(export_triton(bundle, repository, options))


@app.command(no_args_is_help=True)
@guarded
def deepstream(
    bundle: BundleArgument,
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    frames: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the source's frames.")] = "1920x1080",
    sources: Annotated[int, typer.Option(min=1, help="Streams; one frame of each makes a batch.")] = 1,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Probability a class needs.")] = 0.5,
    link: LinkOption = False,
    allow_untrained: UntrainedOption = False,
    debug: DebugOption = False,
) -> None:
    """Write configurations and a Triton model for DeepStream's nvinferserver, and for nvdspreprocess with nvinfer."""
    from infer.export.deepstream import DeepStreamOptions, export_deepstream

    width, height = size(frames)
    options = DeepStreamOptions(width, height, sources, threshold, link, allow_untrained)
    print(export_deepstream(bundle, folder, options))


def size(text: str) -> tuple[int, int]:
    """``1920x1080`` as two numbers.

    Raises:
        InputError: anything else.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"--frames: expected WIDTHxHEIGHT such as 1920x1080, found {text!r}")
    return int(parts[0]), int(parts[1])
