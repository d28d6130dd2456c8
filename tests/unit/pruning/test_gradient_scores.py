"""Taylor and Fisher scores against their published formulas, written out weight by weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fec_fast
from fec_fast import Budget
from tests.helpers.networks import Blocks

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Batches = list[tuple[Tensor, Tensor]]


def batches(classes: int, sizes: tuple[int, ...] = (5, 3), seed: int = 1) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(classes, (n,), generator=generator)) for n in sizes
    ]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    ).eval()


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    twin = copy.deepcopy(model).eval().requires_grad_()
    functional.cross_entropy(twin(images), labels).backward()
    return {name: weight.grad for name, weight in twin.named_parameters()}


def slices_of(weight: Tensor, unit: int, axis: int, layer: nn.Module) -> Tensor:
    """The weights that one channel of the chain has in a layer: a filter, or what reads the channel."""
    if axis == 0:
        return weight[unit]
    each = 16 if isinstance(layer, nn.Linear) else 1  # a channel of 4 x 4 positions becomes 16 features
    return weight[:, unit * each : (unit + 1) * each]


def molchanov_2019(model: nn.Sequential, data: Batches, maker: str, reader: str | None, units: int) -> list[float]:
    """Molchanov et al., CVPR 2019, equation 8: (sum over the set of g_s w_s)^2, averaged over minibatches."""
    scores = [0.0] * units
    for images, labels in data:
        of = gradients(model, images, labels)
        for unit in range(units):
            for layer, axis in ((maker, 0), (reader, 1)):
                if layer is not None:
                    weight, module = model[int(layer)].weight, model[int(layer)]
                    product = slices_of(weight.detach() * of[f"{layer}.weight"], unit, axis, module)
                    scores[unit] += float(product.double().sum()) ** 2 / len(data)
    return scores


def lecun_1990(model: nn.Sequential, data: Batches, maker: str, reader: str | None, units: int) -> list[float]:
    """LeCun et al., NIPS 1990: the sum of h w^2 / 2, with the mean of one image's squared gradients for h."""
    scores = [0.0] * units
    images = torch.cat([part for part, _ in data])
    labels = torch.cat([part for _, part in data])
    for image, label in zip(images, labels, strict=True):
        of = gradients(model, image[None], label[None])
        for unit in range(units):
            for layer, axis in ((maker, 0), (reader, 1)):
                if layer is not None:
                    module = model[int(layer)]
                    w, g = (
                        slices_of(t, unit, axis, module).double()
                        for t in (module.weight.detach(), of[f"{layer}.weight"])
                    )
                    scores[unit] += float((g**2 * w**2).sum()) / 2 / len(images)
    return scores


PUBLISHED = {"taylor": molchanov_2019, "fisher": lecun_1990}


@pytest.mark.parametrize("sides", ["both", "producer"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formula(name: str, sides: str) -> None:
    model, data = chain(), batches(4)
    plan = fec_fast.prune(model, IMAGE, criterion=name, calibration=data, sides=sides, recover=None).plan
    assert plan.criterion == name and plan.formula is None
    for record, maker, reader in zip(plan.sets, "03", "36", strict=True):
        expected = PUBLISHED[name](model, data, maker, reader if sides == "both" else None, record["units"])
        assert record["scores"] == pytest.approx(expected, rel=1e-4)
        half = record["units"] // 2
        assert record["removed"] == sorted(sorted(range(record["units"]), key=expected.__getitem__)[:half])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_dead_channel_goes_first_and_the_loss_does_not_notice(name: str) -> None:
    model, data = chain(), batches(4)
    with torch.no_grad():
        model[1].weight[2] = 0
        model[1].bias[2] = -1
    result = fec_fast.prune(model, IMAGE, criterion=name, calibration=data, ratios={"0": 0.17}, recover=None)
    assert result.plan.sets[0]["removed"] == [2] and result.plan.sets[0]["scores"][2] == 0
    assert torch.allclose(result.model(data[0][0]), model(data[0][0]), atol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_residual_sums_groups_and_shared_weights(name: str, groups: int) -> None:
    torch.manual_seed(0)
    model = Blocks(6, 4, 4, groups)
    data = batches(10)
    result = fec_fast.prune(
        model, IMAGE, criterion=name, calibration=data, budget=Budget(params=0.3), ratios="global", recover=None
    )
    assert all(min(record["scores"]) >= 0 and max(record["scores"]) > 0 for record in result.plan.sets)
    # Every weight of a layer belongs to one filter: over all sets, the filters' scores are those of the layer.
    if name == "fisher":
        plan = fec_fast.prune(
            model, IMAGE, criterion=name, calibration=data, sides="producer", verify=False, recover=None
        ).plan
        made = {layer for record in plan.sets for layer in record["layers"]}
        images, labels = (torch.cat(part) for part in zip(*data, strict=True))
        expected = 0.0
        for image, label in zip(images, labels, strict=True):
            of = gradients(model, image[None], label[None])
            named = dict(model.named_parameters())
            for weight in {f"{layer}.weight" for layer in made if f"{layer}.weight" in named}:
                expected += float((named[weight].detach() * of[weight]).double().square().sum()) / 2 / len(images)
        assert sum(sum(record["scores"]) for record in plan.sets) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_bit_for_bit(name: str, training: bool) -> None:
    model = nn.Sequential(*chain(), nn.Dropout(0.5))
    model[0].weight.requires_grad_(False)
    model[6].bias.grad = torch.ones(4)
    model.train(training)
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    fec_fast.prune(model, IMAGE, criterion=name, calibration=batches(4), recover=None)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == [False] + [True] * 7
    assert torch.equal(model[6].bias.grad, torch.ones(4))
    assert all(weight.grad is None for weight in list(model.parameters())[:-1])


class NoLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


@pytest.mark.parametrize(
    ("calibration", "kind", "words"),
    [
        ([], fec_fast.InputError, "no images"),
        (lambda model: 1.0, fec_fast.ArgumentError, "needs images: calibration= is a function"),
        (batches(9, (40,)), fec_fast.InputError, "not one of the model's 4 classes"),
        (torch.zeros(2, 3, 8, 8), fec_fast.InputError, "a pair of images"),
        ([(torch.full((2, 3, 8, 8), torch.nan), torch.zeros(2).long())], fec_fast.InputError, "'0.weight' is NaN"),
        (None, fec_fast.RatioError, "criterion='taylor' needs calibration=, a loader of images and labels"),
    ],
)
def test_bad_calibration_is_refused(calibration: Any, kind: type, words: str) -> None:
    model = chain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=words):
        fec_fast.prune(model, IMAGE, criterion="taylor", calibration=calibration, recover=None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(fec_fast.InputError, match=r"needs a classifier: NoLogits returns float32 \[1, 2, 4, 4\]"):
        fec_fast.prune(NoLogits(), IMAGE, criterion="fisher", calibration=batches(4), recover=None)


def test_a_sensitivity_is_measured_in_the_order_of_gradients() -> None:
    data = batches(4)
    measured = fec_fast.measure_sensitivity(chain(), IMAGE, data, at=(0.5,), criterion="taylor", progress=False)
    assert set(measured.units) == {"0", "3"}
    with pytest.raises(fec_fast.ArgumentError, match="criterion='taylor' needs images"):
        fec_fast.measure_sensitivity(chain(), IMAGE, lambda model: 1.0, criterion="taylor", progress=False)
