"""``iresnet export triton | deepstream | ask``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infer.command_line import DebugOption, JsonOption, guarded, new_app
from infer.errors import InputError

app = new_app("export", "Hand a bundle to another server: Triton or DeepStream.")

BundleArgument = Annotated[Path, typer.Argument(help="Folder of a bundle.")]
LinkOption = Annotated[bool, typer.Option(help="Hard link to the plan in place of a copy.")]
UntrainedOption = Annotated[bool, typer.Option(help="Export although the weights are random.")]


@app.command(no_args_is_help=True)
@guarded
def triton(
    bundle: BundleArgument,
    repository: Annotated[Path, typer.Argument(help="Model repository; the model or its version is added.")],
    name: Annotated[str | None, typer.Option(help="Of the model; None: <model>-<precision>.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="tensorrt, openvino or onnxruntime; None: the first there is.")
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Copies that run at once.")] = 2,
    version: Annotated[
        int | None, typer.Option(min=1, help="Of the model; None: the next. Other versions are kept.")
    ] = None,
    queue_delay: Annotated[int, typer.Option(min=0, help="Microseconds to wait for a larger batch.")] = 100,
    queue_size: Annotated[
        int | None, typer.Option(min=0, help="Requests that may wait; 0: no limit, None: eight largest batches.")
    ] = None,
    queue_timeout: Annotated[int, typer.Option(min=0, help="Milliseconds a request may wait; 0: no limit.")] = 10_000,
    with_decoder: Annotated[
        bool, typer.Option("--with-decoder", help="Add an ensemble that takes image files, such as JPEG.")
    ] = False,
    decoders: Annotated[int, typer.Option(min=1, help="Processes that decode, with --with-decoder.")] = 4,
    link: LinkOption = False,
    allow_untrained: UntrainedOption = False,
    debug: DebugOption = False,
) -> None:
    """Add a bundle to a Triton model repository."""
    from infer.export.triton import TritonOptions, export_triton

    options = TritonOptions(
        name=name,
        target=target,
        instances=instances,
        queue_delay=queue_delay,
        link=link,
        allow_untrained=allow_untrained,
        version=version,
        queue_size=queue_size,
        queue_timeout=queue_timeout,
        with_decoder=with_decoder,
        decoders=decoders,
    )
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


@app.command(no_args_is_help=True)
@guarded
def ask(
    bundle: BundleArgument,
    url: Annotated[str, typer.Argument(help="http://HOST:PORT or grpc://HOST:PORT of the running server.")],
    name: Annotated[str | None, typer.Option(help="Of the model; None: <model>-<precision>.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Of the model; None: the one that it serves.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images a request; repeatable. None: 1 and 4.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Ask a running server (Triton or another of KServe's v2 protocol) for the bundle's known answers."""
    import msgspec

    from infer.bundle import read_manifest
    from infer.export.ask import ask as ask_server
    from infer.export.ask import require_passed
    from infer.export.triton import default_name

    model = name or default_name(read_manifest(bundle))
    found = ask_server(bundle, url, model, "" if version is None else str(version), tuple(batch or (1, 4)))
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        for one in found:
            print(one)
    require_passed(found, url, model)


def size(text: str) -> tuple[int, int]:
    """``1920x1080`` as two numbers.

    Raises:
        InputError: anything else.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InputError(f"--frames: expected WIDTHxHEIGHT such as 1920x1080, found {text!r}")
    return int(parts[0]), int(parts[1])
