"""Pruning in the middle of a training: the optimizer's state, an average of the weights and shared weights follow."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fec_fast
from helpers.states import masked_copy

IMAGES = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "amsgrad": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9, centered=True),
    "loop": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, foreach=False),
}


class Net(nn.Module):
    """A residual block with a shared weight, and a linear layer after a flatten.

    Its own, not one of the helpers': with these layers and this seed no second moment of RMSprop or Adam is as small as
    rounding, which would amplify differences of 1e-16 beyond the bound below.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.two.weight = self.one.weight
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.two(self.one(x).relu())
        x = x + self.outer(self.inner(x).tanh())
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def new() -> nn.Module:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture(scope="module")
def plan() -> fec_fast.Plan:
    return fec_fast.prune(new(), IMAGES, ratio=0.4, recover=None).plan


def backward(model: nn.Module) -> Tensor:
    model.zero_grad()
    loss = (model(IMAGES) - TARGET).square().mean()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        backward(model)
        optimizer.step()


def select(plan: fec_fast.Plan, name: str, tensor: Tensor) -> Tensor:
    for axis, kept in plan.keep.get(name, {}).items():
        tensor = tensor[(slice(None),) * int(axis) + (kept,)]
    return tensor


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_remapped_state_is_the_selection_of_the_kept_indices(plan: fec_fast.Plan, name: str) -> None:
    model = new()
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, 3)
    names = {parameter: own for own, parameter in model.named_parameters()}
    before = {names[parameter]: copy.deepcopy(state) for parameter, state in optimizer.state.items()}
    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    assert before.keys() == {names[parameter] for parameter in optimizer.state}
    for parameter, state in optimizer.state.items():
        assert state.keys() == before[names[parameter]].keys()
        for key, value in state.items():
            old = before[names[parameter]][key]
            expected = select(plan, names[parameter], old) if isinstance(old, Tensor) and old.dim() else old
            assert torch.equal(value, expected) if isinstance(value, Tensor) else value == expected
            assert not isinstance(value, Tensor) or not value.dim() or value.shape == parameter.shape


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_continues_as_that_of_the_masked_network(plan: fec_fast.Plan, name: str) -> None:
    """The reference keeps its shape: removed elements are zero, and so are, always, their gradients and state.

    Such an element is not moved by any of these optimizers (an update of zero, and decay of zero), so the reference
    is the full network trained in the subspace that the plan keeps, and computes the same sums with zeros in them.
    """
    model = new()
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, 3)
    reference = masked_copy(model, plan)
    reference_optimizer = OPTIMIZERS[name](reference)
    reference_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    kept = {}
    for own, parameter in reference.named_parameters():
        kept[own] = torch.ones_like(parameter)
        for axis, indices in plan.keep.get(own, {}).items():
            gone = sorted(set(range(parameter.shape[int(axis)])) - set(indices))
            kept[own].index_fill_(int(axis), torch.tensor(gone), 0)
        for value in reference_optimizer.state[parameter].values():
            if isinstance(value, Tensor) and value.dim():
                value.mul_(kept[own])

    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    for _ in range(5):
        loss = backward(model)
        expected = backward(reference)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
        for own, parameter in reference.named_parameters():
            parameter.grad.mul_(kept[own])
        optimizer.step()
        reference_optimizer.step()
        trained = dict(model.named_parameters())
        for own, parameter in reference.named_parameters():
            assert torch.equal(parameter, parameter * kept[own])
            # Adam divides by the root of a second moment that may be as small as rounding: not 1e-12.
            torch.testing.assert_close(trained[own], select(plan, own, parameter), rtol=1e-7, atol=1e-9)


def test_without_its_state_the_optimizer_steps_differently(plan: fec_fast.Plan) -> None:
    """The comparison above can fail: a new optimizer in place of a remapped one gives other weights."""
    model = new()
    optimizer = OPTIMIZERS["momentum"](model)
    train(model, optimizer, 3)
    fec_fast.apply_plan(model, plan)
    other = copy.deepcopy(model)
    fec_fast.remap_optimizer(optimizer, plan, model)
    train(model, optimizer, 1)
    train(other, OPTIMIZERS["momentum"](other), 1)
    assert not torch.allclose(model.stem.weight, other.stem.weight, rtol=1e-4)


def test_in_the_middle_of_an_accumulated_step(plan: fec_fast.Plan) -> None:
    model = new()
    optimizer = OPTIMIZERS["momentum"](model)
    train(model, optimizer, 2)
    backward(model)
    gradients = {own: parameter.grad.clone() for own, parameter in model.named_parameters()}
    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    for own, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, select(plan, own, gradients[own]))
    optimizer.step()


def test_prunings_in_turn_and_a_composed_one(plan: fec_fast.Plan) -> None:
    model = new()
    optimizer = OPTIMIZERS["adam"](model)
    train(model, optimizer, 2)
    twin = copy.deepcopy(model)
    twin_optimizer = OPTIMIZERS["adam"](twin)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    second = fec_fast.prune(model, IMAGES, ratio=0.3, recover=None).plan
    fec_fast.apply_plan(model, second)
    fec_fast.remap_optimizer(optimizer, second, model)
    both = fec_fast.compose(plan, second)
    fec_fast.apply_plan(twin, both)
    fec_fast.remap_optimizer(twin_optimizer, both, twin)
    train(model, optimizer, 2)
    train(twin, twin_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_shared_weights_remain_shared(plan: fec_fast.Plan) -> None:
    model = new()
    optimizer = OPTIMIZERS["momentum"](model)
    train(model, optimizer, 2)
    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    train(model, optimizer, 2)
    assert model.one.weight is model.two.weight
    assert {"one.weight", "two.weight"} <= plan.keep.keys()
    assert optimizer.state[model.one.weight]["momentum_buffer"].shape == model.one.weight.shape


def test_average_of_the_weights(plan: fec_fast.Plan) -> None:
    """An EMA is pruned by the same plan, and continues from the kept part of its average."""
    model = new()
    optimizer = OPTIMIZERS["momentum"](model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        train(model, optimizer, 1)
        average.update_parameters(model)
    full = {own: tensor.clone() for own, tensor in average.module.state_dict().items()}
    fec_fast.apply_plan(model, plan)
    fec_fast.apply_plan(average.module, plan)
    for own, tensor in average.module.state_dict().items():
        assert torch.equal(tensor, select(plan, own, full[own]))
    assert average.module.one.weight is average.module.two.weight
    fec_fast.remap_optimizer(optimizer, plan, model)
    train(model, optimizer, 1)
    average.update_parameters(model)
    expected = 0.9 * select(plan, "stem.weight", full["stem.weight"]) + 0.1 * model.stem.weight
    torch.testing.assert_close(average.module.stem.weight, expected, rtol=1e-12, atol=1e-14)
    assert average.n_averaged == 4


def state_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        (id(parameter), key, id(value), value.clone() if isinstance(value, Tensor) else value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    ]


def untouched(optimizer: torch.optim.Optimizer, before: list[Any]) -> bool:
    return all(
        old[:3] == new[:3] and (torch.equal(old[3], new[3]) if isinstance(old[3], Tensor) else old[3] == new[3])
        for old, new in zip(before, state_of(optimizer), strict=True)
    )


def trained(name: str = "adam") -> tuple[nn.Module, torch.optim.Optimizer]:
    model = new()
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, 2)
    return model, optimizer


def test_before_apply_plan(plan: fec_fast.Plan) -> None:
    model, optimizer = trained()
    before = state_of(optimizer)
    with pytest.raises(fec_fast.PlanError, match="not pruned yet: call apply_plan"):
        fec_fast.remap_optimizer(optimizer, plan, model)
    assert untouched(optimizer, before)


def test_twice(plan: fec_fast.Plan) -> None:
    model, optimizer = trained()
    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    before = state_of(optimizer)
    with pytest.raises(fec_fast.PlanError, match=r"stem\.weight: exp_avg .*called before"):
        fec_fast.remap_optimizer(optimizer, plan, model)
    assert untouched(optimizer, before)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(8, 1, 1, 1), r"outer\.weight: extra has shape \[8, 1, 1, 1\]"),
        (torch.zeros(1), r"outer\.weight: extra has shape \[1\]"),
        ([torch.zeros(8, 6, 1, 1)], r"outer\.weight: extra is a list of tensors"),
    ],
)
def test_state_of_another_shape(plan: fec_fast.Plan, value: object, words: str) -> None:
    model, optimizer = trained()
    optimizer.state[model.outer.weight]["extra"] = value
    fec_fast.apply_plan(model, plan)
    before = state_of(optimizer)
    with pytest.raises(fec_fast.PlanError, match=words):
        fec_fast.remap_optimizer(optimizer, plan, model)
    assert untouched(optimizer, before)


@pytest.mark.parametrize(
    "make",
    [lambda model: torch.optim.Adafactor(model.parameters()), lambda model: torch.optim.LBFGS(model.parameters())],
    ids=["factored", "flattened"],
)
def test_optimizers_whose_state_cannot_be_narrowed(plan: fec_fast.Plan, make: Make) -> None:
    model = new()
    optimizer = make(model)
    for _ in range(2):
        optimizer.step(lambda: backward(model))
    fec_fast.apply_plan(model, plan)
    with pytest.raises(fec_fast.PlanError, match="make a new optimizer"):
        fec_fast.remap_optimizer(optimizer, plan, model)


class Lookahead(torch.optim.Optimizer):
    """As torch_optimizer's: slow weights in a state of its own, and the inner optimizer's state by another name."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = list(optimizers)
        self.state: Any = collections.defaultdict(dict)
        self.param_groups = [group for each in optimizers for group in each.param_groups]
        self.defaults = optimizers[0].defaults
        self.fast_state = optimizers[0].state

    def step(self) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()
        for group in self.param_groups:
            for fast in group["params"]:
                slow = self.state[fast].setdefault("slow", fast.detach().clone())
                slow.lerp_(fast.detach(), 0.5)
                fast.data.copy_(slow)


def test_states_of_a_wrapper_and_of_all_optimizers_in_it_are_narrowed(plan: fec_fast.Plan) -> None:
    model = new()
    weights, others = (
        torch.optim.SGD([each for each in model.parameters() if (each.ndim > 1) == large], lr=0.05, momentum=0.9)
        for large in (True, False)
    )
    optimizer = Lookahead(weights, others)
    train(model, optimizer, 2)
    slow = optimizer.state[model.stem.weight]["slow"].clone()
    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    assert torch.equal(optimizer.state[model.stem.weight]["slow"], select(plan, "stem.weight", slow))
    for each in model.parameters():
        inner = (others, weights)[each.ndim > 1].state[each]["momentum_buffer"]
        assert inner.shape == each.shape == optimizer.state[each]["slow"].shape
    train(model, optimizer, 2)


@pytest.mark.parametrize(
    ("hold", "where"),
    [
        (lambda optimizer, weight: vars(optimizer).update(slow=[[weight.detach().clone()]]), "slow"),
        (lambda optimizer, weight: vars(optimizer).update(slow={weight: weight.detach().clone()}), "slow"),
        (lambda optimizer, weight: vars(optimizer).update(flat=torch.zeros(1000)), "flat"),
        (lambda optimizer, weight: optimizer.param_groups[0].update(slow=torch.zeros(8, 3)), "param_groups"),
        (lambda optimizer, weight: optimizer.state.update(all=weight.detach().clone()), "state"),
    ],
    ids=["lists", "by parameter", "flat", "group", "name"],
)
def test_tensors_outside_the_states_of_parameters_are_refused(plan: fec_fast.Plan, hold: Any, where: str) -> None:
    model, optimizer = trained()
    hold(optimizer, model.stem.weight)
    fec_fast.apply_plan(model, plan)
    each = {key: value for key, value in optimizer.state.items() if isinstance(key, Tensor)}
    before = {key: dict(value) for key, value in each.items()}
    with pytest.raises(fec_fast.ArgumentError, match=rf"the Adam keeps a tensor of shape \[.* attribute {where}, but"):
        fec_fast.remap_optimizer(optimizer, plan, model)
    assert all(each[key][name] is value for key, held in before.items() for name, value in held.items())


def test_parameters_and_constants_in_attributes_are_no_reason_to_refuse(plan: fec_fast.Plan) -> None:
    model, optimizer = trained()
    vars(optimizer).update(own=list(model.parameters()), betas=torch.tensor([0.9, 0.99]), scale=torch.ones(()))
    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    train(model, optimizer, 1)


def test_an_exception_half_way(plan: fec_fast.Plan) -> None:
    class Full(dict):  # type: ignore[type-arg]
        refuse = False

        def __setitem__(self, key: str, value: object) -> None:
            if self.refuse:
                Full.refuse = False
                raise MemoryError("injected")
            super().__setitem__(key, value)

    model, optimizer = trained()
    optimizer.state[model.head.weight] = Full(optimizer.state[model.head.weight])
    fec_fast.apply_plan(model, plan)
    before = state_of(optimizer)
    Full.refuse = True
    with pytest.raises(MemoryError):
        fec_fast.remap_optimizer(optimizer, plan, model)
    assert untouched(optimizer, before)
    fec_fast.remap_optimizer(optimizer, plan, model)
    train(model, optimizer, 1)


def test_wrong_arguments(plan: fec_fast.Plan) -> None:
    model, optimizer = trained()
    with pytest.raises(fec_fast.PlanError, match=r"not pruned by this plan: it has no stem\.weight|has no .*weight"):
        fec_fast.remap_optimizer(optimizer, plan, nn.Linear(2, 2))
    fec_fast.apply_plan(model, plan)
    with pytest.raises(fec_fast.ArgumentError, match="expected a torch.optim.Optimizer, got a dict"):
        fec_fast.remap_optimizer(optimizer.state_dict(), plan, model)  # type: ignore[arg-type]
    stranger = torch.optim.SGD(new().parameters(), lr=0.1)
    with pytest.raises(fec_fast.ArgumentError, match="no parameter of this model"):
        fec_fast.remap_optimizer(stranger, plan, model)


def test_parameters_of_another_model_are_left_alone(plan: fec_fast.Plan) -> None:
    model, other = new(), nn.Linear(3, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1, momentum=0.9)
    other(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    train(model, optimizer, 1)
    fec_fast.apply_plan(model, plan)
    momentum = optimizer.state[other.weight]["momentum_buffer"]
    fec_fast.remap_optimizer(optimizer, plan, model)
    assert optimizer.state[other.weight]["momentum_buffer"] is momentum
    train(model, optimizer, 1)


def test_before_the_first_step_there_is_nothing_to_narrow(plan: fec_fast.Plan) -> None:
    model = new()
    optimizer = OPTIMIZERS["adam"](model)
    fec_fast.apply_plan(model, plan)
    fec_fast.remap_optimizer(optimizer, plan, model)
    assert not optimizer.state
    train(model, optimizer, 1)
    assert optimizer.state[model.stem.weight]["exp_avg"].shape == plan.new_shapes["stem.weight"]
