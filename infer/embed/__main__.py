"""Build the C library, its headers and the C++ example: ``python -m infer.embed [--prefix build/embed]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infer.embed.install import install
from infer.errors import IResNetError

DESCRIPTION = """\
Build and install the C library: PREFIX/lib/libiresnet_infer.so, PREFIX/include, a pkg-config file and a CMake package.
Needs a C compiler (CC), for the example a C++17 compiler (CXX), and a Python built with its shared library. The library
holds the interpreter that runs this command; its own copy of the package infer lies in PREFIX/lib/iresnet-infer."""


def main(arguments: list[str] | None = None) -> int:
    """Build everything into ``--prefix``; the exit code."""
    parser = argparse.ArgumentParser(
        "python -m infer.embed", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prefix", type=Path, default=Path("build/embed"), help="folder to install into, such as /usr/local"
    )
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="python executable of the environment whose packages (numpy, a backend) the library will use; of the same "
        "version as this one. Written to PREFIX/lib/iresnet-infer/environment, where it can be changed",
    )
    parser.add_argument("--no-example", action="store_true", help="leave out PREFIX/bin/iresnet-classify")
    options = parser.parse_args(arguments)
    try:
        installed = install(options.prefix, python=options.python, example=not options.no_example)
    except IResNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"installed {path}" for path in installed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
