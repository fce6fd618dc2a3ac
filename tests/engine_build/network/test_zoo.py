"""The model table: figures, names, creation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from small_models import narrow

from engine_build import create_model
from engine_build.network.zoo import MODELS, count_macs, count_parameters, find_model
from infer.errors import InputError


def test_every_model_of_the_family_is_listed():
    assert set(MODELS) >= {
        "iresnet18", "iresnet34", "iresnet50", "iresnet101", "iresnet152", "iresnet200", "iresnet302", "iresnet404",
        "iresgroup50", "iresgroup101", "iresgroup152", "iresgroupfix50", "iresgroupfix101", "iresgroupfix152",
    }  # fmt: skip
    assert all(name == row.name for name, row in MODELS.items())


@pytest.mark.parametrize(
    ("name", "gmac"), [("iresnet50", 4.128), ("iresnet101", 7.840), ("iresnet152", 11.552), ("iresnet200", 15.046)]
)
def test_gmac(name, gmac):
    assert round(count_macs(find_model(name)) / 1e9, 3) == gmac


def test_macs_of_a_grouped_net_by_hand():
    row = narrow("iresgroup50", width=0.25)
    total, size = 32 * 32 // 4 * 16 * 3 * 49, 16  # the stem
    cin = 16
    for stage, depth in enumerate(row.arch.depths):
        size //= 2
        planes, groups = 16 << stage, row.arch.groups[stage]
        inner, outer = planes * 4, planes * 2
        for block in range(depth):
            before = size * 2 if block == 0 else size  # the first convolution comes before the stride
            total += before**2 * cin * inner + size**2 * inner * inner // groups * 9 + size**2 * inner * outer
            if block == 0:
                total += size**2 * cin * outer
            cin = outer
    assert count_macs(row) == total + cin * 10


def test_macs_grow_with_the_image():
    row = narrow("iresnet18")
    assert 3.9 < count_macs(row, 128) / count_macs(row, 64) < 4.0  # all but the classifier


@pytest.mark.parametrize(
    ("name", "top1"), [("iresnet50", 77.31), ("iresnet101", 78.64), ("iresnet152", 79.34), ("iresnet200", 79.48)]
)
def test_official_accuracy(name, top1):
    assert MODELS[name].top1 == top1


def test_official_files_are_distinct():
    files = [row.drive_id for row in MODELS.values() if row.drive_id]
    assert len(set(files)) == len(files) >= 6
    assert MODELS["iresnet50"].drive_id == "1Waw3ob8KPXCY9iCLdAD6RUA0nvVguc6K"
    assert MODELS["iresnet404"].drive_id == "1hEOHErsD6AF1b3qQi56mgxvYDneTvMIq"


def test_create_model():
    model = create_model("iresnet50", num_classes=7, width=0.25)
    assert not model.training
    assert model.fc.weight.shape == (7, 512)
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert create_model("iresnet50_fashion").fc.weight.shape == (10, 512)  # the row's own width and classes


def test_create_model_is_deterministic_and_usable():
    first, again = create_model("iresnet18", 10, 1 / 16, seed=5), create_model("iresnet18", 10, 1 / 16, seed=5)
    other = create_model("iresnet18", 10, 1 / 16, seed=6)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name  # fails on memory that nobody wrote to
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert first.bn1.running_var.eq(1).all()
    assert first.bn1.num_batches_tracked == 0


def test_parameters_do_not_count_statistics():
    model = create_model("iresnet18", 10, 1 / 16)
    statistics = sum(
        value.numel() for name, value in model.state_dict().items() if "running" in name or "num_b" in name
    )
    assert count_parameters(model) == sum(v.numel() for v in model.state_dict().values()) - statistics


def test_unknown_model_lists_the_names():
    with pytest.raises(InputError, match=r"unknown model 'resnet50'; known: iresnet18, .*iresgroupfix152"):
        create_model("resnet50")


def test_the_shipped_row_is_complete():
    folder = MODELS["iresnet50_fashion"].shipped
    for name in ("weights.safetensors", "labels.txt", "test.tar.gz", "calibration.tar.gz"):
        assert (folder / name).stat().st_size > 0


def test_the_package_imports_torch_only_when_asked():
    code = "import sys, engine_build; assert 'torch' not in sys.modules; engine_build.create_model; import torch"
    subprocess.run([sys.executable, "-c", code], check=True)
