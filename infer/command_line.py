"""What every command of ours does: errors in one line, renamed options, what to install where something is missing."""

from __future__ import annotations

import errno
import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand

from infer.entry import OUTPUT, Terminated, discard_output
from infer.errors import InputError, IResNetError, MissingDependencyError
from infer.names import printable
from infer.tables import say

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
    "starlette": "serve",
    "uvicorn": "serve",
    "httptools": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "grpc": "serve",
    "tritonclient": "triton",
    "geventhttpclient": "triton",
}

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of a CPU target; None: its own choice.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def new_app(name: str, text: str, **options: Any) -> typer.Typer:
    """A group of commands that shows its help where no command is named."""
    return typer.Typer(
        name=name, help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, **options
    )


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn this project's errors into one line on standard error and an exit code, unless ``--debug``.

    A package that is missing is such an error, and names the extra that brings it; so is whatever the operating system
    refuses, with the path. Options that are no finite numbers are refused. A closed pipe (``| head``), Ctrl-C and
    SIGTERM end the command quietly, with the codes shells expect.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            try:
                _refuse_nan(kwargs)
                return command(*args, **kwargs)
            except ModuleNotFoundError as error:
                raise missing(error) from error
            except BrokenPipeError:
                raise
            except OSError as error:
                raise refused(error) from error
            except MemoryError as error:
                raise IResNetError("out of memory; take fewer threads, a smaller batch, or a larger machine") from error
        except IResNetError as error:
            if kwargs.get("debug"):
                raise
            fail(error)
        except KeyboardInterrupt as error:
            terminated = isinstance(error, Terminated)
            print("terminated" if terminated else "cancelled", file=sys.stderr)
            raise typer.Exit(128 + (signal.SIGTERM if terminated else signal.SIGINT)) from None
        except BrokenPipeError:
            discard_output()
            raise typer.Exit(128 + signal.SIGPIPE) from None

    return run


_ADVICE = {
    errno.ENOSPC: "; make room",
    errno.EDQUOT: "; make room",
    errno.EROFS: "; name a place that can be written",
    errno.EACCES: "; name another place, or change its permissions",
    errno.EPERM: "; name another place, or change its permissions",
    errno.EMFILE: "; raise ulimit -n",
}


def refused(error: OSError) -> IResNetError:
    """What the operating system refused, as an error of ours: the path, the reason and what to do."""
    reason = error.strerror or str(error)
    names = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)
    ]
    if OUTPUT in names:
        discard_output()
    kind = InputError if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR) else IResNetError
    where = names[-1] if names else "a file"
    return kind(f"{where}: cannot be read or written ({reason}){_ADVICE.get(error.errno or 0, '')}")


def _refuse_nan(options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name.replace('_', '-')}: expected a number, found {value}")


def fail(error: IResNetError) -> NoReturn:
    """End a command with an error as one line.

    Raises:
        typer.Exit: always, with the error's exit code.
    """
    say(f"error: {printable(' '.join(str(error).split()))}", stream=sys.stderr)
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
