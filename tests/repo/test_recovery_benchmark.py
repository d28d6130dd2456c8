"""The methods that benchmarks/recovery compares with: each is exact where its publication says so."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast import Plan

pytest.importorskip("PIL")
pytest.importorskip("sklearn")

from benchmarks.recovery import baselines, methods, tables, training


def network_with_copies(factors: tuple[float, float, float]) -> nn.Sequential:
    """A network whose channels 3 to 5 of the first layer are multiples of its channels 0 to 2."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    factor = torch.tensor(factors)
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
        first, norm = model[0], model[1]
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        first.weight[3:] = first.weight[:3] * factor.view(3, 1, 1, 1)
        first.bias[3:] = first.bias[:3] * factor
        norm.weight[3:] = norm.weight[:3]
        norm.running_var[3:] = norm.running_var[:3]
        norm.running_mean[3:] = norm.running_mean[:3] * factor
        norm.bias[3:] = norm.bias[:3] * factor
    return model.double().eval()


def cut(model: nn.Module, example: Tensor) -> tuple[nn.Module, Plan]:
    """The model without the copies, and the plan."""

    def last_first(weight: Tensor) -> Tensor:
        return -torch.arange(len(weight), dtype=torch.float64)

    result = fec_fast.prune(model, example, ratios={"0": 0.5}, criterion=last_first, sides="producer", recover=None)
    assert result.plan.keep["0.weight"]["0"] == [0, 1, 2]
    return result.model, result.plan


@pytest.mark.parametrize("method", ["merge", "fold", "grail"])
def test_copies_of_channels_are_made_up_for_exactly(method: str) -> None:
    # Folding averages the filters of a cluster: it is exact for equal ones.
    model = network_with_copies((1.0, 1.0, 1.0) if method == "fold" else (0.5, 2.0, 3.0))
    images = torch.randn(16, 2, 8, 8, dtype=torch.float64)
    pruned, plan = cut(model, images[:1])
    wanted, before = model(images), pruned(images)
    state = copy.deepcopy(model.state_dict())
    if method == "merge":
        pruned = baselines.merged_neurons(model, images[:1], plan)
    elif method == "fold":
        pruned = baselines.folded(model, images[:1], plan, seed=0)
    else:
        baselines.grail(model, pruned, plan, images.split(5), ridge=1e-13)
    assert (before - wanted).abs().max() > 0.05
    torch.testing.assert_close(pruned(images), wanted, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert fec_fast.couplings(pruned, images[:1]).sets[0].units == 3


def test_folding_is_exact_in_neighbouring_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    )
    model = model.double().eval()
    images = torch.randn(16, 2, 8, 8, dtype=torch.float64)
    sets = fec_fast.couplings(model, images[:1]).sets
    with torch.no_grad():
        for channels in sets:
            for (name, axis), units in channels.members.items():
                if "tracked" not in name:
                    values, half = model.state_dict()[name].movedim(axis, 0), channels.units // 2
                    values[torch.tensor(units[half:])] = values[torch.tensor(units[:half])]
    wanted = model(images)
    plan = fec_fast.prune(model, images[:1], ratio=0.5, verify=False, recover=None).plan
    folded = baselines.folded(model, images[:1], plan, seed=0)
    torch.testing.assert_close(folded(images), wanted, rtol=1e-6, atol=1e-6)


def test_grail_is_ridge_regression_of_the_channels() -> None:
    model = network_with_copies((0.5, 2.0, 3.0))
    with torch.no_grad():
        model[0].weight[3:] += torch.randn(3, 2, 3, 3, dtype=torch.float64)  # no copies any more
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    pruned, plan = cut(model, images[:1])
    baselines.grail(model, pruned, plan, [images], ridge=1e-3)
    rows = model[:3](images).permute(0, 2, 3, 1).reshape(-1, 6)
    strength = 1e-3 * rows[:, :3].square().sum(0).mean()
    stacked = torch.cat([rows[:, :3], strength.sqrt() * torch.eye(3, dtype=torch.float64)])
    reconstruction = torch.linalg.lstsq(stacked, torch.cat([rows, torch.zeros(3, 6, dtype=torch.float64)])).solution
    wanted = torch.einsum("ocyx,kc->okyx", model[3].weight, reconstruction)
    torch.testing.assert_close(pruned[3].weight, wanted)


def test_neurons_are_not_merged_below_the_threshold() -> None:
    model = network_with_copies((0.5, 2.0, 3.0))
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    pruned, plan = cut(model, images[:1])
    merged = baselines.merged_neurons(model, images[:1], plan, threshold=1.1)
    torch.testing.assert_close(merged(images), pruned(images))


def test_every_row_is_planned_once() -> None:
    keys = [json.dumps(job.key()) for job in methods.jobs(3)]
    assert len(keys) == len(set(keys))
    planned = [json.loads(key) for key in keys]
    assert {key[0] for key in planned} == set(methods.BUDGETS)
    assert {key[4] for key in planned if key[1] in methods.OURS} == {0, 1, 2}
    trained = [json.dumps(key) for key in training.keys(3)]
    assert len(trained) == len(set(trained))


def test_a_method_without_images_is_compared_with_every_draw_of_them() -> None:
    def row(method: str, seed: int, images: int, right: str) -> dict[str, object]:
        return {"key": ["accuracy", "vgg16", method, "params", 0.5, seed, images], "right": right, "images": 8}

    seeds = [row("least squares", seed, methods.IMAGES, right) for seed, right in enumerate(("ff", "f0", "0f"))]
    document = {
        "dense": {"vgg16": {"right": "ff", "images": 8, "accuracy": 100.0}},
        "rows": [*seeds, row("as pruned", 0, 0, "80")],
    }
    rows = tables.Accuracies(document)
    ahead = rows.ahead("vgg16", "least squares", "as pruned", ("params", 0.5))
    assert ahead is not None and ahead.mean == pytest.approx(100 * (7 + 3 + 3) / 24)
    drop = rows.drop("vgg16", "least squares", ("params", 0.5))
    assert drop is not None and drop.mean == pytest.approx(100 / 3)
    assert rows.ahead("vgg16", "least squares", "Model Folding", ("params", 0.5)) is None
    table = tables.table_of_methods(rows, "vgg16", "least squares")
    assert "| **66.7 ± " in table and "| as pruned | 12.5 (-54.2 ± " in table
