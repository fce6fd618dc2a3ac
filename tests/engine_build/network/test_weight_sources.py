"""Where weights come from: a file, the shipped ones, the cache, the official download, random ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_models import narrow, same_weights

from engine_build.network import weights, zoo
from engine_build.network.architecture import Architecture
from engine_build.network.iresnet import IResNet, initialise
from engine_build.network.weights import load_weights, random_weights
from infer.errors import WeightsError
from infer.files import sha256_file

DOWNLOADABLE = "narrow-official"


@pytest.fixture
def official(monkeypatch, tmp_path):
    """The same with a Google Drive file, and an empty cache folder."""
    row = replace(narrow("iresnet18"), name=DOWNLOADABLE, drive_id="drive-id")
    monkeypatch.setitem(zoo.MODELS, row.name, row)
    monkeypatch.setenv("IRESNET_CACHE", str(tmp_path / "cache"))
    return row


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
    assert same_weights(loaded.model, state)
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
    assert same_weights(loaded.model, state)
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
        "the downloaded file: not a checkpoint but a web page",
    ),
    "nothing": (lambda path: None, "sent 0 bytes"),
    "no route": (connection_error, r"download from Google Drive failed \(ConnectionError\)"),
    "other model": (
        lambda path: torch.save({"w": torch.zeros(10**6)}, path),
        "the downloaded file: expected a state_dict, found 1 tensors of another network: w",
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
def test_offline_does_not_ask_the_network(official, narrow_row):
    assert "download not tried (offline)" in load_weights(official, offline=True).notes[0]
    assert "no official checkpoint was released" in load_weights(narrow_row).notes[0]


@pytest.mark.usefixtures("no_network")
def test_required_weights_for_another_number_of_classes(official):
    with pytest.raises(WeightsError, match="no checkpoint exists for this num_classes and width"):
        load_weights(official, require=True, num_classes=3)


# --- random weights --------------------------------------------------------------------------------------------------


def test_random_weights_are_repeatable(narrow_row):
    first, again, other = (random_weights(narrow_row, seed=seed) for seed in (1, 1, 2))
    assert same_weights(first.model, again.model.state_dict())
    assert not same_weights(first.model, other.model.state_dict())
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
