"""Checkpoints in every form people have, and everything that keeps one from fitting."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import same_weights

from engine_build.network import zoo
from engine_build.network.weights import load_strictly, load_weights
from infer.errors import WeightsError
from infer.files import sha256_file


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


WRAPPERS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 90, "state_dict": state, "best": torch.tensor(77.3)},
    "model": lambda state: {"model": state, "arch": "iresnet"},
    "sole": lambda state: {"anything": {"at": {"all": state}}, "epoch": 3},
    "data parallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "both": lambda state: {"model_state_dict": prefixed("module._orig_mod.", state)},
    "both, the other way round": lambda state: {"net": prefixed("_orig_mod.module.", state), "epoch": 3},
    "lightning": lambda state: {
        "state_dict": {**prefixed("model.net.", state), "criterion.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
    },
    "averaged": lambda state: {"n_averaged": torch.tensor(5), **prefixed("module.", state)},
    "profiled": lambda state: {**state, "total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)},
    "scores and arguments": lambda state: {
        "state_dict": state,
        "best": np.float64(91.2),
        "args": argparse.Namespace(lr=0.1, output=Path("runs")),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    },
    "double": lambda state: {
        name: value.double() if value.is_floating_point() else value for name, value in state.items()
    },
    "without counters": lambda state: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files(narrow_row, state, tmp_path, wrap, zipped):
    path = tmp_path / "x.pth"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=zipped)
    loaded = load_weights(narrow_row, path)
    if wrap is WRAPPERS["without counters"]:
        state = {name: value * 0 if name.endswith("num_batches_tracked") else value for name, value in state.items()}
    assert same_weights(loaded.model, state)
    assert loaded.trained
    assert not loaded.model.training
    assert (loaded.source, loaded.sha256) == ("x.pth", sha256_file(path))


def test_safetensors(narrow_row, state, tmp_path):
    save_file(state, tmp_path / "x.safetensors")
    assert same_weights(load_weights(narrow_row, tmp_path / "x.safetensors").model, state)


def test_half_precision_files_are_widened(narrow_row, state, tmp_path):
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(half, tmp_path / "x.safetensors")
    model = load_weights(narrow_row, tmp_path / "x.safetensors").model
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.fc.weight, half["fc.weight"].float())


def test_a_missing_file(narrow_row, tmp_path):
    with pytest.raises(WeightsError, match=r"no checkpoint at .*none.pth"):
        load_weights(narrow_row, tmp_path / "none.pth")


def misfit(narrow_row, state):
    with pytest.raises(WeightsError) as caught:
        load_strictly(zoo.create_model(narrow_row.name), state, "x.pth")
    return str(caught.value)


def test_missing_names_are_counted_and_at_most_five_are_listed(narrow_row, state):
    dropped = [name for name in state if name.startswith("layer1") and "num_batches" not in name]
    message = misfit(narrow_row, {name: value for name, value in state.items() if name not in dropped})
    assert f"missing {len(dropped)}: {', '.join(dropped[:5])}, ..." in message
    assert dropped[5] not in message
    assert "unexpected" not in message
    assert "wrong shape" not in message
    assert "Is it another MODEL or width?" in message


def test_few_missing_names_are_all_listed(narrow_row, state):
    del state["fc.bias"], state["conv1.weight"]
    assert "(missing 2: conv1.weight, fc.bias)" in misfit(narrow_row, state)


def test_unexpected_names(narrow_row, state):
    message = misfit(narrow_row, {**state, **{f"extra.{i}": torch.zeros(1) for i in range(7)}})
    assert "unexpected 7: extra.0, extra.1, extra.2, extra.3, extra.4, ...)" in message
    assert "missing" not in message


def test_wrong_shapes_say_both(narrow_row, state):
    message = misfit(narrow_row, {**state, "fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)})
    assert "wrong shape 2: fc.weight is [1000, 32], expected [10, 32], fc.bias is [1000], expected [10]" in message


def test_another_width_lists_five_shapes(narrow_row, tmp_path):
    torch.save(zoo.create_model(narrow_row.name, width=0.125).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(
        WeightsError, match=r"wide.pth does not fit the model \(wrong shape \d+: conv1.weight is \[8, 3"
    ) as e:
        load_weights(narrow_row, tmp_path / "wide.pth")
    assert str(e.value).count("expected [") == 5


def test_a_failed_load_leaves_the_model_as_it_was(narrow_row, state):
    model = zoo.create_model(narrow_row.name)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    del state["fc.bias"]
    with pytest.raises(WeightsError):
        load_strictly(model, state, "x")
    assert same_weights(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(narrow_row, state, value):
    state["layer2.0.conv1.weight"][1, 1] = value
    state["fc.bias"][0] = value
    assert "NaN or infinity in 2 tensors: layer2.0.conv1.weight, fc.bias" in misfit(narrow_row, state)


def test_classes_come_from_the_checkpoint(narrow_row, tmp_path):
    torch.save(zoo.create_model(narrow_row.name, num_classes=17).state_dict(), tmp_path / "x.pth")
    assert load_weights(narrow_row, tmp_path / "x.pth").model.fc.out_features == 17
    with pytest.raises(WeightsError, match=r"fc.weight is \[17, 32\], expected \[5, 32\]"):
        load_weights(narrow_row, tmp_path / "x.pth", num_classes=5)
