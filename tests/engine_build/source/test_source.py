"""Which network: names and options that are refused before any work."""

from __future__ import annotations

import onnx
import pytest
import torch
from small_models import SPEC, classifier, narrow

from engine_build import source
from engine_build.network.zoo import MODELS, create_model
from engine_build.source import SourceOptions, Steps, check_name, load_source
from infer.errors import GraphError, InputError, WeightsError


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "a\\b",
        "/x",
        "..",
        ".hidden",
        "",
        "  ",
        "-p",
        "new\nline",
        "tab\t",
        "nul\0",
        "x" * 101,
        "a\u2028b",
    ],
)
def test_names_that_cannot_be_a_folder(tmp_path, name):
    onnx.save(classifier(), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="model: expected a name of 1 to 100 characters") as caught:
        load_source(SourceOptions(name, onnx=tmp_path / "net.onnx", preprocessing=SPEC), Steps())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["iresnet50", "my net", "net-v1.2", "netz_größe", "a+b", "1"])
def test_other_names(name):
    check_name(name)


def test_one_class_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(source, "_export", None)
    with pytest.raises(InputError, match=r"classes: expected at least 2, found 1; the softmax of one is always 1"):
        load_source(SourceOptions("iresnet18", num_classes=1), Steps())


@pytest.fixture
def row(monkeypatch):
    made = narrow("iresnet18")
    monkeypatch.setitem(MODELS, made.name, made)
    return made


def checkpoint(tmp_path, row, classes=10, **changes):
    state = create_model(row.name, classes, row.width).state_dict()
    for name, value in changes.items():
        state[name.replace("__", ".")].view(-1)[0] = value
    torch.save(state, tmp_path / "c.pth")
    return SourceOptions(row.name, weights=tmp_path / "c.pth")


def test_a_checkpoint_of_one_class(tmp_path, row):
    with pytest.raises(GraphError, match="expected logits of two or more classes, found 1"):
        load_source(checkpoint(tmp_path, row, classes=1), Steps())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer1__0__conv1__weight", float("nan"), "NaN or infinity in 1 tensors: layer1.0.conv1.weight"),
        ("fc__bias", float("inf"), "NaN or infinity in 1 tensors: fc.bias"),
        ("bn1__running_var", -1.0, "negative variances in 1 tensors: bn1.running_var"),
    ],
)
def test_weights_that_are_no_numbers_are_named(tmp_path, row, name, value, message):
    with pytest.raises(WeightsError, match=message):
        load_source(checkpoint(tmp_path, row, **{name: value}), Steps())
