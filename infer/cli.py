"""``iresnet classify | merge | verify | bench | serve | export | info``, also as ``python -m infer``."""

from __future__ import annotations

from infer.bench.cli import bench
from infer.classify.cli import classify
from infer.classify.merge_cli import merge
from infer.command_line import new_app, renamed
from infer.entry import run_app
from infer.export.cli import app as export
from infer.info import info
from infer.serve.cli import serve
from infer.verify.cli import verify

app = new_app("infer", "Run, verify and inspect engine bundles.")
app.command(no_args_is_help=True)(classify)
app.command(no_args_is_help=True)(merge)
app.command(no_args_is_help=True, cls=renamed(layers="--layers-limit"))(verify)
app.command(no_args_is_help=True)(bench)
app.command(no_args_is_help=True)(serve)
app.add_typer(export, name="export")
app.command(no_args_is_help=True)(info)


def main() -> None:
    """``python -m infer``."""
    run_app(app, "python -m infer")
