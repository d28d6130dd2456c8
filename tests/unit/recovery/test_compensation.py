"""``compensate``: exact where the removed channels were not needed, indifferent to batches, all or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast.recovery.layer_fits import LayerFits
from fec_fast.utils.errors import ArgumentError, InputError, PlanError, WeightError
from helpers.duplicates import duplicate_channels, later_is_worse
from helpers.networks import SharedWeight, chain
from helpers.states import assert_same_state, relative_error, state


class Residual(nn.Module):
    """Two blocks on one stream, a concatenation, and a linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 6, 1, stride=2)
        self.down = nn.Conv2d(8, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(10 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())) + x).relu()
        return self.head(torch.cat([self.branch(x).relu(), self.down(x).sigmoid()], 1).flatten(1))


CONV = nn.Conv2d(3, 8, 3, padding=1)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (chain(CONV, nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU6(), nn.Conv2d(12, 5, 1)), (3, 6, 6)),
    "batch norm": (
        chain(CONV, nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (3, 6, 6),
    ),
    "depthwise": (
        chain(CONV, nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)),
        (3, 6, 6),
    ),
    "grouped": (
        chain(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 5, 1)),
        (3, 7, 7),
    ),
    "transposed": (
        chain(CONV, nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 3, 2)),
        (3, 4, 4),
    ),
    "dilated, strided": (
        chain(CONV, nn.Tanh(), nn.Conv2d(8, 6, 3, stride=2, dilation=2, padding=2), nn.ReLU(), nn.Conv2d(6, 5, 1)),
        (3, 9, 9),
    ),
    "1d": (chain(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.GELU(), nn.Conv1d(6, 4, 1)), (3, 12)),
    "3d": (chain(nn.Conv3d(2, 6, 2), nn.ReLU(), nn.Conv3d(6, 4, 2), nn.ReLU(), nn.Conv3d(4, 3, 1)), (2, 4, 4, 4)),
    "flatten": (chain(CONV, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10), nn.ReLU(), nn.Linear(10, 4)), (3, 6, 6)),
    "residual": (Residual, (3, 6, 6)),
}


def pruned_network(name: str, duplicates: bool) -> tuple[nn.Module, fec_fast.PruneResult, Tensor]:
    """A network, half of it, and 64 images."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    images = torch.randn(64, *shape)
    if duplicates:
        duplicate_channels(model, images[:2])
    result = fec_fast.prune(model, images[:2], ratio=0.5, criterion=later_is_worse, sides="producer", recover=None)
    return model, result, images


def error(model: nn.Module, pruned: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return relative_error(model(images), pruned(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_its_duplicates_a_network_is_recovered_to_rounding(name: str) -> None:
    model, result, images = pruned_network(name, duplicates=True)
    assert error(model, result.model, images) > 1e-3
    keys, before = list(result.model.state_dict()), state(model)
    done = fec_fast.compensate(model, result.model, result.plan, images, ridge=1e-9, progress=False)
    assert error(model, result.model, images) < 1e-7
    assert not done.left and all(layer.error < 1e-6 < layer.error_before for layer in done.layers)
    assert list(result.model.state_dict()) == keys
    assert_same_state(model, before)


class Branches(nn.Module):
    """A branch that loses channels, and one that can make up for them in the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.direct = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.second(self.first(x))
        return self.norm(self.direct(x)) + shortcut


def test_a_branch_makes_up_for_what_the_shortcut_has_lost() -> None:
    torch.manual_seed(0)
    model, images = Branches().eval(), torch.randn(64, 3, 4, 4)
    result = fec_fast.prune(model, images[:2], ratio=0.75, recover=None)
    assert result.model.get_submodule("first").weight.shape[0] == 2  # of rank 2: it cannot do what 3 channels do
    done = fec_fast.compensate(model, result.model, result.plan, images, ridge=1e-9, progress=False)
    assert [layer.layer for layer in done.layers] == ["second", "direct"]
    assert done.layers[0].error > 1e-3
    assert error(model, result.model, images) < 1e-7


@pytest.mark.parametrize("name", NETWORKS)
def test_other_images_profit_too(name: str) -> None:
    model, result, images = pruned_network(name, duplicates=False)
    others = torch.randn(64, *images.shape[1:])
    as_pruned = error(model, result.model, others)
    fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert error(model, result.model, others) < 0.8 * as_pruned


def test_a_linear_network_gets_the_optimum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)).double()
    images = torch.randn(32, 3, 6, 6, dtype=torch.float64)
    result = fec_fast.prune(model, images[:2], ratio=0.75, ignore=("1",), recover=None)
    fec_fast.compensate(model, result.model, result.plan, images, ridge=1e-12, progress=False)
    with torch.no_grad():
        inputs = result.model[0](images).movedim(1, -1).flatten(0, 2)
        wanted, outputs = (one(images).movedim(1, -1).flatten(0, 2) for one in (model, result.model))
        design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
        best = design @ torch.linalg.lstsq(design, wanted).solution
    torch.testing.assert_close(outputs, best)


@pytest.mark.parametrize("name", ["batch norm", "residual"])
def test_nothing_removed_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name][0]()
    images = torch.randn(16, *NETWORKS[name][1])
    with pytest.warns(UserWarning, match="nothing was pruned"):
        result = fec_fast.prune(model, images[:2], ratio=0.001, recover=None)
    before = state(result.model)
    done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert not done.layers and not done.left
    assert_same_state(result.model, before)


def test_layers_whose_inputs_are_those_of_the_original_keep_their_weights() -> None:
    model, result, images = pruned_network("plain", duplicates=False)
    before = state(result.model)
    done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert [layer.layer for layer in done.layers] == ["2", "4"]
    assert torch.equal(result.model[0].weight, before["0.weight"])


@pytest.mark.parametrize("name", ["batch norm", "flatten", "residual"])
def test_batches_and_order_of_the_images_do_not_matter(name: str) -> None:
    model, result, images = pruned_network(name, duplicates=False)
    forms: list[Any] = [
        images,
        list(images.split(5)),
        images[torch.randperm(64)],
        [(part, torch.zeros(len(part))) for part in images.split(64)],
    ]
    outputs = []
    for form in forms:
        pruned = copy.deepcopy(result.model)
        # 100 rows: only some positions of each image are sampled.
        fec_fast.compensate(model, pruned, result.plan, form, rows=100, progress=False)
        with torch.no_grad():
            outputs.append(pruned(images))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-3, atol=1e-4)


def test_the_random_state_and_the_modes_are_left_alone() -> None:
    model, result, images = pruned_network("batch norm", duplicates=False)
    model.train()
    result.model.train()
    result.model[1].eval()
    before, modes = torch.get_rng_state(), [module.training for module in result.model.modules()]
    originals = state(model)
    fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in result.model.modules()] == modes
    assert all(module.training for module in model.modules())
    assert_same_state(model, originals)


@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_at_any_step_leaves_the_model_as_it_was(
    step: int, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, result, images = pruned_network("residual", duplicates=False)
    before, steps = state(result.model), iter(range(100))
    write = LayerFits._write

    def failing(self: LayerFits, tensor: Tensor, value: Tensor) -> None:
        if next(steps) == step:
            raise kind("stop")
        write(self, tensor, value)

    monkeypatch.setattr(LayerFits, "_write", failing)
    with pytest.raises(kind, match="stop"):
        fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert next(steps) == step + 1
    assert_same_state(result.model, before)


class Raises(nn.Module):
    """Raises in the run of the pruned model, behind layers that were changed by then."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        if self.network[0].out_channels < 8:
            raise RuntimeError("only when pruned")
        return y


def test_an_exception_in_the_pruned_model_leaves_it_as_it_was() -> None:
    model, result, images = pruned_network("plain", duplicates=False)
    original, pruned = Raises(model), Raises(result.model)
    plan = renamed(result.plan)
    before = state(pruned)
    with pytest.raises(InputError, match="only when pruned"):
        fec_fast.compensate(original, pruned, plan, images, progress=False)
    assert_same_state(pruned, before)


def renamed(plan: fec_fast.Plan) -> fec_fast.Plan:
    """The plan of a network, for that network inside a :class:`Raises`."""
    model, example = NETWORKS["plain"][0](), torch.zeros(2, *NETWORKS["plain"][1])
    return fec_fast.prune(
        WithoutRaising(model),
        example,
        ratio=0.5,
        criterion=later_is_worse,
        sides="producer",
        verify=False,
        recover=None,
    ).plan


class WithoutRaising(Raises):
    """The same names, without the exception."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_a_loader_that_raises_midway() -> None:
    model, result, images = pruned_network("plain", duplicates=False)
    before = state(result.model)

    def loader() -> Iterator[Tensor]:
        yield images
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fec_fast.compensate(model, result.model, result.plan, loader(), progress=False)
    assert_same_state(result.model, before)


IMAGES = torch.randn(64, 3, 6, 6)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"calibration": torch.randn(16, 4, 6, 6)}, InputError, r"cannot be run .*float32 \[16, 4, 6, 6\]"),
    ({"calibration": IMAGES.double()}, InputError, "float64"),
    ({"calibration": []}, InputError, "no images"),
    ({"calibration": IMAGES[:1]}, InputError, r"1 calibration image\(s\) are too few: give at least 8"),
    ({"calibration": IMAGES / 0}, InputError, "NaN"),
    ({"calibration": 7}, ArgumentError, "expected a loader"),
    ({"ridge": 0.0}, ArgumentError, "ridge=0.0"),
    ({"ridge": float("nan")}, ArgumentError, "ridge=nan"),
    ({"rows": 0}, ArgumentError, "rows=0"),
    ({"images": 2.5}, ArgumentError, "images=2.5"),
    ({"memory": -1}, ArgumentError, "memory=-1"),
    ({"plan": "plan.json"}, ArgumentError, "plan: expected a fec_fast.Plan"),
    ({"pruned": "the original"}, PlanError, "not what the plan leaves"),
    ({"original": "the pruned"}, PlanError, "already pruned by this plan"),
    ({"original": "half"}, WeightError, "'0'.*float16.*float"),
    ({"pruned": "half"}, WeightError, "'0'.*float16.*float"),
    ({"original": "NaN"}, InputError, "'2'.*NaN"),
    ({"pruned": "NaN"}, InputError, "'2'.*NaN"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD)
def test_bad_input_is_refused_and_nothing_changes(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    model, result, images = pruned_network("plain", duplicates=False)
    arguments: dict[str, Any] = {
        "original": model,
        "pruned": result.model,
        "plan": result.plan,
        "calibration": images,
        "progress": False,
    }
    for name, value in changes.items():
        if value == "half":
            arguments[name] = copy.deepcopy(arguments[name]).half()
        elif value == "NaN":
            arguments[name] = copy.deepcopy(arguments[name])
            with torch.no_grad():
                arguments[name][0].bias[0] = float("nan")
        elif value == "the original":
            arguments[name] = model
        elif value == "the pruned":
            arguments[name] = result.model
        else:
            arguments[name] = value
    before = state(arguments["pruned"])
    with pytest.raises(kind, match=message):
        fec_fast.compensate(**arguments)
    after = arguments["pruned"].state_dict()
    assert all(torch.equal(after[name].nan_to_num(7), before[name].nan_to_num(7)) for name in before)


def test_a_shared_weight_is_fitted_on_all_its_uses() -> None:
    torch.manual_seed(0)
    model, images = SharedWeight().eval(), torch.randn(64, 3, 8, 8)
    duplicate_channels(model, images[:2])
    result = fec_fast.prune(model, images[:2], ratio=0.5, criterion=later_is_worse, sides="producer", recover=None)
    as_pruned = error(model, result.model, images)
    done = fec_fast.compensate(model, result.model, result.plan, images, ridge=1e-6, progress=False)
    assert error(model, result.model, images) < 0.2 * as_pruned
    assert len({layer.layer for layer in done.layers}) == len(done.layers)


class Siamese(nn.Module):
    """A stem that is called on two images, and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stem(x).relu() + self.stem(x.flip(3)).relu())


def test_every_call_of_a_layer_counts_even_those_in_front_of_the_first_removed_channel() -> None:
    torch.manual_seed(0)
    model, images = Siamese().eval(), torch.randn(64, 3, 6, 6)
    duplicate_channels(model, images[:2])
    result = fec_fast.prune(model, images[:2], ratio=0.5, criterion=later_is_worse, sides="producer", recover=None)
    before = state(result.model)
    done = fec_fast.compensate(model, result.model, result.plan, images, ridge=1e-9, progress=False)
    assert torch.equal(result.model.stem.weight, before["stem.weight"])
    assert [layer.layer for layer in done.layers] == ["last"]
    assert error(model, result.model, images) < 1e-7


class Normalised(nn.Module):
    """Layers without bias in front of norms that keep no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.group, self.group_norm = nn.Conv2d(16, 16, 3, bias=False), nn.GroupNorm(2, 16)
        self.instance, self.instance_norm = nn.Conv2d(16, 8, 3, bias=False), nn.InstanceNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group_norm(self.group(self.stem(x).relu())).relu()
        return self.last(self.instance_norm(self.instance(x)).relu())


def test_norms_without_statistics_and_layers_without_bias() -> None:
    torch.manual_seed(0)
    model, images = Normalised(), torch.randn(64, 3, 8, 8)
    result = fec_fast.prune(model, images[:2], ratio=0.25, recover=None)
    as_pruned, keys = error(model, result.model, images), list(result.model.state_dict())
    fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert error(model, result.model, images) < 0.7 * as_pruned
    assert list(result.model.state_dict()) == keys


class OverChannels(nn.Module):
    """A ConvNeXt block, whose norm runs over channels, behind a stem with a group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.group_norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(2, 16)
        self.depthwise, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group_norm(self.stem(x)).relu()
        inner = self.norm(self.depthwise(x).movedim(1, -1))
        return self.last(x + self.down(nn.functional.gelu(self.up(inner))).movedim(-1, 1))


@pytest.mark.parametrize("criterion", ["fec_l1", "reconstruction"])
def test_norms_over_the_kept_channels_are_made_good(criterion: str) -> None:
    torch.manual_seed(0)
    model, images = OverChannels(), torch.randn(64, 3, 8, 8)
    calibration = images if criterion == "reconstruction" else None
    result = fec_fast.prune(
        model, images[:2], ratio=0.25, norms="renormalise", criterion=criterion, calibration=calibration, recover=None
    )
    assert result.plan.changed_norms == ["group_norm", "norm"]
    as_pruned = error(model, result.model, images)
    done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert {"depthwise", "up", "down", "last"} <= {layer.layer for layer in done.layers}
    assert error(model, result.model, images) < 0.7 * as_pruned


class Branching(nn.Module):
    """Takes another branch when it was pruned, and hides a weight in a product that is no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.wide, self.narrow = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)
        self.taken = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.wide(x) + self.narrow(x) if self.taken else self.narrow(x))


def test_a_layer_that_the_pruned_model_does_not_reach_is_reported() -> None:
    torch.manual_seed(0)
    model, images = Branching(), torch.randn(16, 3, 6, 6)
    result = fec_fast.prune(model, images[:2], ratio=0.5, recover=None)
    result.model.taken = False
    done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert set(done.left) == {"wide"} and "did not reach" in done.left["wide"]
    assert "left as it was: wide" in str(done)


class Product(nn.Module):
    """Multiplies by its parameter without a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(5, 3)
        self.weight = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x).relu() @ self.weight).relu())


def test_a_weight_that_is_used_in_another_way_is_reported() -> None:
    torch.manual_seed(0)
    model, images = Product(), torch.randn(64, 6)
    result = fec_fast.prune(model, images[:2], ratio=0.5, recover=None)
    assert "weight" in result.plan.keep
    before = result.model.weight.detach().clone()
    done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert "no convolution or linear operation" in done.left["weight"]
    assert torch.equal(result.model.weight, before) and [layer.layer for layer in done.layers] == ["last"]


class Proposing(nn.Module):
    """A second stage on the positions with the highest scores, as in two-stage detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.features, self.score = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)
        self.second = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(self.stem(x).relu()).relu()
        chosen = self.score(features).flatten(1).topk(4).indices
        return self.second(features.flatten(2).gather(2, chosen[:, None].expand(-1, features.shape[1], -1)).mT)


def test_rows_that_the_model_chooses_by_values_are_not_compared() -> None:
    torch.manual_seed(0)
    model, images = Proposing(), torch.randn(16, 3, 6, 6)
    result = fec_fast.prune(model, images[:2], ratio=0.5, recover=None)
    done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert [layer.layer for layer in done.layers] == ["features", "score"]
    assert set(done.left) == {"second.0", "second.2"} and "behind 'topk'" in done.left["second.0"]


class ListOfImages(nn.Module):
    """Takes a list of images of different sizes, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))

    def forward(self, images: list[Tensor]) -> Tensor:
        return torch.stack([self.net(image[None]).mean((0, 2, 3)) for image in images])


def test_lists_of_images_of_different_sizes() -> None:
    torch.manual_seed(0)
    model, images = ListOfImages(), [torch.randn(3, 6 + number % 3, 8) for number in range(24)]
    result = fec_fast.prune(model, [image for image in images[:2]], ratio=0.5, recover=None)
    done = fec_fast.compensate(model, result.model, result.plan, [(images[:10], {}), (images[10:], {})], progress=False)
    assert done.images == 24 and [layer.layer for layer in done.layers] == ["net.2", "net.4"]
    assert all(layer.error < layer.error_before for layer in done.layers)


def test_little_memory_means_fewer_rows_and_images() -> None:
    model, result, images = pruned_network("residual", duplicates=False)
    whole = fec_fast.compensate(model, copy.deepcopy(result.model), result.plan, images, progress=False)
    as_pruned = error(model, result.model, images)
    with pytest.warns(UserWarning, match="of 64 calibration images were used: memory=0.0003 GiB is not enough"):
        done = fec_fast.compensate(model, result.model, result.plan, images, memory=3e-4, progress=False)
    assert done.images < whole.images == done.images_read and f"on {done.images} of 64 images" in done.note
    assert sum(r.rows for r in done.layers) < sum(r.rows for r in whole.layers)
    assert error(model, result.model, images) < as_pruned


def test_prune_recovers_and_says_so(tmp_path: Any) -> None:
    model, _, images = pruned_network("residual", duplicates=False)
    plain = fec_fast.prune(model, images[:2], ratio=0.5, recover=None)
    result = fec_fast.prune(model, images[:2], ratio=0.5, recover=list(images.split(16)))
    assert result.recovery is not None and plain.recovery is None
    assert (
        "recovered by least squares on 64 images" in result.plan.notes[-1] and result.plan.notes[-1] in result.summary()
    )
    assert error(model, result.model, images) < 0.5 * error(model, plain.model, images)
    fec_fast.save(result, tmp_path / "saved")
    loaded = fec_fast.load(Residual(), tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model.eval()(images))
    table = str(result.recovery)
    assert "conv2" in table and "error before" in table


@given(data=st.data())
@settings(max_examples=25)
def test_random_chains_come_nearer_to_the_original(data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(4, 10), min_size=2, max_size=4))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        bias, norm = data.draw(st.booleans()), data.draw(st.booleans())
        layers.append(nn.Conv2d(channels, width, data.draw(st.sampled_from([1, 3])), padding=1, bias=bias))
        layers += [nn.BatchNorm2d(width)] * norm
        layers.append(data.draw(st.sampled_from([nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Identity(), nn.LeakyReLU()])))
        channels = width
    model = nn.Sequential(*layers, nn.Conv2d(channels, 3, 1)).eval()
    images = torch.randn(32, 3, 5, 5)
    result = fec_fast.prune(model, images[:2], ratio=0.4, recover=None)
    as_pruned = error(model, result.model, images)
    done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert error(model, result.model, images) <= as_pruned + 1e-9
    assert all(layer.error <= layer.error_before * (1 + 1e-6) for layer in done.layers)


class Mapped(nn.Module):
    """Two convolutions inside ``torch.vmap``, one inside ``torch.func.jvp``, and two as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.conv2 = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.conv3, self.conv4 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.vmap(lambda image: torch.cat([self.conv1(self.conv0(image[None]))[0]]))(x).relu()
        x = self.conv2(x).relu()
        y, slope = torch.func.jvp(self.conv3, (x,), (torch.ones_like(x),))
        return self.conv4((y + slope).relu())


def test_layers_inside_transformations_of_torch_are_left_as_they_were() -> None:
    torch.manual_seed(0)
    model, images = Mapped().eval(), torch.rand(16, 3, 10, 10)
    result = fec_fast.prune(model, images[:1], ratio=0.5, recover=None)
    done = fec_fast.compensate(model, result.model, result.plan, images, progress=False)
    assert {"conv2", "conv4"} >= {layer.layer for layer in done.layers} > set()
    assert list(done.left) == ["conv1"]  # conv0 lost outputs alone
