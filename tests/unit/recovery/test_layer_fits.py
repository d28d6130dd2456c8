"""Layer fits: layers that are called several times, and models whose forward pass leaves traces."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fec_fast
from fec_fast import InputError, PlanError
from fec_fast.recovery.layer_fits import write_tensors
from fec_fast.utils.model_index import ModelIndex
from helpers.states import relative_error


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Network(nn.Module):
    """Four convolutions, and a function that calls them."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.up, self.down = convolution(3, 8), convolution(8, 12), convolution(12, 8)
        self.head = convolution(8, 4)
        self.run = run
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *x: Tensor) -> Any:
        return self.run(self, *x)


def images(count: int, seed: int) -> Tensor:
    """Smooth images, so that channels go together."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    fine = 0.2 * torch.randn(count, 3, 8, 8, generator=generator)
    return functional.interpolate(coarse, size=(8, 8), mode="bilinear") + fine


CALIBRATION, OTHERS = images(96, 0), images(64, 1)  # three batches


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        given = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return torch.cat([one.flatten(1) for one in given], 1) if isinstance(given, list) else given


def error(model: nn.Module, pruned: nn.Module, inputs: Any) -> float:
    return relative_error(outputs(model, inputs), outputs(pruned, inputs))


def recovered(model: nn.Module, inputs: Any, calibration: Any, others: Any, **options: Any) -> tuple[float, float]:
    """The error on other images before and after recovery."""
    result = fec_fast.prune(
        model.eval(), inputs, **{"ratio": 0.5, "criterion": "l1", "verify": False} | options, recover=None
    )
    before = error(model, result.model, others)
    fec_fast.compensate(model, result.model, result.plan, calibration, progress=False)
    return before, error(model, result.model, others)


def siamese(m: Network, first: Tensor, second: Tensor) -> Tensor:
    sides = [m.down(m.up(m.stem(x).relu()).relu()).relu() for x in (first, second)]
    return m.head(sides[0] - 0.5 * sides[1])


def joined(m: Network, first: Tensor, second: Tensor) -> Tensor:
    both = m.down(m.up(m.stem(torch.cat([first, second])).relu()).relu()).relu()
    return m.head(both[: len(first)] - 0.5 * both[len(first) :])


def test_several_calls_are_as_good_as_one() -> None:
    pairs = [((CALIBRATION, CALIBRATION.flip(0) * 1.5), 0)]
    others = OTHERS, OTHERS.flip(0) * 1.5
    example = CALIBRATION[:2], CALIBRATION[2:4]
    before, several = recovered(Network(siamese), example, pairs, others)
    _, one = recovered(Network(joined), example, pairs, others)
    assert several == pytest.approx(one, rel=0.05) and several < 0.9 * before


def recurrent(m: Network, x: Tensor) -> Tensor:
    x = m.stem(x).relu()
    for _ in range(3):
        x = (x + 0.3 * m.down(m.up(x).relu())).relu()
    return m.head(x)


def shared_head(m: Network, x: Tensor) -> list[Tensor]:
    x = m.stem(x).relu()
    return [m.head(m.down(m.up(functional.avg_pool2d(x, size)).relu()).relu()) for size in (1, 2, 4)]


def without_local_variables(m: Network, x: Tensor) -> Tensor:
    m.skip = m.stem(x).relu()
    return m.head(m.down(m.up(m.skip).relu()).relu() + m.skip)


def in_place_on_its_input(m: Network, x: Tensor) -> Tensor:
    return m.head(m.down(m.up(m.stem(x.mul_(0.5).sub_(1.0)).relu()).relu()).relu())


def in_place_through_a_view(m: Network, x: Tensor) -> Tensor:
    x = m.stem(x).relu()
    side = m.down(m.up(x).relu())
    side.view(-1).mul_(0.1)
    return m.head(m.down(m.up(x.sigmoid()).relu()) + side)


FORMS = [recurrent, shared_head, without_local_variables, in_place_on_its_input, in_place_through_a_view]


@pytest.mark.parametrize("form", FORMS)
def test_other_images_profit(form: Callable[..., Any]) -> None:
    calibration = CALIBRATION.clone()
    model = Network(form).eval()
    result = fec_fast.prune(
        model, CALIBRATION[:2].clone(), ratio=0.5, criterion="l1", verify=False, ignore=["stem"], recover=None
    )
    before = error(model, copy.deepcopy(result.model), OTHERS.clone())
    done = fec_fast.compensate(model, result.model, result.plan, calibration, progress=False)
    after = relative_error(outputs(model, OTHERS.clone()), outputs(result.model, OTHERS.clone()))
    assert after < 0.8 * before
    assert not done.left
    assert torch.equal(calibration, CALIBRATION)  # the caller's images


def test_a_layer_whose_calls_are_fewer_than_the_originals_is_left() -> None:
    def run(m: Network, x: Tensor) -> Tensor:
        x = m.stem(x).relu()
        for _ in range(m.rounds):
            x = m.down(m.up(x).relu()).relu()
        return m.head(x)

    model = Network(run).eval()
    model.rounds = 3
    result = fec_fast.prune(model, CALIBRATION[:2], ratio=0.5, criterion="l1", recover=None)
    result.model.rounds = 2
    done = fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)
    assert {"up", "down"} <= set(done.left) and all("did not reach it" in reason for reason in done.left.values())


class Tied(nn.Module):
    """Two layers with one weight and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.one(x) + self.two(x.sigmoid())


class Transposed(Tied):
    """The same weight forth and back."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x).relu()).relu()
        return functional.linear(functional.linear(x, self.one.weight.t()), self.stem.weight.t())


@pytest.mark.parametrize(("build", "reason"), [(Tied, "several biases"), (Transposed, "used by 't' too")])
def test_a_weight_with_two_purposes_is_left(build: Callable[[], Any], reason: str) -> None:
    torch.manual_seed(0)
    model, rows = build().eval(), torch.randn(64, 12)
    result = fec_fast.prune(model, rows[:2], ratio=0.5, criterion="l1", verify=False, recover=None)
    before = result.model.one.weight.detach().clone()
    done = fec_fast.compensate(model, result.model, result.plan, rows, progress=False)
    assert reason in done.left["one"] and torch.equal(result.model.one.weight, before)


def counting(m: Network, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return m.head(functional.dropout(m.stem(x).relu(), 0.1, training=True))


def counting_in_place(m: Network, x: Tensor) -> Tensor:
    m.count += 1
    return m.head(functional.dropout(m.stem(x).relu(), 0.1, training=True))


@pytest.mark.parametrize("form", [counting, counting_in_place])
@pytest.mark.parametrize("fails", [False, True])
def test_buffers_and_the_random_state_are_as_before(form: Callable[..., Any], fails: bool) -> None:
    model = Network(form).eval()
    result = fec_fast.prune(model, CALIBRATION[:2], ratio=0.5, criterion="l1", verify=False, recover=None)
    counts, random = (model.count.clone(), result.model.count.clone()), torch.get_rng_state()
    weights = copy.deepcopy(result.model.state_dict())
    assert counts[0] == 0
    if fails:
        handle = result.model.head.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(InputError, match="ZeroDivisionError"):
            fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)
        handle.remove()
        assert all(torch.equal(value, weights[name]) for name, value in result.model.state_dict().items())
    else:
        fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)
    assert (model.count, result.model.count) == counts
    assert torch.equal(torch.get_rng_state(), random)


def test_code_that_catches_everything_does_not_hang() -> None:
    def run(m: Network, x: Tensor) -> Tensor:
        x = m.stem(x).relu()
        try:
            x = m.up(x)
        except:  # noqa: E722
            x = m.up(x)
        if m.up.out_channels < 12 and x.mean() > 0 and m.broken:
            raise RuntimeError("broken")
        return m.head(m.down(x))

    model = Network(run).eval()
    model.broken = False
    result = fec_fast.prune(model, CALIBRATION[:2], ratio=0.5, criterion="l1", recover=None)
    result.model.broken = True
    result.model.down.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(InputError):
        fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)


def test_products_that_overflow_are_refused() -> None:
    model = Network(lambda m, x: m.head(m.stem(x).relu() * 1e20)).eval()
    result = fec_fast.prune(model, CALIBRATION[:2], ratio=0.5, criterion="l1", verify=False, recover=None)
    with pytest.raises(InputError, match="layer 'head' .* products overflow"):
        fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)
    with pytest.raises(InputError, match="layer 'head' .* products overflow"):
        fec_fast.prune(model, CALIBRATION[:2], criterion="reconstruction", calibration=CALIBRATION, recover=None)


def test_an_exception_while_values_are_written_leaves_them_as_they_were() -> None:
    class Refuses(dict[str, Tensor]):
        def items(self) -> Any:
            yield from list(super().items())[:2]
            raise KeyboardInterrupt

    model = nn.ParameterList([torch.zeros(2) for _ in range(3)])
    index = ModelIndex.of(model)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(index, Refuses({name: torch.ones(2) for name in index.tensors}))
    assert all(torch.equal(tensor, torch.zeros(2)) for tensor in model)


def test_models_that_share_a_tensor_are_refused() -> None:
    model = Network(lambda m, x: m.head(m.stem(x).relu())).eval()
    result = fec_fast.prune(model, CALIBRATION[:2], ratio=0.5, recover=None)
    result.model.up = model.up
    with pytest.raises(PlanError, match="up.weight of the pruned model is the original's own"):
        fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)


_KEPT: dict[str, Tensor] = {}


def through_a_global_variable(self: Network, x: Tensor) -> Tensor:
    _KEPT["stem"] = self.stem(x)
    middle = self.down(functional.relu(self.up(functional.relu(_KEPT["stem"]))))
    return self.head(functional.relu(middle + _KEPT["stem"]))


def with_chance(self: Network, x: Tensor) -> Tensor:
    middle = self.down(functional.relu(self.up(functional.relu(self.stem(x)))))
    return self.head(functional.relu(middle + 1e-2 * torch.rand_like(middle)))


def test_runs_that_meet_outside_the_model_are_refused_and_one_batch_is_not() -> None:
    model = Network(through_a_global_variable).eval()
    result = fec_fast.prune(model, CALIBRATION[:2], remove={"up": 0.5}, recover=None)
    cut = copy.deepcopy(result.model.state_dict())
    with pytest.raises(InputError, match=r"in a global variable,.* such as recover=images\[:32\]"):
        fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)
    assert all(torch.equal(cut[name], tensor) for name, tensor in result.model.state_dict().items())
    before = error(model, result.model, OTHERS)
    fec_fast.compensate(model, result.model, result.plan, CALIBRATION[:32], progress=False)
    assert error(model, result.model, OTHERS) < before


def test_a_model_that_draws_random_numbers_is_not_taken_for_one_that_keeps_something() -> None:
    model = Network(with_chance).eval()
    result = fec_fast.prune(model, CALIBRATION[:2], remove={"up": 0.5}, recover=CALIBRATION)
    assert result.recovery is not None and result.recovery.layers


def plain(m: Network, x: Tensor) -> Tensor:
    y = functional.relu(m.stem(x))
    return m.head(functional.relu(y + m.down(functional.relu(m.up(y)))))


def mixed(kind: torch.dtype, m: Network, x: Tensor) -> Tensor:
    """Layers in half precision, and an addend in float64."""
    with torch.autocast("cpu", kind):
        y = functional.relu(m.stem(x)).double()
        z = functional.relu(m.up(y.float()))
        return m.head(functional.relu(m.down(z) + y).float()).float()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_layers_under_autocast_are_fitted_in_float32(kind: torch.dtype) -> None:
    options = {"ignore": ["stem"]}
    before, after = recovered(Network(partial(mixed, kind)), CALIBRATION[:2], CALIBRATION, OTHERS, **options)
    _, expected = recovered(Network(plain), CALIBRATION[:2], CALIBRATION, OTHERS, **options)
    assert after < 0.8 * before
    assert after == pytest.approx(expected, rel=0.05)


class Scaled(nn.Module):
    """A scale and a mask, one number per channel, and a matrix that reads the channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 12, 3), nn.Linear(12, 5)
        self.scale, self.read = nn.Parameter(torch.rand(12, 1, 1) + 0.5), nn.Parameter(torch.randn(12, 5))
        self.register_buffer("mask", torch.ones(1, 12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = (self.first(x) * self.scale * self.mask).relu().mean((2, 3))
        return self.last(y) + y @ self.read


def test_scales_and_masks_are_not_reported_as_layers_that_were_left() -> None:
    model = Scaled().eval()
    result = fec_fast.prune(model, CALIBRATION[:2], remove=0.5, criterion="l1", recover=None)
    assert {"scale", "mask", "read"} <= result.plan.keep.keys()
    done = fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)
    assert set(done.left) == {"read"} and [layer.layer for layer in done.layers] == ["last"]


@pytest.mark.parametrize("other", ["mask", "flag", "nan", "infinity", "none"])
def test_outputs_of_all_kinds_are_compared_or_let_pass(other: str) -> None:
    def run(self: Network, x: Tensor) -> Any:
        y = self.head(functional.relu(self.down(functional.relu(self.up(functional.relu(self.stem(x)))))))
        others = {
            "mask": y > 0,
            "flag": True,
            "nan": y.new_tensor([math.nan, 1]),
            "infinity": y.new_tensor([-math.inf]),
        }
        return {"y": y, "other": others.get(other)}

    model = Network(run).eval()
    options: dict[str, Any] = {"remove": {"up": 0.5}, "recover": CALIBRATION, "verify": other != "nan"}
    assert fec_fast.prune(model, CALIBRATION[:2], **options).recovery.layers


def test_the_outputs_of_one_batch_alone_are_kept_meanwhile() -> None:
    alive: list[Any] = []

    def run(self: Network, x: Tensor) -> Tensor:
        y = self.head(functional.relu(self.down(functional.relu(self.up(functional.relu(self.stem(x)))))))
        alive.append(weakref.ref(y))
        most.append(sum(each() is not None for each in alive))
        return y

    most: list[int] = []
    model = Network(run).eval()
    result = fec_fast.prune(model, CALIBRATION[:2], remove={"up": 0.5}, recover=None)
    alive.clear()
    most.clear()
    fec_fast.compensate(model, result.model, result.plan, CALIBRATION, progress=False)
    assert max(most) <= 3
