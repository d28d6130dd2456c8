"""Pruning real networks: the pruned one equals the masked original, and survives a round trip through files."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast
from fec_fast.vision import networks

torchvision = pytest.importorskip("torchvision")
models = torchvision.models


def vgg16_bn() -> nn.Module:
    """VGG-16 with a narrow classifier: that of ImageNet has 120 million weights and takes a minute to score."""
    model = models.vgg16_bn(init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    return model


IMAGE = (2, 3, 64, 64)
CIFAR = (2, 3, 32, 32)
NETWORKS = {
    "resnet18": (models.resnet18, IMAGE),
    "resnet34": (models.resnet34, IMAGE),
    "resnet50": (models.resnet50, IMAGE),
    "vgg16_bn": (vgg16_bn, IMAGE),
    "mobilenet_v2": (models.mobilenet_v2, IMAGE),
    "resnext50_32x4d": (models.resnext50_32x4d, IMAGE),
    "densenet121": (models.densenet121, IMAGE),
    "vgg16_cifar": (networks.vgg16_cifar, CIFAR),
    "resnet20_cifar": (networks.resnet20_cifar, CIFAR),
    "resnet56_cifar": (networks.resnet56_cifar, CIFAR),
    "resnet34_cifar": (networks.resnet34_cifar, CIFAR),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    factory, shape = NETWORKS[name]
    return factory().eval(), torch.randn(shape)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def same(left: object, right: object) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(torch.utils._pytree.tree_leaves(left), torch.utils._pytree.tree_leaves(right), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_prune_verify_save_load(name, tmp_path):
    model, image = build(name)
    before = copy.deepcopy(model.state_dict())
    result = fec_fast.prune(model, image, ratio=0.5, verify=False, recover=None)  # verified below
    # The padded shortcuts of the CIFAR ResNets pin half of the residual channels, so less can be removed there.
    share = parameters(result.model) / parameters(model)
    assert share < (0.45 if name in ("resnet20_cifar", "resnet56_cifar", "mobilenet_v2") else 0.36)
    assert fec_fast.verify_equivalence(model, result.model, result.plan, image) < 1e-9
    assert result.before.parameters == parameters(model)
    assert result.after.parameters == parameters(result.model)
    assert result.after.macs < result.before.macs
    assert result.model(image).shape == model(image).shape
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    fec_fast.save(result, tmp_path / "pruned")
    torch.manual_seed(1)
    fresh = fec_fast.load(NETWORKS[name][0]().eval(), tmp_path / "pruned")
    with torch.no_grad():
        assert same(fresh(image), result.model(image))


@pytest.mark.slow
def test_ssd_prune_verify_save_load(tmp_path):
    torch.manual_seed(0)

    def factory():
        return models.detection.ssd300_vgg16(weights=None, weights_backbone=None).eval()

    model, images = factory(), [torch.rand(3, 300, 300)]
    result = fec_fast.prune(model, images, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert parameters(result.model) < 0.4 * parameters(model)
    fec_fast.save(result, tmp_path / "ssd")
    fresh = fec_fast.load(factory(), tmp_path / "ssd")
    with torch.no_grad():
        assert same(fresh(images), result.model(images))
    target = [{"boxes": torch.tensor([[20.0, 20.0, 200.0, 200.0]]), "labels": torch.tensor([1])}]
    losses = result.model.train()(images, target)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "resnet20_cifar"])
def test_pruned_network_trains(name):
    model, image = build(name)
    pruned = fec_fast.prune(model, image, ratio=0.4, criterion="l1", recover=None).model.train()
    pruned(image).square().mean().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in pruned.parameters())


@pytest.mark.parametrize("criterion", ["fec_l1", "fec", "l1", "l2", "fpgm", "random"])
@pytest.mark.parametrize("sides", ["both", "producer"])
def test_every_criterion_removes_the_lowest_of_every_set(criterion, sides):
    model, image = build("resnet20_cifar")
    result = fec_fast.prune(model, image, ratio=0.5, criterion=criterion, sides=sides, recover=None)
    assert result.plan.criterion == criterion
    assert result.plan.sets
    for one in result.plan.sets:
        gone = set(one["removed"])
        assert len(gone) == one["units"] // 2
        kept = [score for unit, score in enumerate(one["scores"]) if unit not in gone]
        assert max(one["scores"][unit] for unit in gone) <= min(kept)


def test_callable_criterion_sees_both_sides():
    seen = []

    def total(weight: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return weight.flatten(1).sum(1)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1))
    fec_fast.prune(model, torch.randn(1, 3, 8, 8), criterion=total, recover=None)
    assert (8, 3, 3, 3) in seen and (8, 5, 1, 1) in seen


def test_ratios_by_layer_ignore_and_round_to():
    model, image = build("resnet18")
    result = fec_fast.prune(model, image, ratios={"layer1.0.conv1": 0.25, "layer4.1.conv1": 0.5}, recover=None)
    assert result.model.layer1[0].conv1.out_channels == 48
    assert result.model.layer4[1].conv1.out_channels == 256
    assert result.model.layer2[0].conv1.out_channels == 128
    result = fec_fast.prune(model, image, ratio=0.3, ignore=("layer1", "conv1"), round_to=8, recover=None)
    convs = {name: module for name, module in result.model.named_modules() if isinstance(module, nn.Conv2d)}
    widths = {name: module.out_channels for name, module in convs.items()}
    assert widths["conv1"] == 64 and widths["layer1.0.conv1"] == 64
    assert widths["layer2.0.conv1"] == 96  # 128 - 38 = 90, rounded up
    assert all(width % 8 == 0 for width in widths.values())


def test_outputs_are_kept_whole_and_the_reason_is_reported():
    model, image = build("resnet18")
    result = fec_fast.prune(model, image, recover=None)
    assert result.model.fc.out_features == 1000
    assert "outputs of the model" in result.plan.pinned["fc"]
    assert "kept whole: fc" in result.summary()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models(wrap):
    model, image = build("resnet20_cifar")
    result = fec_fast.prune(wrap(model), image, recover=None)
    assert type(result.model) is type(model)


def test_modes_gradients_and_random_state_are_left_alone():
    model, image = build("resnet20_cifar")
    model.train()
    model.layer1[0].bn1.eval()
    model(image).sum().backward()
    modes = [module.training for module in model.modules()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    state = torch.random.get_rng_state()
    fec_fast.prune(model, image, recover=None)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


class DrawnBefore(nn.Module):
    """Takes noise from a buffer and counts how much it has taken, as recurrent networks take dropout masks."""

    def __init__(self):
        super().__init__()
        self.make, self.read, self.taken = nn.Linear(6, 8), nn.Linear(8, 3), 0
        self.register_buffer("noise", torch.rand(100, 1))

    def forward(self, x):
        made = self.make(x).relu()
        if self.training:
            made = made * self.noise[self.taken : self.taken + len(x)]
            self.taken += len(x)
        return self.read(made)


def test_a_counter_of_the_models_code_is_left_alone_and_starts_equal_in_both_networks():
    model = DrawnBefore()
    model.taken = 8
    result = fec_fast.prune(model, torch.randn(4, 6), ratio=0.5, recover=None)
    assert "drawn weights in training mode" in result.proof.runs and result.model.make.out_features == 4
    assert model.taken == result.model.taken == 8


@settings(max_examples=25)
@given(
    widths=st.lists(st.integers(1, 24), min_size=2, max_size=4),
    groups=st.sampled_from([1, 2, 4]),
    ratio=st.floats(0, 0.95),
    round_to=st.sampled_from([1, 3, 8]),
    seed=st.integers(0, 2**16),
)
def test_any_chain_equals_its_mask(widths, groups, ratio, round_to, seed):
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    last = 3
    for position, width in enumerate(widths):
        inner = groups if position and last % groups == 0 else 1
        layers += [nn.Conv2d(last, width * inner, 3, padding=1, groups=inner), nn.BatchNorm2d(width * inner), nn.SiLU()]
        last = width * inner
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * last, 5)]
    model = nn.Sequential(*layers).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = fec_fast.prune(model, torch.randn(2, 3, 6, 6), ratio=ratio, round_to=round_to, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    for module in result.model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
