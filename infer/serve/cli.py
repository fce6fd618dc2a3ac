"""``iresnet serve``: bundles behind HTTP and gRPC."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from infer.choices import Runs
from infer.command_line import DebugOption, ThreadsOption, guarded

_LISTEN, _MODELS, _BATCH, _LIMITS = "Where it listens", "Models", "Batching", "Limits"


@guarded
def serve(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(help="Bundles: FOLDER, NAME=FOLDER or NAME:VERSION=FOLDER.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.", rich_help_panel=_LISTEN)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of HTTP; 0: any that is free.", rich_help_panel=_LISTEN)
    ] = 8000,
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of gRPC; 0: any that is free.", rich_help_panel=_LISTEN)
    ] = 8001,
    grpc: Annotated[bool, typer.Option("--grpc/--no-grpc", help="Speak gRPC too.", rich_help_panel=_LISTEN)] = True,
    uds: Annotated[
        Path | None, typer.Option(help="Unix socket for HTTP, in place of --host and --port.", rich_help_panel=_LISTEN)
    ] = None,
    grpc_uds: Annotated[Path | None, typer.Option(help="Unix socket for gRPC.", rich_help_panel=_LISTEN)] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file: TLS for HTTP and gRPC.", rich_help_panel=_LISTEN)
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file with its key.", rich_help_panel=_LISTEN)] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="File with a bearer token or API key a line; all but health needs one.", rich_help_panel=_LISTEN
        ),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(
            help="Folder with NAME/ or NAME/VERSION/ bundles that clients may load and unload.", rich_help_panel=_MODELS
        ),
    ] = None,
    target: Annotated[
        Runs | None,
        typer.Option(
            "--target", "-t", help="Who runs them; None: the fastest target that is there.", rich_help_panel=_MODELS
        ),
    ] = None,
    require_verified: Annotated[
        bool,
        typer.Option(
            "--require-verified",
            help="Refuse a bundle whose newest verification did not pass.",
            rich_help_panel=_MODELS,
        ),
    ] = False,
    allow_untrained: Annotated[
        bool, typer.Option("--allow-untrained", help="Serve although the weights are random.", rich_help_panel=_MODELS)
    ] = False,
    max_models: Annotated[int, typer.Option(min=1, help="Versions loaded at a time.", rich_help_panel=_MODELS)] = 16,
    max_model_memory: Annotated[
        int | None,
        typer.Option(min=1, help="MiB that loaded models may take; None: no limit.", rich_help_panel=_MODELS),
    ] = None,
    max_delay: Annotated[
        float,
        typer.Option(
            min=0, help="Milliseconds that an image waits for others on a busy device.", rich_help_panel=_BATCH
        ),
    ] = 2.0,
    queue: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images of a model at a time; more get 429. None: by its batches.", rich_help_panel=_BATCH
        ),
    ] = None,
    decoders: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode; None: one for each CPU.", rich_help_panel=_BATCH)
    ] = None,
    threads: ThreadsOption = None,
    max_body: Annotated[
        int, typer.Option(min=1, help="MiB of a request, also for gRPC; more get 413.", rich_help_panel=_LIMITS)
    ] = 32,
    max_buffered: Annotated[
        int, typer.Option(min=1, help="MiB of all requests in memory; more get 429.", rich_help_panel=_LIMITS)
    ] = 512,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of an encoded image.", rich_help_panel=_LIMITS)] = 50_000_000,
    max_images: Annotated[int, typer.Option(min=1, help="Of a request.", rich_help_panel=_LIMITS)] = 128,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds of a request; then 408 or 504.", rich_help_panel=_LIMITS)
    ] = 30.0,
    max_connections: Annotated[int, typer.Option(min=1, help="Open at a time.", rich_help_panel=_LIMITS)] = 1024,
    drain_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to finish accepted work after SIGTERM.", rich_help_panel=_LIMITS)
    ] = 30.0,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="A JSON line a request on standard output.")
    ] = True,
    debug: DebugOption = False,
) -> None:
    """Serve bundles over HTTP and gRPC: the KServe v2 protocol, and pictures to names for people.

    Open http://127.0.0.1:8000 in a browser, or: curl --data-binary @cat.jpg http://127.0.0.1:8000/v1/classify
    """
    from infer.serve.limits import MIB, Limits
    from infer.serve.opening import EarlyOpening
    from infer.serve.options import ServeOptions, parse_source

    limits = Limits(
        max_body=max_body * MIB,
        max_buffered=max(max_buffered, max_body) * MIB,
        max_pixels=max_pixels,
        max_images=max_images,
        queue=queue,
        timeout=timeout,
        max_connections=max_connections,
        max_models=max_models,
        max_model_memory=None if max_model_memory is None else max_model_memory * MIB,
    )
    options = ServeOptions(
        tuple(parse_source(text) for text in bundles or []),
        repository=repository,
        target=target,
        threads=threads,
        allow_untrained=allow_untrained,
        require_verified=require_verified,
        max_delay=max_delay / 1e3,
        decoders=decoders,
        tokens=tokens,
        access_log=access_log,
        limits=limits,
    )
    early = EarlyOpening(options)  # goes on while what follows is imported
    try:
        from infer.serve.run import serve as run
        from infer.serve.sockets import Address

        port_of_grpc = grpc_port if grpc and grpc_uds is None else None
        address = Address(host, port, port_of_grpc, uds, grpc_uds if grpc else None, certificate, key)
        if address.public and tokens is None:
            print(
                "warning: other machines can reach this server, and it asks for no token; see --tokens", file=sys.stderr
            )
        run(options, address, drain_timeout, early)
    finally:
        early.close()
