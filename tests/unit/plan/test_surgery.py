"""Surgery: applying a plan is all or nothing, and bad input is named before anything changes."""

from __future__ import annotations

import copy
import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.plan import surgery
from fec_fast.utils.modules import named_tensors
from fec_fast.vision import networks
from helpers.divided import divided_network
from helpers.interruptions import Interrupted, raise_at
from helpers.networks import SharedWeight


@pytest.fixture(scope="module")
def pruned():
    torch.manual_seed(0)
    model, image = networks.resnet20_cifar().eval(), torch.randn(2, 3, 32, 32)
    return model, image, fec_fast.prune(model, image, ratio=0.5, recover=None)


class Snapshot(NamedTuple):
    """All that surgery could disturb: tensors as objects, layouts, places in memory and values, modules' attributes."""

    tensors: list[tuple[str, object, object]]
    modules: list[tuple[str, dict[str, object]]]
    values: torch.Tensor


def snapshot(model: nn.Module) -> Snapshot:
    named = named_tensors(model)
    present = [tensor for own in named.values() for tensor in (own, own.grad) if tensor is not None]
    return Snapshot(
        [(name, layout(tensor), layout(tensor.grad)) for name, tensor in named.items()],
        [(name, attributes(module)) for name, module in model.named_modules()],
        # One tensor of bytes, which is fast to compare, and in which NaN equals NaN.
        torch.cat([tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in present]),
    )


def layout(tensor: torch.Tensor | None) -> object:
    if tensor is None:
        return None
    place = (tensor.data_ptr(), tensor.stride(), tensor.storage_offset(), tensor.shape, tensor.dtype)
    return (id(tensor), *place, tensor.requires_grad, dict(tensor._backward_hooks or {}))


def attributes(module: nn.Module) -> dict[str, object]:
    """A module's attributes, hooks and training mode among them; parameters and buffers are compared by themselves."""
    return {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers")
    }


def equal(left: Snapshot, right: Snapshot) -> bool:
    return left[:2] == right[:2] and torch.equal(left.values, right.values)


def shared_weight() -> nn.Module:
    return SharedWeight().to(memory_format=torch.channels_last)


def held_sizes() -> nn.Module:
    return divided_network("SHViT")


def mobilenet() -> nn.Module:
    return pytest.importorskip("torchvision").models.mobilenet_v3_small(num_classes=10, width_mult=0.25)


SWEEP = (pytest.mark.slow, pytest.mark.sweep)


def interrupt(call, at: int | None) -> int:
    """Makes a call, raising just before its `at`-th step: a line or a return of surgery.py. Returns the steps made."""
    return raise_at(call, at, {surgery.__file__})


@pytest.mark.parametrize(
    ("factory", "stride"),
    [
        (shared_weight, 1),
        (held_sizes, 5),
        pytest.param(networks.resnet20_cifar, 7, marks=pytest.mark.slow),
        pytest.param(mobilenet, 29, marks=pytest.mark.slow),
        pytest.param(networks.resnet20_cifar, 1, marks=SWEEP),
        pytest.param(mobilenet, 1, marks=SWEEP),
    ],
)
def test_an_exception_at_any_step_leaves_the_model_as_it_was(factory, stride):
    """`stride` thins out the steps of the larger models, which repeat those of the smallest; `-m sweep` takes all."""
    torch.manual_seed(0)
    model, picture = factory().eval(), torch.randn(2, 3, 32, 32)
    plan = fec_fast.prune(model, picture, ratio=0.5, criterion="l1", recover=None).plan
    model.train()
    model(picture).square().sum().backward()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    convolutions[0].weight.requires_grad_(False)
    convolutions[1].weight.register_hook(lambda grad: grad)
    convolutions[1].register_forward_hook(lambda *_: None)
    convolutions[2].register_full_backward_hook(lambda *_: None)
    convolutions[2].eval()
    before = snapshot(model)
    steps = interrupt(lambda: fec_fast.apply_plan(copy.deepcopy(model), plan), None)
    assert steps > 200
    # The last step is the return of apply_plan, after all changes.
    for at in [*range(1, steps - 40, stride), *range(max(1, steps - 40), steps)]:
        with pytest.raises(Interrupted):
            interrupt(lambda: fec_fast.apply_plan(model, plan), at)
        assert equal(snapshot(model), before), f"step {at} of {steps}"
    fec_fast.apply_plan(model, plan)
    after = snapshot(model)
    assert not equal(after, before)
    hooks = ("_forward_hooks", "_backward_hooks", "training")
    assert [[own[hook] for hook in hooks] for _, own in after.modules] == [
        [own[hook] for hook in hooks] for _, own in before.modules
    ]
    # The same tensor objects under the same names.
    assert [(name, place[0]) for name, place, _ in after.tensors] == [
        (name, place[0]) for name, place, _ in before.tensors
    ]


def test_training_continues_while_the_last_loss_is_alive(pruned):
    """The graph of a loss holds nodes of the old shapes; neither these nor a hook may break the next backward pass."""
    original, picture, result = pruned
    model = copy.deepcopy(original).train()
    shapes = []
    model.conv1.weight.register_post_accumulate_grad_hook(lambda parameter: shapes.append(tuple(parameter.grad.shape)))
    loss = model(picture).square().mean()
    loss.backward()
    fec_fast.apply_plan(model, result.plan)
    model.zero_grad()
    model(picture).square().mean().backward()
    assert loss.grad_fn is not None and shapes[0] == (16, 3, 3, 3)
    assert shapes[1] == tuple(model.conv1.weight.shape) == result.plan.new_shapes["conv1.weight"]
    fresh = copy.deepcopy(original).train()
    fec_fast.apply_plan(fresh, result.plan)
    fresh.load_state_dict(model.state_dict())
    fresh(picture).square().mean().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_apply_keeps_gradients_ties_and_optimizers(pruned):
    original, image, result = pruned
    model = copy.deepcopy(original).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(image).sum().backward()
    full = model.layer1[0].conv1.weight.grad.clone()
    model.layer1[0].bn1.weight.requires_grad_(False)
    fec_fast.apply_plan(model, result.plan)
    kept = result.plan.keep["layer1.0.conv1.weight"]
    expected = full[kept["0"]]
    expected = expected[:, kept["1"]] if "1" in kept else expected
    assert torch.equal(model.layer1[0].conv1.weight.grad, expected)
    assert not model.layer1[0].bn1.weight.requires_grad
    optimizer.step()
    optimizer.zero_grad()
    model(image).sum().backward()


def test_a_plan_for_another_model(pruned):
    _, _, result = pruned
    other = networks.resnet56_cifar()
    with pytest.raises(fec_fast.PlanError, match="another model"):
        fec_fast.apply_plan(other, result.plan)
    with pytest.raises(fec_fast.PlanError, match="already pruned"):
        fec_fast.apply_plan(copy.deepcopy(result.model), result.plan)
    with pytest.raises(fec_fast.PlanError, match="not JSON"):
        fec_fast.Plan.from_json(result.plan.to_json()[:100])


def test_verify_equivalence_can_fail(pruned):
    model, image, result = pruned
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        wrong.layer2[0].conv1.weight[0] += 0.1
    with pytest.raises(fec_fast.EquivalenceError, match="differs"):
        fec_fast.verify_equivalence(model, wrong, result.plan, image)
    keep = copy.deepcopy(result.plan.keep)
    keep["layer1.0.conv2.weight"]["1"] = sorted(set(range(16)) - set(keep["layer1.0.conv2.weight"]["1"]))
    plan = dataclasses.replace(result.plan, keep=keep)
    with pytest.raises(fec_fast.EquivalenceError):
        fec_fast.verify_equivalence(model, result.model, plan, image)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)).eval()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"ratio": 1.0}, fec_fast.RatioError, r"ratio=1.0.*\[0, 1\)"),
        ({"ratio": -0.3}, fec_fast.RatioError, "ratio=-0.3"),
        ({"ratio": float("nan")}, fec_fast.RatioError, "nan"),
        ({"ratio": True}, fec_fast.RatioError, "True"),
        ({"ratio": 0.5, "ratios": {"0": 0.5}}, fec_fast.RatioError, "not both"),
        ({"ratios": {"0": 1.5}}, fec_fast.RatioError, "'0'.*1.5"),
        ({"ratios": {"00": 0.5}}, fec_fast.LayerError, "no layer '00'.*'0'"),
        ({"ratios": {"3": 0.5}}, fec_fast.LayerError, "'3' cannot be pruned.*outputs"),
        ({"ratios": [0.5]}, fec_fast.ArgumentError, "mapping"),
        ({"ignore": ("nope",)}, fec_fast.LayerError, "nope"),
        ({"ignore": "0"}, fec_fast.ArgumentError, "sequence"),
        ({"ignore": ("0", "2")}, fec_fast.LayerError, "nothing to prune"),
        ({"criterion": "l3"}, fec_fast.ArgumentError, "'l1'"),
        ({"criterion": "l1", "formula": fec_fast.Formula()}, fec_fast.ArgumentError, "criterion='fec_l1' or 'fec'"),
        ({"formula": "rms"}, fec_fast.ArgumentError, "Formula"),
        ({"sides": "one"}, fec_fast.ArgumentError, "sides"),
        ({"round_to": 0}, fec_fast.ArgumentError, "round_to=0"),
        ({"criterion": lambda weight: weight.sum()}, fec_fast.LayerError, "expected"),
        ({"criterion": lambda weight: weight.flatten(1).sum(1) / 0}, fec_fast.WeightError, "NaN or infinity"),
    ],
)
def test_bad_arguments(options, error, words):
    model = small()
    before = snapshot(model)
    with pytest.raises(error, match=words):
        fec_fast.prune(model, torch.randn(1, 3, 8, 8), **options, recover=None)
    assert equal(snapshot(model), before)


def test_bad_models_and_inputs():
    with pytest.raises(fec_fast.InputError, match=r"float32 \[1, 4, 8, 8\]"):
        fec_fast.prune(small(), torch.randn(1, 4, 8, 8), recover=None)
    with pytest.raises(fec_fast.LayerError, match="no parameters"):
        fec_fast.prune(nn.Sequential(), torch.randn(1), recover=None)
    with pytest.raises(fec_fast.LayerError, match="nothing to prune"):
        fec_fast.prune(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 8, 8), recover=None)
    with pytest.raises(fec_fast.ArgumentError):
        fec_fast.prune("resnet", torch.randn(1), recover=None)
    with torch.device("meta"):
        hollow = small()
    with pytest.raises(fec_fast.WeightError, match="meta"):
        fec_fast.prune(hollow, torch.randn(1, 3, 8, 8), recover=None)
    with pytest.raises(fec_fast.WeightError, match="0.weight is not initialised"):
        fec_fast.prune(nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 2, 1)), torch.randn(1, 3, 8, 8), recover=None)
    bad = small()
    with torch.no_grad():
        bad[2].weight[1, 2, 0, 1] = float("nan")
    with pytest.raises(fec_fast.WeightError, match=r"2.weight holds nan at index \[1, 2, 0, 1\]"):
        fec_fast.prune(bad, torch.randn(1, 3, 8, 8), recover=None)


def test_coupled_layers_with_different_ratios():
    model = networks.resnet34_cifar().eval()
    with pytest.raises(fec_fast.RatioError, match="coupled"):
        fec_fast.prune(model, torch.randn(1, 3, 32, 32), ratios={"conv1": 0.2, "layer1.0.conv2": 0.3}, recover=None)


def test_a_warning_reports_that_nothing_was_pruned():
    with pytest.warns(UserWarning, match="nothing was pruned"):
        fec_fast.prune(small(), torch.randn(1, 3, 8, 8), ratio=0.01, recover=None)
