"""``iresnet merge``: the shards of a job, put together."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from infer.command_line import DebugOption, JsonOption, guarded
from infer.errors import InputError
from infer.tables import say


@guarded
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Outputs of classify --shard i/n, all n of them in any order.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, of the same kind as the shards.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output.")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Put the outputs of all shards of a job together, in the order of the unsharded run.

    Checked: every shard is there once, no file changed since its run, and the rows have the names of all images of the
    job, in order, none missing and none twice. OUTPUT is written whole or not at all.
    """
    from infer.classify.merge import merge_outputs

    if output.is_dir():
        raise InputError(f"--output {output}: a folder, expected a file to write")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already; pass --overwrite to replace it, or name another --output")
    merged = merge_outputs(shards, output)
    for note in merged.notes:
        say(f"note: {note}", stream=sys.stderr)
    if as_json:
        print(json.dumps(asdict(merged) | {"output": str(output)}))
    else:
        failed = f", {merged.failed} of images that could not be read" if merged.failed else ""
        say(
            f"{output}: {merged.rows} rows of {merged.shards} shards{failed}; every shard is there once, every image "
            "of the job once and in order"
        )
