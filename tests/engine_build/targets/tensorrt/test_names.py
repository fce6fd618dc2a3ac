"""Every TensorRT name in the builder's code exists in TensorRT 10, 11 and RTX.

No machine runs all three. The lists in ``tests/trt_api`` were read from NVIDIA's Python bindings; here the source is
walked and each name it takes from TensorRT is looked up: constants, classes, and attributes of objects, whose class is
followed from where they come: ``builder.create_network()`` gives an ``INetworkDefinition``.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from trt_posing import VERSIONS

PACKAGE = Path(__file__).parents[4] / "engine_build" / "targets" / "tensorrt"
SOURCES = [*sorted(PACKAGE.glob("*.py")), PACKAGE.parents[2] / "infer" / "backends" / "cuda" / "logger.py"]

# What parameters of these names hold, in this package.
PARAMETERS = {
    "trt": "module",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "plan": "IHostMemory",
}
ATTRIBUTES = {"_trt": "module"}
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("Builder", "build_serialized_network"): "IHostMemory",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("OnnxParser", "get_error"): "ParserError",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
}
NEWER = ("11.4", "rtx")

# Behind "if it is RTX" in the code.
RTX_ONLY = {
    ("module", "ComputeCapability"),
    ("ComputeCapability", "__members__"),
    ("ComputeCapability", "CURRENT"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
}


class Use(NamedTuple):
    owner: str
    name: str


class Walker(ast.NodeVisitor):
    """Collects the uses of one module; variables are followed within a function, and ``self`` attributes by name."""

    def __init__(self):
        self.uses: set[Use] = set()
        self.scopes: list[dict[str, str]] = [{}]

    def visit_FunctionDef(self, node):
        arguments = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
        self.scopes.append({name: PARAMETERS[name] for name in arguments & PARAMETERS.keys()})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_ClassDef(self, node):
        for base in node.bases:
            owner = self.owner(base)
            if owner:  # methods that TensorRT calls
                self.uses |= {
                    Use(owner, item.name)
                    for item in node.body
                    if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")
                }
        self.generic_visit(node)

    def visit_Assign(self, node):
        self.generic_visit(node)
        targets, values = node.targets[0], node.value
        pairs = [(targets, values)]
        if isinstance(targets, ast.Tuple) and isinstance(values, ast.Tuple):
            pairs = list(zip(targets.elts, values.elts, strict=True))
        for target, value in pairs:
            owner = self.owner(value)
            if owner and isinstance(target, ast.Name):
                self.scopes[-1][target.id] = owner

    def visit_Attribute(self, node):
        owner = self.owner(node.value)
        if owner and (node.attr == "__members__" or not node.attr.startswith("__")):
            self.uses.add(Use(owner, node.attr))
        self.generic_visit(node)

    def owner(self, node):
        """The TensorRT class or enum that ``node`` evaluates to, ``module`` for the module, else None."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        if isinstance(node, ast.Attribute):
            return ATTRIBUTES.get(node.attr) or (node.attr if self.owner(node.value) == "module" else None)
        if isinstance(node, ast.IfExp):
            return self.owner(node.body) or self.owner(node.orelse)
        if not isinstance(node, ast.Call):
            return None
        constructed = self.owner(node.func)
        if constructed is None and isinstance(node.func, ast.Attribute):
            return RETURNS.get((self.owner(node.func.value), node.func.attr))
        return constructed


def uses_of(source):
    walker = Walker()
    walker.visit(ast.parse(source))
    return walker.uses


def missing(uses, api):
    """The uses that ``api`` does not list."""
    found = set()
    for owner, name in uses:
        if owner == "module":
            known = set(api)
        else:
            entry = api.get(owner, {})
            known = {*entry.get("members", ()), *entry.get("attributes", ())} | ({"__members__"} if entry else set())
        if name not in known:
            found.add((owner, name))
    return found


@pytest.fixture(scope="module")
def uses():
    return set().union(*(uses_of(path.read_text()) for path in SOURCES))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists(uses, version):
    absent = missing(uses, VERSIONS[version])
    assert absent <= (set() if version == "rtx" else RTX_ONLY), f"TensorRT {version} lacks {sorted(absent)}"


def test_the_walk_sees_what_the_builder_uses(uses):
    """An empty walk would pass every list."""
    assert uses >= {
        ("module", "Builder"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("BuilderFlag", "VERSION_COMPATIBLE"),
        ("ProfilingVerbosity", "DETAILED"),
        ("MemoryPoolType", "WORKSPACE"),
        ("Builder", "build_serialized_network"),
        ("INetworkDefinition", "get_input"),
        ("ITensor", "shape"),
        ("IOptimizationProfile", "set_shape"),
        ("IBuilderConfig", "set_timing_cache"),
        ("IBuilderConfig", "progress_monitor"),
        ("ITimingCache", "serialize"),
        ("IHostMemory", "nbytes"),
        ("OnnxParser", "parse_from_file"),
        ("ParserError", "node_operator"),
        ("ILogger", "log"),
        ("ILogger", "INTERNAL_ERROR"),
        ("IProgressMonitor", "step_complete"),
    } | {use for use in RTX_ONLY if use[1] != "__members__"}


@pytest.mark.parametrize(
    ("line", "name", "lacking"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", ("BuilderFlag", "FP16"), NEWER),
        ("config.int8_calibrator = c", ("IBuilderConfig", "int8_calibrator"), NEWER),
        (
            "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
            ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
            NEWER,
        ),
        ("b = trt.Builder(x); b.build_engine_with_config(n, c)", ("Builder", "build_engine_with_config"), ("rtx",)),
        (
            "trt.Builder(x).create_network(0).get_input(0).set_dynamic_range(0, 1)",
            ("ITensor", "set_dynamic_range"),
            NEWER,
        ),
        ("config.set_compute_capability(c, 0)", ("IBuilderConfig", "set_compute_capability"), ("10.16", "11.4")),
        ("trt.IInt8EntropyCalibrator2", ("module", "IInt8EntropyCalibrator2"), NEWER),
        ("trt.Bilder(x)", ("module", "Bilder"), tuple(VERSIONS)),
    ],
)
def test_a_name_that_is_not_everywhere_is_caught(line, name, lacking):
    uses = uses_of(f"def f(trt, config):\n    {line}\n")
    found = {version: missing(uses, api) for version, api in VERSIONS.items()}
    assert {version: absent for version, absent in found.items() if absent} == {key: {name} for key in lacking}


def test_assumed_return_types_are_those_of_the_installed_module():
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    for (owner, method), returned in RETURNS.items():
        signature = getattr(getattr(trt, owner), method).__doc__.splitlines()[0]
        assert re.search(rf"-> .*\bI?{returned}\b", signature), signature


def test_the_list_of_rtx_is_that_of_the_installed_module():
    """So a newer module shows what changed; the other lists were read in the same way."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    if trt.__version__ != "1.7.1.116":
        pytest.skip(f"the list is of 1.7.1.116, installed is {trt.__version__}")
    for owner in ("Builder", "IBuilderConfig", "OnnxParser", "ITensor", "ParserError"):
        listed = set(VERSIONS["rtx"][owner]["attributes"])
        assert listed == {name for name in dir(getattr(trt, owner)) if not name.startswith("_")}
