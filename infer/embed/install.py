"""Where everything of the C library goes under a prefix.

    include/iresnet_infer.h, .hpp
    lib/libiresnet_infer.so.2             and the link libiresnet_infer.so
    lib/iresnet-infer/infer/              the package, which no other of that name replaces
    lib/iresnet-infer/environment         which Python is started, for its packages
    lib/pkgconfig/iresnet-infer.pc
    lib/cmake/iresnet-infer/*.cmake
    bin/iresnet-classify                  the example

Everything finds the rest from where it lies, so a prefix may be moved as a whole.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import infer
from infer.embed.compile import HEADERS, HERE, LIBRARY, abi_version, compile_example, compile_library
from infer.errors import InputError
from infer.files import replacing_folder, write_bytes

NAME = "iresnet-infer"

PKG_CONFIG = """\
prefix=${{pcfiledir}}/../..
libdir=${{prefix}}/lib
includedir=${{prefix}}/include

Name: {name}
Description: Classify images with iResNet engine bundles
Version: {version}
Libs: -L${{libdir}} -liresnet_infer
Cflags: -I${{includedir}}
"""

CMAKE = """\
# find_package({name} {version} REQUIRED), then target_link_libraries(... iresnet::infer)
get_filename_component(_iresnet_prefix "${{CMAKE_CURRENT_LIST_DIR}}/../../.." ABSOLUTE)
if(NOT TARGET iresnet::infer)
  add_library(iresnet::infer SHARED IMPORTED)
  set_target_properties(iresnet::infer PROPERTIES
    IMPORTED_LOCATION "${{_iresnet_prefix}}/lib/{library}.{abi}"
    IMPORTED_SONAME "{library}.{abi}"
    INTERFACE_INCLUDE_DIRECTORIES "${{_iresnet_prefix}}/include")
endif()
unset(_iresnet_prefix)
"""

CMAKE_VERSION = """\
set(PACKAGE_VERSION "{version}")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
"""

ENVIRONMENT = """\
# Whose packages libiresnet_infer uses; the variable IRESNET_PYTHON goes before this.
python = {python}
"""


def install(prefix: Path, *, python: Path, example: bool = True) -> list[Path]:
    """Build and install everything; each file appears whole.

    Args:
        prefix: folder to install into; made where it is missing.
        python: executable of the environment whose packages the library will use, an absolute path.
        example: compile the C++ example too.

    Returns:
        What a user calls by name: the library, the headers, the package files, the example.

    Raises:
        InputError: ``python`` is no absolute path of an executable.
        MissingDependencyError: a compiler or Python's headers are missing.
        UnsupportedError: this Python cannot be embedded, or something does not compile.
    """
    prefix = prefix.absolute()
    if not python.is_absolute() or not python.is_file():
        raise InputError(f"--python: expected the absolute path of a python executable, found {str(python)!r}")
    facts = {"name": NAME, "version": infer.__version__, "library": LIBRARY, "abi": abi_version()}
    library, own = prefix / "lib" / f"{LIBRARY}.{facts['abi']}", prefix / "lib" / NAME
    texts = {
        prefix / "lib/pkgconfig" / f"{NAME}.pc": PKG_CONFIG,
        prefix / "lib/cmake" / NAME / f"{NAME}-config.cmake": CMAKE,
        prefix / "lib/cmake" / NAME / f"{NAME}-config-version.cmake": CMAKE_VERSION,
    }
    with tempfile.TemporaryDirectory() as work:
        compiled = Path(work, LIBRARY)
        compile_library(compiled)
        library.parent.mkdir(parents=True, exist_ok=True)
        own.parent.mkdir(exist_ok=True)
        with replacing_folder(own) as folder:
            _copy_package(folder / "infer")
            (folder / "environment").write_text(ENVIRONMENT.format(python=python), encoding="utf-8")
        for path in (*texts, prefix / "include/any"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(library, compiled.read_bytes())
        library.chmod(0o755)
    link = library.with_name(LIBRARY)
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)
    for header in HEADERS:
        write_bytes(prefix / "include" / header, (HERE / header).read_bytes())
    for path, text in texts.items():
        write_bytes(path, text.format(**facts).encode())
    made = [library, *(prefix / "include" / header for header in HEADERS), *texts]
    if example:
        (prefix / "bin").mkdir(exist_ok=True)
        compile_example(prefix, prefix / "bin/iresnet-classify")
        made.append(prefix / "bin/iresnet-classify")
    return made


def _copy_package(target: Path) -> None:
    """The package as it is imported here, without this folder's sources and anything compiled for another Python."""
    shutil.copytree(
        Path(infer.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__", "*.c", "*.h", "embed", "*.o")
    )
