"""``iresnet cache run | show``, also as ``python -m calibration``: caches for FP32 bundles, and what is in one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from calibration.choices import DEFAULT_LIMIT, DEFAULT_METHOD, Method
from infer.command_line import DebugOption, JsonOption, guarded, new_app, renamed
from infer.entry import run_app
from infer.errors import InputError

app = new_app("cache", "INT8 calibration caches: look at one, or make one for a bundle.")


@app.command(no_args_is_help=True, cls=renamed(images="--limit"))
@guarded
def run(
    bundle: Annotated[Path, typer.Argument(help="FP32 bundle: its graph and its pre-processing are used.")],
    data: Annotated[list[str], typer.Option("--data", "-d", help="Folder, tar file or glob pattern; repeatable.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Cache file to write.")],
    limit: Annotated[int, typer.Option(min=1, help="Images at most, classes as even as they allow.")] = DEFAULT_LIMIT,
    method: Annotated[Method, typer.Option(help="How ranges are chosen.")] = DEFAULT_METHOD,
    percentile: Annotated[float | None, typer.Option(help="Of the method percentile, such as 99.99.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of images.")] = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Run images through the graph of an FP32 bundle and write the cache, with its JSON provenance beside it."""
    import onnx

    from calibration.cache import write_cache
    from calibration.from_images import calibrate
    from calibration.request import Request
    from infer.bundle import GRAPH, check_files, read_manifest
    from infer.tables import say
    from infer.terminal import progress

    manifest = read_manifest(bundle)
    if manifest.precision != "fp32":
        raise InputError(f"{bundle} is {manifest.precision}; calibration needs the float graph of an fp32 bundle")
    check_files(bundle, [manifest.graph])
    request = Request(tuple(data), limit, method, {} if percentile is None else {"percentile": percentile}, seed)
    with progress("calibrate", limit) as advance:
        result = calibrate(
            onnx.load(bundle / GRAPH),
            manifest.preprocessing,
            request,
            tool=manifest.tool,
            network_revision=manifest.model.network_revision,
            progress=lambda done: advance(1),
        )
    for line in (*result.failures, *result.statistics.warnings):
        say(line, stream=sys.stderr)
    write_cache(output, result.cache)
    found = {"cache": str(output), "method": method, "images": result.statistics.images}
    if as_json:
        print(json.dumps(found | {"tensors": len(result.cache.scales)}))
    else:
        print(f"{output}: {len(result.cache.scales)} tensors, {method}, {result.statistics.images} images")


@app.command(no_args_is_help=True)
@guarded
def show(
    cache: Annotated[Path, typer.Argument(help="Calibration cache, of this project or of another.")],
    bundle: Annotated[Path | None, typer.Option(help="Say how it fits the graph of this FP32 bundle.")] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the scales of a cache and where it came from."""
    from calibration.cache import coverage, read_cache
    from infer.tables import print_facts

    content = read_cache(cache)
    origin = content.provenance
    found = {
        "header": content.header,
        "tensors": len(content.scales),
        "method": origin and origin.method,
        "images": origin and origin.images,
        "created": origin and origin.created,
        "graph_sha256": origin and origin.graph_sha256,
    }
    if bundle is not None:
        import onnx

        from calibration.tensors import activation_tensors
        from infer.bundle import GRAPH

        found["fit"] = str(coverage(content.scales, activation_tensors(onnx.load(bundle / GRAPH))))
    if as_json:
        print(json.dumps(found | {"scales": {name: float(scale) for name, scale in content.scales.items()}}))
        return
    rows = []
    for key, value in found.items():
        rows.append((key.replace("_", " "), "unknown" if value is None else str(value)))
    print_facts(None, rows)
    for name, scale in content.scales.items():
        print(f"  {float(scale):12.6g}  {name}")


def main() -> None:
    """``python -m calibration``."""
    run_app(app, "python -m calibration")
