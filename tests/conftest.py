"""Bundles shared by the whole run. They are built once, also when several xdist workers want them at once.

Imports are inside the fixtures, so that a test of one small module does not wait for torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SHIPPED = "iresnet50_fashion"

#: Fixtures that build bundles of a whole network, and folders whose tests build or run many things.
_LONG_FIXTURES = {"shipped", "untrained", "build_once"}
_LONG_FOLDERS = (
    "engine_build/checks", "engine_build/network", "engine_build/quantise", "infer/backends", "infer/embed",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Mark as ``long`` what ``make test-quick`` leaves out."""
    here = Path(__file__).parent
    for item in items:
        folder = item.path.parent.relative_to(here).as_posix()
        if folder.startswith(_LONG_FOLDERS) or _LONG_FIXTURES & set(item.fixturenames):
            item.add_marker("long")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """One folder for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_cached_weights(tmp_path_factory):
    """Checkpoints in the user's cache must not decide what tests see."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRESNET_CACHE", str(tmp_path_factory.mktemp("no_weights")))
        yield


@pytest.fixture(scope="session")
def build_once(shared_folder) -> Callable[..., Path]:
    """``build_once(name, **options)``: the bundle ``name``, built by the first worker that asks for it."""

    def get(name: str, **options) -> Path:
        from engine_build.build_bundle import BuildOptions, build

        folder = shared_folder / name
        with locked(shared_folder / f"{name}.lock"):
            if not folder.exists():
                build(BuildOptions(output=folder, targets=("openvino",), offline=True, **options))
        return folder

    return get


@contextlib.contextmanager
def locked(path: Path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def shipped(build_once, shared_folder) -> Callable[[str], Path]:
    """``shipped(precision)``: the trained model for OpenVINO. Read-only; take ``own`` to change one.

    All are built at the first call: the export takes most of the time and is the same for all.
    """

    def get(precision: str) -> Path:
        from engine_build import build_bundle as pipeline

        loaded = []

        def load_source(options, steps, load=pipeline.load_source):
            if not loaded:
                loaded.append(load(options, steps))
            return loaded[0]

        with locked(shared_folder / "shipped.lock"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "load_source", load_source)
            folders = {
                p: build_once(f"{SHIPPED}-{p}", model=SHIPPED, precision=p) for p in ("fp32", "fp16", "bf16", "int8")
            }
        return folders[precision]

    return get


@pytest.fixture(scope="session")
def narrow_row():
    """A small network that can be asked for by name: 32 x 32 inputs, ten classes, nothing to download."""
    from small_models import narrow

    from engine_build.network import zoo

    row = narrow("iresnet18")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, row.name, row)
        yield row


@pytest.fixture
def state(narrow_row):
    """A trained-looking state_dict of ``narrow_row``: no tensor equals what a new network has."""
    import torch

    from engine_build.network.zoo import create_model

    generator = torch.Generator().manual_seed(9)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else value + 7
        for name, value in create_model(narrow_row.name).state_dict().items()
    }


@pytest.fixture(scope="session")
def untrained(build_once, narrow_row, shared_folder) -> Path:
    """The bundle of ``narrow_row`` with random weights, fp32. Read-only."""
    import onnx

    from engine_build.graph import export

    def keep_raw(*args, original=export.export_torch):
        graph, reference = original(*args)
        onnx.save(graph, shared_folder / "raw.onnx")
        return graph, reference

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_torch", keep_raw)
        return build_once(f"{narrow_row.name}-fp32", model=narrow_row.name, precision="fp32")


@pytest.fixture(scope="session")
def exported(untrained, narrow_row, shared_folder):
    """The network of ``untrained``, and the file with its graph as the exporter gave it, before every pass."""
    from engine_build.network.weights import random_weights

    return random_weights(narrow_row).model, shared_folder / "raw.onnx"


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory) -> Path:
    """A classifier with one convolution, as a user would bring it."""
    import onnx
    from small_models import classifier

    path = tmp_path_factory.mktemp("user") / "tiny.onnx"
    onnx.save(classifier(), path)
    return path


@pytest.fixture(scope="session")
def tiny(build_once, tiny_onnx) -> Path:
    """The bundle of ``tiny_onnx``, fp32: 32 x 32 inputs, ten classes, opened in no time. Read-only."""
    from small_models import SPEC

    return build_once("tiny-fp32", model="tiny", onnx=tiny_onnx, precision="fp32", preprocessing=SPEC)


@pytest.fixture
def own(tmp_path) -> Callable[[Path], Path]:
    """``own(bundle)``: a copy that a test may damage."""

    def copy(bundle: Path) -> Path:
        return Path(shutil.copytree(bundle, tmp_path / "own" / bundle.name))

    return copy


@pytest.fixture(scope="session")
def shipped_images() -> tuple[np.ndarray, np.ndarray]:
    """2,000 of the shipped test images, class-balanced: uint8 ``[2000, 64, 64, 3]`` and their classes."""
    from engine_build.network.zoo import MODELS
    from infer.datasets import open_dataset

    row = MODELS[SHIPPED]
    labels = (row.shipped / "labels.txt").read_text().splitlines()
    dataset = open_dataset([row.shipped / "test.tar.gz"], labels, limit=2000)
    batches = list(dataset.batches(row.preprocessing, 100, strict=True))
    return np.concatenate([b.images for b, _ in batches]), np.concatenate([t for _, t in batches])


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """80 shipped test images in class folders. Read-only."""
    from engine_build.network.zoo import MODELS
    from infer.datasets import open_dataset

    row = MODELS[SHIPPED]
    labels = (row.shipped / "labels.txt").read_text().splitlines()
    folder = tmp_path_factory.mktemp("labelled") / "photos"
    for record in open_dataset([row.shipped / "test.tar.gz"], labels, limit=80).records:
        path = folder / record.member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.load())
    return folder
