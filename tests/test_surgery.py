"""Plans are data that can be trusted; applying one is all or nothing; bad input is named before anything changes."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast import surgery, zoo
from fec_fast.plan import named_tensors


@pytest.fixture(scope="module")
def pruned():
    torch.manual_seed(0)
    model, image = zoo.resnet20_cifar().eval(), torch.randn(2, 3, 32, 32)
    return model, image, fec_fast.prune(model, image, ratio=0.5)


def snapshot(model: nn.Module) -> list[object]:
    return [
        [(name, tensor.detach().clone(), tensor.requires_grad) for name, tensor in named_tensors(model).items()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        [{k: v for k, v in vars(m).items() if isinstance(v, int | bool | tuple)} for m in model.modules()],
        [id(parameter) for parameter in model.parameters()],
    ]


def equal(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def test_an_exception_at_any_step_leaves_the_model_as_it_was(pruned, monkeypatch):
    original, image, result = pruned
    model = copy.deepcopy(original).train()
    model(image).sum().backward()
    model.conv1.weight.requires_grad_(False)
    before = snapshot(model)
    real_swap, real_setattr = surgery._swap, nn.Module.__setattr__
    steps = len({name for name in result.plan.keep}) + sum(map(len, result.plan.attributes.values()))
    for fatal in range(steps):
        count = -1
        undoing = False

        def step(real, *args, fatal=fatal):
            nonlocal count, undoing
            count += 1
            if count == fatal and not undoing:
                undoing = True
                raise MemoryError("injected")
            real(*args)

        monkeypatch.setattr(surgery, "_swap", lambda *args, step=step: step(real_swap, *args))
        monkeypatch.setattr(nn.Module, "__setattr__", lambda *args, step=step: step(real_setattr, *args))
        with pytest.raises(MemoryError):
            fec_fast.apply_plan(model, result.plan)
        monkeypatch.undo()
        assert equal(snapshot(model), before), f"step {fatal}"
    fec_fast.apply_plan(model, result.plan)
    assert not equal(snapshot(model), before)


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


def test_plan_round_trip(pruned):
    _, _, result = pruned
    text = result.plan.to_json()
    assert fec_fast.Plan.from_json(text) == result.plan
    assert fec_fast.Plan.from_json(text).to_json() == text


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d.update(version=99), "version"),
        (lambda d: d.update(format="x"), "not a plan"),
        (lambda d: d.pop("sets"), "entries"),
        (lambda d: d["keep"]["conv1.weight"].update({"0": [3, 1]}), "rising"),
        (lambda d: d["keep"]["conv1.weight"].update({"0": [1, 1]}), "rising"),
        (lambda d: d["keep"]["conv1.weight"].update({"0": [0, 16]}), "outside"),
        (lambda d: d["keep"]["conv1.weight"].update({"0": [-1, 2]}), "outside"),
        (lambda d: d["keep"]["conv1.weight"].update({"0": []}), "at least one"),
        (lambda d: d["keep"]["conv1.weight"].update({"7": [0]}), "axes"),
        (lambda d: d["keep"].update(ghost={"0": [0]}), "shape of every tensor"),
        (lambda d: d["attributes"]["conv1"].update(out_channels=3), "does not fit"),
        (lambda d: d["attributes"]["conv1"].update(training=1), "not an attribute"),
    ],
)
def test_edited_plans_are_refused(pruned, edit, words):
    document = json.loads(pruned[2].plan.to_json())
    edit(document)
    with pytest.raises(fec_fast.PlanError, match=words):
        fec_fast.Plan.from_json(json.dumps(document))


def test_a_plan_for_another_model(pruned):
    _, _, result = pruned
    other = zoo.resnet56_cifar()
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
        ({"criterion": "l1", "formula": fec_fast.Formula()}, fec_fast.ArgumentError, "criterion='fec'"),
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
        fec_fast.prune(model, torch.randn(1, 3, 8, 8), **options)
    assert equal(snapshot(model), before)


def test_bad_models_and_inputs():
    with pytest.raises(fec_fast.InputError, match=r"float32 \[1, 4, 8, 8\]"):
        fec_fast.prune(small(), torch.randn(1, 4, 8, 8))
    with pytest.raises(fec_fast.LayerError, match="no parameters"):
        fec_fast.prune(nn.Sequential(), torch.randn(1))
    with pytest.raises(fec_fast.LayerError, match="nothing to prune"):
        fec_fast.prune(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 8, 8))
    with pytest.raises(fec_fast.ArgumentError):
        fec_fast.prune("resnet", torch.randn(1))
    with torch.device("meta"):
        hollow = small()
    with pytest.raises(fec_fast.WeightError, match="meta"):
        fec_fast.prune(hollow, torch.randn(1, 3, 8, 8))
    with pytest.raises(fec_fast.WeightError, match="0.weight is not initialised"):
        fec_fast.prune(nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 2, 1)), torch.randn(1, 3, 8, 8))
    bad = small()
    with torch.no_grad():
        bad[2].weight[1, 2, 0, 1] = float("nan")
    with pytest.raises(fec_fast.WeightError, match=r"2.weight holds nan at index \[1, 2, 0, 1\]"):
        fec_fast.prune(bad, torch.randn(1, 3, 8, 8))


def test_coupled_layers_with_different_ratios():
    model = zoo.resnet34_cifar().eval()
    with pytest.raises(fec_fast.RatioError, match="coupled"):
        fec_fast.prune(model, torch.randn(1, 3, 32, 32), ratios={"conv1": 0.2, "layer1.0.conv2": 0.3})


def test_nothing_pruned_is_told():
    with pytest.warns(UserWarning, match="nothing was pruned"):
        fec_fast.prune(small(), torch.randn(1, 3, 8, 8), ratio=0.01)
