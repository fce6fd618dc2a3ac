"""The architecture against the paper's rules, written down a second time and differently."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine_build.network.architecture import Architecture
from engine_build.network.iresnet import IResNet, initialise
from engine_build.network.zoo import MODELS
from infer.errors import InputError

PARAMETERS = {
    "iresnet18": 11_689_512, "iresnet34": 21_797_672, "iresnet50": 25_557_032, "iresnet101": 44_549_160,
    "iresnet152": 60_192_808, "iresnet200": 64_673_832,
    "iresgroup50": 24_887_080, "iresgroup101": 47_813_416, "iresgroup152": 66_993_960,
    "iresgroupfix50": 23_366_440, "iresgroupfix101": 43_786_024, "iresgroupfix152": 60_607_272,
}  # fmt: skip


def on_meta(name, width=1.0):
    with torch.device("meta"):
        return IResNet(MODELS[name].arch, 1000, width)


def expected_names(depths, convs, projected):
    """State-dict keys in order. ``projected``: stages whose shortcut has a convolution."""

    def bn(name):
        return [f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["conv1.weight", *bn("bn1")]
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            here = f"layer{stage}.{block}"
            if block >= 2:  # neither the start block nor the one after it
                names += bn(f"{here}.bn0")
            for conv in range(1, convs + 1):
                names.append(f"{here}.conv{conv}.weight")
                if conv < convs or block in (0, depth - 1):  # the last BN: start and end blocks only
                    names += bn(f"{here}.bn{conv}")
            if block == 0 and stage in projected:
                names += [f"{here}.downsample.1.weight", *bn(f"{here}.downsample.2")]
    return [*names, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_count(name, count):
    assert sum(p.numel() for p in on_meta(name).parameters()) == count


@pytest.mark.parametrize(
    ("name", "depths", "convs", "projected"),
    [
        ("iresnet50", (3, 4, 6, 3), 3, (1, 2, 3, 4)),
        ("iresnet200", (3, 24, 36, 3), 3, (1, 2, 3, 4)),
        ("iresgroupfix101", (3, 4, 23, 3), 3, (1, 2, 3, 4)),
        ("iresnet34", (3, 4, 6, 3), 2, (2, 3, 4)),  # stage 1 keeps its 64 channels: a bare max-pool
    ],
)
def test_names_and_order_equal_the_official_checkpoints(name, depths, convs, projected):
    assert list(on_meta(name).state_dict()) == expected_names(depths, convs, projected)


def test_shapes_of_a_bottleneck_net():
    shapes = {name: tuple(value.shape) for name, value in on_meta("iresnet50").state_dict().items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.conv1.weight"] == (64, 64, 1, 1)
    assert shapes["layer1.0.downsample.1.weight"] == (256, 64, 1, 1)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer2.2.bn0.weight"] == (512,)
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["fc.weight"] == (1000, 2048)


def test_groups():
    def groups(name):
        return [getattr(on_meta(name), f"layer{stage}")[0].conv2.groups for stage in (1, 2, 3, 4)]

    assert groups("iresgroup50") == [8, 16, 32, 64]
    assert groups("iresgroupfix50") == [64, 64, 64, 64]
    assert groups("iresnet50") == [1, 1, 1, 1]


def test_resolution_of_the_stages():
    model, sizes = on_meta("iresnet50").eval(), []
    for module in (model.conv1, model.layer1, model.layer2, model.layer3, model.layer4):
        module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[-1]))
    assert model(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)
    assert sizes == [112, 56, 28, 14, 7]


def functional_forward(state, depths, groups, x):
    """The network from its tensors alone, block by block as the paper tells it."""

    def bn(x, name):
        stats = (state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats)

    def conv(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)

    last = 3 if "layer1.0.conv3.weight" in state else 2
    strided = 2 if last == 3 else 1
    x = F.relu(bn(conv(x, "conv1", 2), "bn1"))
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            here, y = f"layer{stage}.{block}", x
            if block >= 2:
                y = bn(y, f"{here}.bn0")
            if block >= 1:
                y = F.relu(y)
            if block == 1:
                x = y  # nothing stands before this ReLU, which the official code applies in place
            for number in range(1, last + 1):
                stride = 2 if block == 0 and number == strided else 1
                y = conv(y, f"{here}.conv{number}", stride, groups[stage - 1] if last == 3 and number == 2 else 1)
                if number < last:
                    y = F.relu(bn(y, f"{here}.bn{number}"))
            if block == 0:
                y = bn(y, f"{here}.bn{last}")
                x = F.max_pool2d(x, 3, 2, 1)
                if f"{here}.downsample.1.weight" in state:
                    x = bn(conv(x, f"{here}.downsample.1"), f"{here}.downsample.2")
            x = x + y
            if block == depth - 1:
                x = F.relu(bn(x, f"{here}.bn{last}"))
    return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize(
    "arch",
    [
        Architecture("bottleneck", (3, 4, 2, 3)),
        Architecture("basic", (2, 3, 4, 2)),
        Architecture("group", (2, 3, 2, 3), (1, 2, 4, 8)),
    ],
    ids=lambda arch: arch.kind,
)
def test_forward(arch):
    model = IResNet(arch, 7, width=1 / 8)
    initialise(model, 1)
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():  # statistics at identity would hide a BN in the wrong place
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.running_var):
                value.uniform_(0.5, 1.5, generator=generator)
            for value in (module.bias.data, module.running_mean):
                value.normal_(generator=generator)
    x = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        expected = functional_forward(model.state_dict(), arch.depths, arch.groups, x)
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-4)


def test_initialisation_is_deterministic_and_leaves_the_global_generator_alone():
    def weights(seed, disturb):
        torch.manual_seed(disturb)
        model = IResNet(MODELS["iresnet18"].arch, 10, 1 / 16)
        before = torch.get_rng_state()
        initialise(model, seed)
        assert torch.equal(torch.get_rng_state(), before)
        return [p.detach() for p in model.parameters() if p.ndim > 1] + [model.fc.bias.detach()]

    first, again, other = weights(3, 0), weights(3, 1), weights(4, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_initialisation_is_he_normal():
    model = IResNet(MODELS["iresnet50"].arch, 1000, 0.25)
    initialise(model)
    conv = model.layer3[1].conv2.weight  # [64, 64, 3, 3]
    assert conv.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert model.fc.weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, found 0"),
        ({"width": 0.3}, "width 0.3 gives 19.2 channels"),
        ({"width": -1.0}, "width -1.0 gives -64 channels"),
        ({"width": 0.0}, "width 0.0 gives 0 channels"),
        ({"arch": Architecture("bottleneck", (1, 2, 2, 2))}, "start and an end block"),
        ({"arch": Architecture("group", (2, 2, 2, 2), (64,) * 4), "width": 1 / 64}, "cannot be split into 64 groups"),
    ],
)
def test_impossible_networks(options, message):
    with pytest.raises(InputError, match=message), torch.device("meta"):
        IResNet(**{"arch": MODELS["iresnet18"].arch, **options})
