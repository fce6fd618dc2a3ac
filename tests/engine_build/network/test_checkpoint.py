"""Checkpoint files: nothing in them is run, and the network's tensors are found among whatever else is there."""

from __future__ import annotations

import os
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file
from small_models import same_weights

from engine_build.network import zoo
from engine_build.network.checkpoint import find_weights, read_checkpoint
from engine_build.network.weights import load_weights
from infer.errors import WeightsError

NAMES = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"]


class Payload:
    """What a hostile checkpoint holds: code that runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(state, tmp_path, zipped):
    mark, path = tmp_path / "executed", tmp_path / "x.pth"
    content = {"state_dict": state, "hook": Payload(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"holds more than tensors, which this project refuses to unpickle"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_is_refused_and_not_run(tmp_path, protocol):
    mark, path = tmp_path / "executed", tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Payload(mark), protocol))
    with pytest.raises(WeightsError, match=r"refuses to unpickle|not a PyTorch checkpoint"):
        read_checkpoint(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.is_dir()  # the payload works where it is let in


def test_a_whole_pickled_module_is_refused(narrow_row, tmp_path):
    torch.save(zoo.create_model(narrow_row.name), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"refuses to unpickle.*Save the state_dict alone"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(narrow_row, state, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    data = path.read_bytes()
    for length in (0, 1, 7, 100, len(data) // 3, len(data) // 2, len(data) - 4000, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match="not a "):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(range(256)) * 40, "not a"),
        (
            b"\n<!DOCTYPE html><html>Quota exceeded</html>",
            r"not a checkpoint but a web page. Google Drive .* its link in",
        ),
        (b"<HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "a Git LFS pointer to one. Run: git lfs pull"),
        (b"i am a text", "not a PyTorch checkpoint, or a damaged one$"),
        (torch.zeros(3), "expected a state_dict, found Tensor"),
        ({}, "found nothing in it"),
        ({"epoch": 3, "names": ["a"]}, "found no tensor in it, only the keys epoch, names"),
        ([torch.zeros(3)], "expected a state_dict, found list"),
        (
            {"model": {f"stem.{n}.weight": torch.zeros(1) for n in range(7)}},
            r"found 7 tensors of another network: model.stem.0.weight, .*model.stem.4.weight, ... \(7\)",
        ),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        find_weights(read_checkpoint(path), NAMES, str(path))


def test_a_page_of_an_official_checkpoint_comes_with_its_link(tmp_path):
    row = zoo.find_model("iresnet50")
    (tmp_path / "iresnet50.pth").write_text("<!doctype html><title>Google Drive - Quota exceeded</title>")
    with pytest.raises(WeightsError, match=f"Open https://drive.google.com/uc.id={row.drive_id} in a browser"):
        load_weights(row, tmp_path / "iresnet50.pth")


def changed(state):
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


AVERAGES = {
    "timm": (lambda state, ema: {"state_dict_ema": ema, "state_dict": state}, "state_dict", "state_dict_ema"),
    "wrapped": (
        lambda state, ema: {"model": state, "model_ema": {f"module.{n}": v for n, v in ema.items()}},
        "model",
        "model_ema.module",
    ),
    "lightning": (
        lambda state, ema: {
            "state_dict": {f"ema.module.{n}": v for n, v in ema.items()} | {f"net.{n}": v for n, v in state.items()}
        },
        "state_dict.net",
        "state_dict.ema.module",
    ),
    "inside": (lambda state, ema: {f"ema.{n}": v for n, v in ema.items()} | state, "", "ema"),
}


@pytest.mark.parametrize(("wrap", "plain", "average"), AVERAGES.values(), ids=AVERAGES)
def test_averages_beside_the_weights_are_pointed_out_and_can_be_chosen(
    narrow_row, state, tmp_path, wrap, plain, average
):
    path, ema = tmp_path / "x.pth", changed(state)
    torch.save(wrap(state, ema), path)
    found = load_weights(narrow_row, path)
    assert same_weights(found.model, state)
    assert f"took {plain!r}; also there: {average!r} (--weights-key)" in found.notes[0]
    assert same_weights(load_weights(narrow_row, path, key=average).model, ema)
    assert same_weights(load_weights(narrow_row, path, key=plain).model, state)
    with pytest.raises(WeightsError, match=f"no weights under 'emma'; found .*{average!r}"):
        load_weights(narrow_row, path, key="emma")


def test_averages_alone_are_taken(narrow_row, state, tmp_path):
    torch.save({"state_dict_ema": state}, tmp_path / "x.pth")
    found = load_weights(narrow_row, tmp_path / "x.pth")
    assert same_weights(found.model, state) and found.notes == ()


def test_a_key_needs_its_file(narrow_row):
    with pytest.raises(WeightsError, match="weights key 'ema': of which checkpoint"):
        load_weights(narrow_row, key="ema")


def test_what_is_left_out_is_named(narrow_row, state, tmp_path):
    torch.save({"net." + n: v for n, v in state.items()} | {"loss.weight": torch.ones(1)}, tmp_path / "x.pth")
    assert "not of the network, left out: loss.weight" in load_weights(narrow_row, tmp_path / "x.pth").notes[0]
    torch.save({"net." + n: v for n, v in state.items()} | {"net.loss.weight": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"unexpected 1: loss.weight"):  # within the network, nothing is
        load_weights(narrow_row, tmp_path / "x.pth")


def test_quantised_tensors_stand_for_floats(narrow_row, state, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(state["fc.weight"], 0.01, 0, torch.qint8)
        torch.save({**state, "fc.weight": quantised}, tmp_path / "x.pth")
        found = load_weights(narrow_row, tmp_path / "x.pth")
    expected = (state["fc.weight"] / 0.01).round().clamp(-128, 127) * 0.01
    assert torch.allclose(found.model.fc.weight, expected, atol=1e-6)
    assert "quantised tensors, taken as the floats they stand for: fc.weight" in found.notes[0]
