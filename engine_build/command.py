"""The command ``iresnet``: every command of the three packages behind one door.

A command's module is loaded when it is asked for: a deployment without torch and onnx still classifies, and ``--help``
is fast. What the table says of a command is the first paragraph of its own help; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from infer.command_line import DISTRIBUTION, fail, missing
from infer.entry import run_app

_BUILD, _RUN, _LOOK = "From a checkpoint to a bundle", "From a bundle to answers", "What is there"


@dataclass(frozen=True)
class Entry:
    """A command of the table.

    Attributes:
        module: where its ``app`` is.
        panel: heading of its group in the help.
        text: one line of help.
        group: whether the whole ``app`` is meant, a group of commands, instead of the one of this name.
    """

    module: str
    panel: str
    text: str
    group: bool = False


COMMANDS = {
    "demo": Entry(
        "engine_build.cli",
        _BUILD,
        "Take the shipped model through the whole chain: build, classify, verify, one table.",
    ),
    "models": Entry(
        "engine_build.cli",
        _BUILD,
        "List the models: size, work, official accuracy, and whether trained weights are at hand.",
    ),
    "build": Entry("engine_build.cli", _BUILD, "Build one bundle: MODEL at one precision, for one target or several."),
    "calibrate": Entry(
        "engine_build.cli",
        _BUILD,
        "Run images through MODEL and write its INT8 calibration cache, which the next int8 build takes.",
    ),
    "cache": Entry("calibration.cli", _BUILD, "INT8 calibration caches: look at one, or make one for a bundle.", True),
    "classify": Entry("infer.cli", _RUN, "Name what is on images: the best classes with their probabilities."),
    "merge": Entry(
        "infer.cli", _RUN, "Put the outputs of all shards of a job together, in the order of the unsharded run."
    ),
    "verify": Entry(
        "infer.cli",
        _RUN,
        "Measure accuracy against labels and FP32; the exit code is the verdict: 0 good, 3 not, 4 too few images.",
    ),
    "bench": Entry(
        "infer.cli",
        _RUN,
        "Measure throughput and latency, model only: ready batches in host memory to results in host memory.",
    ),
    "serve": Entry(
        "infer.cli",
        _RUN,
        "Serve bundles over HTTP and gRPC: the KServe v2 protocol, and pictures to names for people.",
    ),
    "export": Entry("infer.export.cli", _RUN, "Hand a bundle to another server: Triton or DeepStream.", True),
    "info": Entry(
        "infer.cli",
        _LOOK,
        "Show what a bundle is, which of its plans run here, and its measured accuracy. Checks every file's hash.",
    ),
    "doctor": Entry(
        "engine_build.cli",
        _LOOK,
        "Say what this machine has, which targets run here, and what would add the missing ones.",
    ),
}


class LazyGroup(TyperGroup):
    """A group whose commands are loaded one at a time, when they run or show their own help."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, or what the help needs of it; None for an unknown name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=entry.text, rich_help_panel=entry.panel)
        return load(cmd_name, entry)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help of the table, without a single command's module."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def load(name: str, entry: Entry) -> Any:
    """The command ``name`` itself.

    Raises:
        typer.Exit: a package that it needs is not installed; says which extra brings it.
    """
    try:
        app: typer.Typer = import_module(entry.module).app
    except ModuleNotFoundError as error:
        fail(missing(error))
    group: Any = typer.main.get_group(app)
    command = group if entry.group else group.commands[name]
    command.name = name
    return command


def _version(wanted: bool) -> None:
    if wanted:
        from engine_build import __version__

        print(f"{DISTRIBUTION} {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="iresnet",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From an iResNet checkpoint to a verified, fast TensorRT engine, and the runner that serves it.",
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """From an iResNet checkpoint to a verified, fast TensorRT engine, and the runner that serves it."""


def main() -> None:
    """Entry point of the console script."""
    run_app(app, "iresnet")


if __name__ == "__main__":
    main()
