"""The proof finds faults where the outputs alone would not show them, and raises no false alarm."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fec_fast
from benchmarks.proof.faults import KINDS, faults, is_found, pruned_with_random_channels
from benchmarks.proof.networks import NETWORKS, built
from fec_fast.plan import proof_run

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_faults_are_found(name: str) -> None:
    model, images = built(name)
    result = pruned_with_random_channels(model, images, 0)
    assert fec_fast.verify_equivalence(model, result.model, result.plan, images) < 1e-12
    planted = itertools.islice(faults(model, result, random.Random(1)), 4 * len(KINDS))
    assert not [(kind, place) for kind, place, pruned, plan in planted if not is_found(model, pruned, plan, images)]


class Chance(nn.Module):
    """Random numbers in its forward method, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mean, self.spread = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(self.conv(x), 0.5, training=True)
        x = functional.dropout2d(x, 0.5, training=True) * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5)
        mean, spread = self.mean(x), self.spread(x).exp()
        return self.last(mean + spread * torch.randn_like(spread)) * random.uniform(1, 2)


class Divides(nn.Module):
    """A scale per channel that may not be zero, used in some way."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use
        self.conv, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.use(self.conv(x), self.scale))


@pytest.mark.parametrize(
    "build",
    [
        Chance,
        lambda: Divides(lambda x, scale: x / scale),
        lambda: Divides(lambda x, scale: x * scale.log()),
        lambda: Divides(lambda x, scale: x / (scale + x.square() * scale).sqrt()),
    ],
    ids=["chance", "division", "logarithm", "square root"],
)
def test_no_false_alarm(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(build().eval(), IMAGE, ratio=0.5, recover=None)
    assert result.after.parameters < result.before.parameters and result.proof is not None
    assert result.proof.difference < 1e-12 and len(result.proof.runs) == 3


def test_the_imaginary_part_of_an_output_is_compared() -> None:
    class Complex(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.complex(y[:, 0], y[:, 1])

    torch.manual_seed(0)
    model = Complex(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-12


@pytest.mark.parametrize("tolerance", [float("nan"), -1e-9, float("inf")])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    model, images = built("plain")
    result = pruned_with_random_channels(model, images, 0)
    with pytest.raises(fec_fast.ArgumentError, match="tolerance"):
        fec_fast.verify_equivalence(model, result.model, result.plan, images, tolerance=tolerance)


def test_another_way_through_the_code_is_found() -> None:
    """The outputs are zero in both networks; the number of calls depends on the width."""

    class ByWidth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.same, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1)
            self.wide = 0

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for _ in range(2 if x.shape[1] > self.wide else 1):
                x = self.same(x)
            return self.last(x) * 0.0

    original = ByWidth().eval()
    result = fec_fast.prune(original, IMAGE, ratio=0.5, recover=None)
    original.wide = result.model.wide = 8
    with pytest.raises(fec_fast.EquivalenceError, match="another way through the model's code: it does not call same"):
        fec_fast.verify_equivalence(original, result.model, result.plan, IMAGE)


def test_a_trained_network_is_no_pruned_one() -> None:
    model, images = built("plain")
    result = pruned_with_random_channels(model, images, 0)
    trained = copy.deepcopy(result.model)
    with torch.no_grad():
        trained.conv1.weight[0, 0, 0, 0] += 1e-7
    with pytest.raises(fec_fast.EquivalenceError, match=r"conv1\.weight .* before training or compensation"):
        fec_fast.verify_equivalence(model, trained, result.plan, images)


def test_the_proof_says_what_was_compared() -> None:
    model, images = built("training mode alone")
    proof = fec_fast.prune(model, images, ratio=0.5, recover=None).proof
    assert proof is not None and proof.runs == ("own weights", "drawn weights", "drawn weights in training mode")
    assert (proof.outputs, proof.layers, proof.not_reached, proof.not_read) == (("output",), 5, (), ())

    class NeverTrains(type(model)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            if self.training:
                raise ValueError("no targets")
            return [self.head(self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).mean((2, 3)))]

    model.__class__ = NeverTrains
    proof = fec_fast.prune(model, images, ratio=0.5, recover=None).proof
    assert proof is not None and proof.runs == ("own weights", "drawn weights") and proof.outputs == ("output[0]",)
    assert proof.notes == ("drawn weights in training mode were not compared: no targets",)
    assert "were not compared: no targets" in str(proof)


def test_scripted_and_compiled_submodules_are_pruned() -> None:
    for wrap in (torch.jit.script, lambda module: torch.compile(module, backend="eager")):
        torch.manual_seed(0)
        head = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), wrap(head)).eval()
        result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
        assert sorted(tuple(each.shape[:2]) for each in result.model.parameters() if each.dim() > 1) == [
            (2, 4),
            (4, 8),
            (8, 3),
        ]
        assert all(parameter.is_leaf for parameter in result.model.parameters())
    with pytest.raises(fec_fast.ArgumentError, match="scripted or traced"):
        fec_fast.prune(torch.jit.script(head), torch.randn(1, 16, 4, 4), recover=None)


class Amplifying(nn.Module):
    """In training mode a batch norm over two nearly equal values, whose difference rounding changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.norm = nn.Conv2d(3, 300, 3), nn.Linear(4800, 64), nn.BatchNorm1d(64, eps=1e-30)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = torch.cat([x[:1], x[:1] + 1e-12 * x[1:]])
        x = self.mix(self.conv(x).relu().flatten(1))
        return self.head(self.norm(x))


def test_what_rounding_alone_changes_is_no_difference_and_is_said() -> None:
    torch.manual_seed(0)
    model, images = Amplifying().eval(), torch.randn(2, 3, 6, 6)
    result = fec_fast.prune(model, images, ratio=0.5, recover=None)
    assert result.proof is not None and "drawn weights in training mode" in result.proof.runs
    assert any("rounding alone changes" in note and "norm" in note for note in result.proof.notes)
    with pytest.raises(fec_fast.EquivalenceError, match="training mode, more than 1e-09"):
        fec_fast.verify_equivalence(model, result.model, result.plan, images, tolerance=1e-9)
    for kind, place, faulty, plan in itertools.islice(faults(model, result, random.Random(0)), 40):
        assert is_found(model, faulty, plan, images), (kind, place)


def test_ctrl_c_just_after_a_recorder_has_left_the_modes_is_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = proof_run.without_dispatch_modes

    def interrupted() -> None:
        entered().__enter__()
        raise KeyboardInterrupt

    model, images = built("plain")
    result = fec_fast.prune(model, images, verify=False, recover=None)
    monkeypatch.setattr(proof_run, "without_dispatch_modes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fec_fast.verify_equivalence(model, result.model, result.plan, images)
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


class ScaledFilters(nn.Conv2d):
    """Divides each filter by its largest weight, which is 0 when it is masked."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
        return functional.conv2d(x, self.weight + (torch.round(self.weight / scale) * scale - self.weight).detach())


def test_nan_that_masking_alone_makes_is_not_blamed_on_the_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ScaledFilters(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    with pytest.raises(fec_fast.EquivalenceError, match="NaN in the masked original and not in the pruned") as caught:
        fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert "ignore=" in str(caught.value) and "verify=False" in str(caught.value)
    assert fec_fast.prune(model, IMAGE, ratio=0.5, recover=None, ignore=["0"]).proof is not None
    unproven = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None, verify=False)
    assert bool(unproven.model(IMAGE).isfinite().all())


class Routed(nn.Module):
    """Each image goes to the expert that its gate names; the example images all go to one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.gate, self.last, self.head = nn.Linear(16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)
        self.experts = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        chosen, y = self.gate(x.mean((2, 3))).argmax(1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if bool((chosen == number).any()):
                y[chosen == number] = expert(x[chosen == number])
        return self.head(functional.relu(self.last(y)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:not reached by the example inputs")
def test_an_expert_that_drawn_weights_reach_is_not_blamed_on_the_inputs() -> None:
    model, images = Routed().eval(), torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    result = fec_fast.prune(model, images, remove=0.5, recover=None)
    assert result.plan.sets and result.proof is not None
    narrowed = fec_fast.prune(model, images, remove=0.5, recover=None, verify=False)
    with pytest.raises(fec_fast.EquivalenceError, match="cannot be run with drawn weights.* do not reach"):
        fec_fast.verify_equivalence(model, narrowed.model, narrowed.plan, images)
