"""Faults planted in a plan make opening fail; ``benchmarks/known_answers.py`` plants more of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest

from engine_build.checks.as_written import as_written
from infer.bundle import GRAPH, read_manifest
from infer.checks.known_answers import read_answers
from infer.checks.sqnr import centred_sqnr

BENCHMARK = Path(__file__).parents[3] / "benchmarks/known_answers.py"
FAULTS = ("saturation", "transposed weight", "stale scale", "shifted bias")


@pytest.fixture(scope="module")
def faults():
    spec = importlib.util.spec_from_file_location("planted_faults", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_kinds_are_all_tried(faults):
    assert tuple(faults.FAULTS) == FAULTS


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_in_one_layer_is_caught_at_opening(faults, shipped, tmp_path, kind):
    layer = None if kind == "saturation" else 19
    faults.plant(shipped("int8"), tmp_path / "plan", faults.FAULTS[kind], layer)
    message = faults.caught(tmp_path / "plan")
    assert message is not None and "The graph is right" in message  # only the plan was changed
    assert not (tmp_path / "plan" / "known_answers.passed").exists()


def test_the_same_plan_made_again_opens(faults, shipped, tmp_path):
    faults.plant(shipped("int8"), tmp_path / "plan", lambda layer: None, None)
    assert faults.caught(tmp_path / "plan") is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS[1:])
def test_a_fault_in_any_layer_shows(faults, shipped, kind):
    folder = shipped("int8")
    manifest = read_manifest(folder)
    answers = read_answers(folder, manifest)
    missed = {}
    for number in range(len(faults.layers(onnx.load(folder / GRAPH)))):
        graph = onnx.load(folder / GRAPH)
        layer = faults.layers(graph)[number]
        faults.FAULTS[kind](layer)
        sqnr = centred_sqnr(as_written(graph)(answers.images), answers.logits)
        if sqnr is None or sqnr >= manifest.known_answers.floor_db:
            missed[layer.node.name] = sqnr
    assert missed == {}
