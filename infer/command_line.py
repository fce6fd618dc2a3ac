"""What every command of ours does: errors in one line, renamed options, what to install where something is missing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand

from infer.errors import InputError, IResNetError, MissingDependencyError
from infer.names import printable

P = ParamSpec("P")
R = TypeVar("R")

DISTRIBUTION = "iresnet-trt"
#: Packages that are not always there, and the extra of ours that brings each.
EXTRAS = {
    "torch": "build",
    "onnx": "build",
    "onnxscript": "build",
    "onnxruntime": "build",
    "safetensors": "build",
    "gdown": "build",
    "openvino": "openvino",
    "tensorrt": "gpu",
    "pycuda": "gpu",
    "nvidia": "dali",
    "pyarrow": "parquet",
    "matplotlib": "report",
    "polygraphy": "test",
}

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def new_app(name: str, text: str, **options: Any) -> typer.Typer:
    """A group of commands that shows its help where no command is named."""
    return typer.Typer(
        name=name, help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, **options
    )


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn this project's errors into one line on standard error and an exit code, unless ``--debug``.

    A package that is missing is such an error, and names the extra that brings it. A closed pipe (``| head``) and
    Ctrl-C end the command quietly, with the codes shells expect.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            try:
                return command(*args, **kwargs)
            except ModuleNotFoundError as error:
                raise missing(error) from error
        except IResNetError as error:
            if kwargs.get("debug"):
                raise
            fail(error)
        except KeyboardInterrupt:
            print("cancelled", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(141) from None

    return run


def fail(error: IResNetError) -> NoReturn:
    """End a command with an error as one line.

    Raises:
        typer.Exit: always, with the error's exit code.
    """
    print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    raise typer.Exit(error.exit_code) from None


def missing(error: ModuleNotFoundError) -> MissingDependencyError:
    """The error for a package of :data:`EXTRAS` that is not installed.

    Raises:
        ModuleNotFoundError: ``error`` itself, where the module is none of those.
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return MissingDependencyError(
        f"this needs {package}, which is not installed; pip install '{DISTRIBUTION}[{EXTRAS[package]}]'"
    )


def renamed(**options: str) -> type[TyperCommand]:
    """A command whose old options fail with their new names.

    Args:
        options: old name without the dashes and with ``_`` for ``-``, to what the error says is there now.
    """

    class Command(TyperCommand):
        """Looks for old names before anything is parsed."""

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """As every command; an old name fails.

            Raises:
                typer.Exit: after one line that names the new option.
            """
            for word in args:
                name = word.partition("=")[0]
                new = options.get(name.removeprefix("--").replace("-", "_"))
                if name.startswith("--") and new is not None:
                    fail(InputError(f"{name} is now {new}"))
            return super().parse_args(ctx, args)

    return Command
