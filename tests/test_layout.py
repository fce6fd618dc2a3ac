"""The rules of the house: which package and which folder may import which, and where tests lie."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("infer", "calibration", "engine_build")  # each imports itself and those before it
COMMANDS = {"bench", "classify", "export", "serve", "verify"}  # folders of infer that a command is made of
HEAVY = {"torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda"}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules of ours that a file imports anywhere, and whether that is for types only."""

    def walk(node: ast.AST, types: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, True)
            elif isinstance(child, ast.Import):
                yield from ((alias.name, types) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: a relative import"
                for alias in child.names:
                    inner = f"{child.module}.{alias.name}"
                    yield (inner if inner in MODULES else str(child.module)), types
            else:
                yield from walk(child, types)

    for name, types in walk(ast.parse(path.read_text(encoding="utf-8")), False):
        if name in MODULES:
            yield name, types


def test_packages_import_one_way():
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name, _ in imports(path)
        if PACKAGES.index(name.partition(".")[0]) > PACKAGES.index(module.partition(".")[0])
    ]
    assert wrong == []


def test_no_library_folder_imports_a_command_folder():
    def command(module: str) -> str | None:
        parts = module.split(".")
        return parts[1] if parts[0] == "infer" and len(parts) > 1 and parts[1] in COMMANDS else None

    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name, _ in imports(path)
        if module.startswith("infer.") and module != "infer.cli" and command(name) not in (None, command(module))
    ]
    assert wrong == []


def test_circles_are_of_types_only():
    """An import that runs, at the top of a file or inside a function, leads to no file that leads back."""
    edges = {module: {name for name, types in imports(path) if not types} for module, path in MODULES.items()}
    state: dict[str, int] = {}
    circles = []

    def visit(module: str, trail: list[str]) -> None:
        state[module] = 1
        for name in sorted(edges[module]):
            if name == module:
                continue
            if state.get(name) == 1:
                circles.append(" -> ".join([*trail[trail.index(name) :], name]))
            elif name not in state:
                visit(name, [*trail, name])
        state[module] = 2

    for module in sorted(MODULES):
        if module not in state:
            visit(module, [module])
    assert circles == []


def test_a_command_folder_has_nothing_but_a_docstring():
    for folder in COMMANDS:
        body = ast.parse((ROOT / "infer" / folder / "__init__.py").read_text("utf-8")).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), folder


@pytest.mark.parametrize("statement", [f"import {package}" for package in PACKAGES] + ["import engine_build.command"])
def test_what_is_imported_first_is_light(statement):
    code = f"import sys, json; {statement}; print(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & HEAVY


def test_tests_lie_where_their_subject_lies():
    wrong = []
    for package in PACKAGES:
        for path in (ROOT / "tests" / package).rglob("test_*.py"):
            folder = path.parent.relative_to(ROOT / "tests")
            if not (ROOT / folder).is_dir():
                wrong.append(str(path.relative_to(ROOT)))
    assert wrong == []


def test_files_stay_small():
    """One subject a file; those that are longer were looked at."""
    long = {str(path.relative_to(ROOT)) for path in MODULES.values() if len(path.read_text("utf-8").splitlines()) > 360}
    assert long == set()
