"""Checkpoints: every form people have, everything that can be wrong with one, and the order of the sources."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import narrow

from engine_build import weights, zoo
from engine_build.iresnet import Architecture, IResNet, initialise
from engine_build.weights import load_strictly, load_weights, random_weights, read_checkpoint
from infer.errors import WeightsError
from infer.files import sha256_file

DOWNLOADABLE = "narrow-official"


@pytest.fixture
def row(monkeypatch):
    """A small network that can be asked for by name, with nothing to download."""
    row = narrow("iresnet18")
    monkeypatch.setitem(zoo.MODELS, row.name, row)
    return row


@pytest.fixture
def official(monkeypatch, tmp_path):
    """The same with a Google Drive file, and an empty cache folder."""
    row = replace(narrow("iresnet18"), name=DOWNLOADABLE, drive_id="drive-id")
    monkeypatch.setitem(zoo.MODELS, row.name, row)
    monkeypatch.setenv("IRESNET_CACHE", str(tmp_path / "cache"))
    return row


@pytest.fixture
def state(row):
    """A trained-looking state_dict: no tensor equals what a new network has."""
    generator = torch.Generator().manual_seed(9)
    state = zoo.create_model(row.name).state_dict()
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else value + 7
        for name, value in state.items()
    }


def same(model, state):
    loaded = model.state_dict()
    return list(loaded) == list(state) and all(torch.equal(loaded[name], state[name]) for name in state)


WRAPPERS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 90, "state_dict": state, "best": torch.tensor(77.3)},
    "model": lambda state: {"model": state, "arch": "iresnet"},
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "data parallel training": lambda state: {"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 3},
    "double": lambda state: {
        name: value.double() if value.is_floating_point() else value for name, value in state.items()
    },
    "without counters": lambda state: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files(row, state, tmp_path, wrap, zipped):
    path = tmp_path / "x.pth"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=zipped)
    loaded = load_weights(row, path)
    if wrap is WRAPPERS["without counters"]:
        state = {name: value * 0 if name.endswith("num_batches_tracked") else value for name, value in state.items()}
    assert same(loaded.model, state)
    assert loaded.trained
    assert not loaded.model.training
    assert (loaded.source, loaded.sha256) == ("x.pth", sha256_file(path))


def test_safetensors(row, state, tmp_path):
    save_file(state, tmp_path / "x.safetensors")
    assert same(load_weights(row, tmp_path / "x.safetensors").model, state)


def test_half_precision_files_are_widened(row, state, tmp_path):
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(half, tmp_path / "x.safetensors")
    model = load_weights(row, tmp_path / "x.safetensors").model
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(model.fc.weight, half["fc.weight"].float())


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


def test_a_whole_pickled_module_is_refused(row, tmp_path):
    torch.save(zoo.create_model(row.name), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"refuses to unpickle.*Save the state_dict alone"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(row, state, tmp_path, suffix):
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
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "not a PyTorch checkpoint"),
        (bytes(range(256)) * 40, "not a"),
        (torch.zeros(3), "expected a state_dict, found Tensor"),
        ({"epoch": 3, "names": ["a"]}, "found no tensor in it"),
        ([torch.zeros(3)], "expected a state_dict, found list"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)


def test_a_missing_file(row, tmp_path):
    with pytest.raises(WeightsError, match=r"no checkpoint at .*none.pth"):
        load_weights(row, tmp_path / "none.pth")


def misfit(row, state):
    with pytest.raises(WeightsError) as caught:
        load_strictly(zoo.create_model(row.name), state, "x.pth")
    return str(caught.value)


def test_missing_names_are_counted_and_at_most_five_are_listed(row, state):
    dropped = [name for name in state if name.startswith("layer1") and "num_batches" not in name]
    message = misfit(row, {name: value for name, value in state.items() if name not in dropped})
    assert f"missing {len(dropped)}: {', '.join(dropped[:5])}, ..." in message
    assert dropped[5] not in message
    assert "unexpected" not in message
    assert "wrong shape" not in message
    assert "Is it another MODEL or width?" in message


def test_few_missing_names_are_all_listed(row, state):
    del state["fc.bias"], state["conv1.weight"]
    assert "(missing 2: conv1.weight, fc.bias)" in misfit(row, state)


def test_unexpected_names(row, state):
    message = misfit(row, {**state, **{f"extra.{i}": torch.zeros(1) for i in range(7)}})
    assert "unexpected 7: extra.0, extra.1, extra.2, extra.3, extra.4, ...)" in message
    assert "missing" not in message


def test_wrong_shapes_say_both(row, state):
    message = misfit(row, {**state, "fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)})
    assert "wrong shape 2: fc.weight is [1000, 32], expected [10, 32], fc.bias is [1000], expected [10]" in message


def test_another_width_lists_five_shapes(row, tmp_path):
    torch.save(zoo.create_model(row.name, width=0.125).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(
        WeightsError, match=r"wide.pth does not fit the model \(wrong shape \d+: conv1.weight is \[8, 3"
    ) as e:
        load_weights(row, tmp_path / "wide.pth")
    assert str(e.value).count("expected [") == 5


def test_a_failed_load_leaves_the_model_as_it_was(row, state):
    model = zoo.create_model(row.name)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    del state["fc.bias"]
    with pytest.raises(WeightsError):
        load_strictly(model, state, "x")
    assert same(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(row, state, value):
    state["layer2.0.conv1.weight"][1, 1] = value
    state["fc.bias"][0] = value
    assert "NaN or infinity in 2 tensors: layer2.0.conv1.weight, fc.bias" in misfit(row, state)


def test_classes_come_from_the_checkpoint(row, tmp_path):
    torch.save(zoo.create_model(row.name, num_classes=17).state_dict(), tmp_path / "x.pth")
    assert load_weights(row, tmp_path / "x.pth").model.fc.out_features == 17
    with pytest.raises(WeightsError, match=r"fc.weight is \[17, 32\], expected \[5, 32\]"):
        load_weights(row, tmp_path / "x.pth", num_classes=5)


# --- where weights come from -----------------------------------------------------------------------------------------


def refuse(*_args, **_kwargs):
    raise AssertionError("nothing may be downloaded here")


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr("gdown.download", refuse)


@pytest.mark.usefixtures("no_network")
def test_shipped_weights():
    loaded = load_weights(zoo.MODELS["iresnet50_fashion"])
    assert (loaded.source, loaded.trained) == ("shipped", True)
    assert loaded.sha256 == sha256_file(zoo.MODELS["iresnet50_fashion"].shipped / "weights.safetensors")


@pytest.mark.usefixtures("no_network")
def test_a_file_beats_the_shipped_weights(tmp_path):
    row = zoo.MODELS["iresnet50_fashion"]
    torch.save(zoo.create_model(row.name, seed=3).state_dict(), tmp_path / "mine.pt")
    assert load_weights(row, tmp_path / "mine.pt").source == "mine.pt"


@pytest.mark.usefixtures("no_network")
def test_other_classes_or_width_of_the_shipped_model_are_random():
    loaded = load_weights(zoo.MODELS["iresnet50_fashion"], num_classes=3, width=1 / 16)
    assert not loaded.trained
    assert loaded.notes == ("no checkpoint exists for this num_classes and width",)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pth.tar"])
def test_the_cache_beats_the_download(official, state, suffix):
    folder = weights.cache_folder()
    folder.mkdir(parents=True)
    path = folder / f"{official.name}{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_weights(official)
    assert same(loaded.model, state)
    assert loaded.source == f"cache ({path.name})"


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("IRESNET_CACHE", str(tmp_path / "a"))
    assert weights.cache_folder() == tmp_path / "a/weights"
    monkeypatch.delenv("IRESNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert weights.cache_folder() == tmp_path / "b/iresnet/weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert weights.cache_folder() == tmp_path / ".cache/iresnet/weights"


def drive(monkeypatch, serve):
    """Let Google Drive answer through ``serve(path)``; returns the list of requests."""
    requests = []

    def download(*, id, output, **_kwargs):
        requests.append(id)
        return serve(Path(output)) or output

    monkeypatch.setattr("gdown.download", download)
    return requests


def test_download(monkeypatch, official, state):
    requests = drive(monkeypatch, lambda path: torch.save({"state_dict": state}, path))
    loaded = load_weights(official)
    assert requests == ["drive-id"]
    assert same(loaded.model, state)
    assert loaded.source == "official (Google Drive drive-id)"
    cached = weights.cache_folder() / f"{DOWNLOADABLE}.pth"
    record = cached.with_name(cached.name + ".sha256")
    assert record.read_text() == f"{sha256_file(cached)}  {cached.name}\n"  # what sha256sum -c reads
    assert {p.name for p in weights.cache_folder().iterdir()} == {cached.name, record.name}
    assert load_weights(official).source == f"cache ({cached.name})"
    assert len(requests) == 1


@pytest.mark.usefixtures("no_network")
def test_a_cached_file_that_changed_since_its_download(official, state):
    folder = weights.cache_folder()
    folder.mkdir(parents=True)
    path = folder / f"{official.name}.pth"
    torch.save(state, path)
    (folder / f"{path.name}.sha256").write_text(f"{sha256_file(path)}  {path.name}\n")
    load_weights(official)
    state["fc.bias"] += 1
    torch.save(state, path)
    with pytest.raises(WeightsError, match="changed since it was downloaded; delete it and"):
        load_weights(official)


def connection_error(_path):
    raise ConnectionError("no route to host")


BAD_DOWNLOADS = {
    "quota page": (
        lambda path: path.write_text("<html>Quota exceeded</html>") and None,
        r"sent 27 bytes, expected at least",
    ),
    "large page": (
        lambda path: path.write_bytes(b"<html>" * 200_000) and None,
        "the downloaded file: not a PyTorch ch",
    ),
    "nothing": (lambda path: None, "sent 0 bytes"),
    "no route": (connection_error, r"download from Google Drive failed \(ConnectionError\)"),
    "other model": (
        lambda path: torch.save({"w": torch.zeros(10**6)}, path),
        "the downloaded file does not fit the model",
    ),
}


@pytest.mark.parametrize(("serve", "message"), BAD_DOWNLOADS.values(), ids=BAD_DOWNLOADS)
def test_failed_downloads(monkeypatch, official, serve, message):
    drive(monkeypatch, serve)
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(official, require=True)
    assert f"no trained weights for {DOWNLOADABLE}: no {DOWNLOADABLE}.safetensors or .pth in" in str(caught.value)
    assert "Pass a checkpoint (WEIGHTS=path, --weights)" in str(caught.value)
    assert list(weights.cache_folder().iterdir()) == []


def test_a_failed_download_ends_in_random_weights_that_say_so(monkeypatch, official):
    drive(monkeypatch, connection_error)
    loaded = load_weights(official)
    assert (loaded.trained, loaded.source, loaded.sha256) == (False, "random (seed 0)", "")
    assert "download from Google Drive failed (ConnectionError)" in loaded.notes[0]


def test_ctrl_c_during_a_download(monkeypatch, official):
    def interrupted(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    drive(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_weights(official)
    assert list(weights.cache_folder().iterdir()) == []


@pytest.mark.usefixtures("no_network")
def test_offline_does_not_ask_the_network(official, row):
    assert "download not tried (offline)" in load_weights(official, offline=True).notes[0]
    assert "no official checkpoint was released" in load_weights(row).notes[0]


@pytest.mark.usefixtures("no_network")
def test_required_weights_for_another_number_of_classes(official):
    with pytest.raises(WeightsError, match="no checkpoint exists for this num_classes and width"):
        load_weights(official, require=True, num_classes=3)


# --- random weights --------------------------------------------------------------------------------------------------


def test_random_weights_are_repeatable(row):
    first, again, other = random_weights(row, seed=1), random_weights(row, seed=1), random_weights(row, seed=2)
    assert same(first.model, again.model.state_dict())
    assert not same(first.model, other.model.state_dict())
    assert (first.trained, first.source) == (False, "random (seed 1)")
    assert not first.model.training
    assert first.model.bn1.momentum == 0.1


@torch.no_grad()
def largest_activation(model, size=32):
    largest = 0.0

    def watch(_module, _inputs, output):
        nonlocal largest
        largest = max(largest, output.abs().max().item())

    for module in model.modules():
        module.register_forward_hook(watch)
    model(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)))
    return largest


def test_random_weights_behave_like_trained_ones_in_a_deep_network(monkeypatch):
    row = replace(narrow("iresnet200", width=1 / 8), arch=Architecture("bottleneck", (20, 20, 2, 2)))
    monkeypatch.setitem(zoo.MODELS, row.name, row)
    plain = IResNet(row.arch, 10, row.width).eval()
    initialise(plain)
    assert largest_activation(plain) > 65504  # what fp16 cannot hold, and why statistics are needed
    assert largest_activation(random_weights(row).model) < 1000
