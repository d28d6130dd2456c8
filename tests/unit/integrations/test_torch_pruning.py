"""fec_fast inside Torch-Pruning: the same channels are removed, and its history becomes a plan with equal weights."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.scoring import reference
from helpers.comparison import same_weights

tp = pytest.importorskip("torch_pruning")
models = pytest.importorskip("torchvision").models

from fec_fast.integrations.torch_pruning import FECImportance, plan_from_history  # noqa: E402

IMAGE = (1, 3, 32, 32)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch-Pruning warns about parameters that it does not prune
        yield


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, image = getattr(models, name)().eval(), torch.randn(IMAGE)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that a wrong index changes the outputs
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return model, image


def prune_theirs(model: nn.Module, image: torch.Tensor, **options: object):
    theirs = copy.deepcopy(model)
    last = [module for module in theirs.modules() if isinstance(module, nn.Linear)][-1]
    options = {"importance": FECImportance(), "pruning_ratio": 0.5, "ignored_layers": [last], **options}
    pruner = tp.pruner.BasePruner(theirs, image, **options)
    for _ in range(int(options.get("iterative_steps", 1))):
        pruner.step()
    return theirs, pruner


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize(
    ("formula", "sides"),
    [(None, "both"), (None, "producer"), (fec_fast.Formula("rms", axis="channels"), "both")],
    ids=["both", "producer", "channels"],
)
def test_torch_pruning_removes_the_channels_with_the_lowest_scores(name, formula, sides) -> None:
    model, image = build(name)
    theirs, _ = prune_theirs(model, image, importance=FECImportance(formula, sides=sides))
    options = {"criterion": "fec", "formula": formula, "sides": sides, "verify": False}
    ours = fec_fast.prune(model, image, ratio=0.5, **options, recover=None).model
    assert same_weights(theirs, ours)
    assert theirs(image).shape == (1, 1000)
    assert sum(p.numel() for p in theirs.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


def test_importance_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(20, 2)).eval()
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 2, 2))
    formula = fec_fast.Formula()

    def entropy(weight: torch.Tensor) -> torch.Tensor:
        found = reference.entropy(weight.detach(), formula)
        return found / found.mean()

    first, second, linear = model[0].weight, model[2].weight, model[4].weight
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [0, 1, 2, 3])
    expected = entropy(first) * entropy(second.transpose(0, 1))
    torch.testing.assert_close(FECImportance()(group), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(FECImportance(sides="producer")(group), entropy(first), rtol=1e-4, atol=0)
    part = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [3, 1])
    torch.testing.assert_close(FECImportance()(part), expected[[3, 1]], rtol=1e-4, atol=0)
    # After the flatten, four features belong to one channel, and are compared as one.
    group = graph.get_pruning_group(model[2], tp.prune_conv_out_channels, list(range(5)))
    expected = entropy(second) * entropy(linear.reshape(2, 5, 4).transpose(0, 1))
    torch.testing.assert_close(FECImportance()(group), expected, rtol=1e-4, atol=0)


def test_transposed_and_grouped_convolutions() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, groups=2)]
    model = nn.Sequential(*layers, nn.Conv2d(8, 2, 1)).eval()
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 4, 4))
    plan = fec_fast.prune(model, torch.randn(1, 3, 4, 4), criterion="fec", recover=None).plan
    scores = {one["name"]: one["scores"] for one in plan.sets}
    for name in ("0", "1"):
        layer = model.get_submodule(name)
        group = graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels)))
        assert FECImportance()(group).tolist() == pytest.approx(scores[name], rel=1e-12)
    group = graph.get_pruning_group(model[2], tp.prune_conv_out_channels, list(range(8)))
    assert FECImportance()(group).shape == (8,)


def test_a_group_without_an_entropy_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)).eval()
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 1, 2, 2))
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [0, 1, 2, 3])
    assert FECImportance(fec_fast.Formula("rms", axis="channels"))(group) is None
    assert FECImportance()(group) is not None


def test_bad_arguments_and_weights() -> None:
    with pytest.raises(fec_fast.ArgumentError, match="sides='consumer'"):
        FECImportance(sides="consumer")
    with pytest.raises(fec_fast.ArgumentError, match="Formula"):
        FECImportance("rms")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(fec_fast.ArgumentError, match="Group"):
        FECImportance()(model)
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 2, 2))
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [0, 1])
    with torch.no_grad():
        model[1].weight[1, 2, 0, 0] = torch.nan
    with pytest.raises(fec_fast.WeightError, match=r"^layer '1 \(Conv2d.* nan at \[1, 2, 0, 0\]"):
        FECImportance()(group)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("steps", [1, 2])
def test_history_becomes_a_plan_with_equal_weights(name, steps) -> None:
    model, image = build(name)
    importance = tp.importance.MagnitudeImportance(p=1)
    theirs, pruner = prune_theirs(model, image, importance=importance, iterative_steps=steps, global_pruning=True)
    before = copy.deepcopy(model.state_dict())
    plan = plan_from_history(model, pruner.pruning_history(), image)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert fec_fast.Plan.from_json(plan.to_json()) == plan
    assert fec_fast.verify_equivalence(model, theirs, plan, image) < 1e-9
    fec_fast.apply_plan(model, plan)
    assert same_weights(model, theirs)
    with torch.no_grad():
        assert torch.equal(model(image), theirs(image))


def small() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(24, 2)]
    return nn.Sequential(*layers).eval(), torch.randn(1, 3, 2, 2)


@pytest.mark.parametrize(
    ("root", "pruning"), [(1, "prune_batchnorm_out_channels"), (3, "prune_conv_in_channels")], ids=["norm", "inputs"]
)
def test_history_with_other_roots(root, pruning) -> None:
    model, image = small()
    theirs = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(theirs, image)
    graph.get_pruning_group(theirs[root], getattr(tp, pruning), [1, 6]).prune()
    graph.get_pruning_group(theirs[3], tp.prune_conv_out_channels, [0, 5]).prune()
    graph.get_pruning_group(theirs[root], getattr(tp, pruning), [0, 5]).prune()  # 0 and 7 of the original
    plan = plan_from_history(model, graph.pruning_history(), image)
    assert plan.keep["0.weight"] == {"0": [2, 3, 4, 5]}
    fec_fast.apply_plan(model, plan)
    assert same_weights(model, theirs)


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ([("9", True, [0])], "step 0 of the history.*no such module"),
        ([("0", True, [1]), ("0", True, [7])], "step 1 of the history.*no channel 7, only 7 by then"),
        ([("5", True, [0])], "step 0.*fec_fast keeps channel 0: .*outputs of the model"),
        ([("5", False, [0, 1])], "fec_fast finds channel 2 coupled"),
        ([("2", True, [0])], "does not follow channels through it"),
        ([("0", True, list(range(8)))], "at least one"),
    ],
)
def test_history_that_does_not_fit_is_refused(history, words) -> None:
    model, image = small()
    with pytest.raises(fec_fast.PlanError, match=words):
        plan_from_history(model, history, image)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("model", []), fec_fast.ArgumentError),
        ((small()[0], [("0", True)]), fec_fast.ArgumentError),
        ((small()[0], [("0", True, ["x"])]), fec_fast.ArgumentError),
    ],
)
def test_history_of_another_kind_is_refused(arguments, error) -> None:
    with pytest.raises(error):
        plan_from_history(*arguments, torch.randn(1, 3, 2, 2))


def test_an_empty_history_is_a_plan_that_removes_nothing() -> None:
    model, image = small()
    assert plan_from_history(model, [], image).keep == {}


class Flipped(nn.Module):
    """Torch-Pruning removes the same indices before and after the flip, which are other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).flip(1))


def test_a_coupling_that_differs_is_refused() -> None:
    torch.manual_seed(0)
    model, image = Flipped().eval(), torch.randn(1, 3, 4, 4)
    theirs = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(theirs, image)
    graph.get_pruning_group(theirs.a, tp.prune_conv_out_channels, [0, 1]).prune()
    with pytest.raises(fec_fast.PlanError, match=r"couple this model's channels differently: of b\.weight"):
        plan_from_history(model, graph.pruning_history(), image)


def test_grouped_convolutions_that_lose_positions_there_and_groups_here_are_refused() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 2, 1)]
    model, image = nn.Sequential(*layers).eval(), torch.randn(1, 3, 4, 4)
    theirs = copy.deepcopy(model)
    pruner = tp.pruner.BasePruner(theirs, image, importance=FECImportance(), ignored_layers=[theirs[2]])
    pruner.step()
    assert theirs(image).shape == (1, 2, 4, 4) and theirs[1].in_channels == 4
    with pytest.raises(fec_fast.PlanError, match="fec_fast finds channel . coupled to them, and Torch-Pruning left it"):
        plan_from_history(model, pruner.pruning_history(), image)


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['torch_pruning'] = None\nimport fec_fast.integrations.torch_pruning"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MissingExtraError" in done.stderr and "pip install 'fec_fast[torch-pruning]'" in done.stderr
