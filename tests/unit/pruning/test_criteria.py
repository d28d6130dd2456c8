"""The classical criteria: each against its published formula written out, and their effect on coupled sets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast
from fec_fast import Formula
from fec_fast.graph.trace import trace_model
from fec_fast.pruning import criteria, unit_scores
from fec_fast.scoring import ops, reference
from fec_fast.utils.model_index import ModelIndex

# Two filters of two channels with 1x2 taps, and a third that equals the first.
HAND = torch.tensor([[[[1.0, -2.0]], [[0.0, 2.0]]], [[[4.0, 2.0]], [[0.0, 2.0]]], [[[1.0, -2.0]], [[0.0, 2.0]]]])


@st.composite
def layers(draw):
    """Weights of small integers, whose sums and squares are exact in any order."""
    filters, channels, taps = (draw(st.integers(1, n)) for n in (6, 4, 3))
    size = filters * channels * taps
    numbers = draw(st.lists(st.integers(-8, 8), min_size=size, max_size=size))
    return torch.tensor(numbers, dtype=torch.float64).reshape(filters, channels, taps)


def rows(weight: torch.Tensor) -> list[list[float]]:
    return weight.flatten(1).tolist()


def li_2017(weight: torch.Tensor) -> list[float]:
    """Li et al., ICLR 2017, section 3.1: s_j = sum |F_ij|."""
    return [sum(abs(w) for w in row) for row in rows(weight)]


def he_2018(weight: torch.Tensor) -> list[float]:
    """He et al., IJCAI 2018, equation 2 with p = 2."""
    return [math.sqrt(sum(w * w for w in row)) for row in rows(weight)]


def he_2019(weight: torch.Tensor) -> list[float]:
    """He et al., CVPR 2019: g(x) = sum over the layer's filters j' of ||x - F_j'||_2; the smallest are removed."""
    return [sum(math.dist(one, other) for other in rows(weight)) for one in rows(weight)]


PUBLISHED = {"l1": li_2017, "l2": he_2018, "fpgm": he_2019}
BY_HAND = {"l1": [5, 8, 5], "l2": [3, math.sqrt(24), 3], "fpgm": [5, 10, 5]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_by_hand(name: str) -> None:
    assert getattr(criteria, name)(HAND).tolist() == pytest.approx(BY_HAND[name], rel=1e-6)
    assert PUBLISHED[name](HAND) == pytest.approx(BY_HAND[name], rel=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=60)
@given(weight=layers())
def test_published_formula(name: str, weight: torch.Tensor) -> None:
    found = getattr(criteria, name)(weight)
    assert found.shape == weight.shape[:1]
    assert found.tolist() == pytest.approx(PUBLISHED[name](weight), rel=1e-12)


@settings(max_examples=30)
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=9))
def test_bn_scale_is_the_absolute_gamma(gammas: list[float]) -> None:
    assert criteria.bn_scale(torch.tensor(gammas, dtype=torch.float64)).tolist() == [abs(gamma) for gamma in gammas]


def test_random_is_uniform_and_follows_the_global_generator() -> None:
    torch.manual_seed(0)
    found = criteria.random(torch.zeros(4000, 2))
    torch.manual_seed(0)
    assert torch.equal(found, criteria.random(torch.ones(4000, 3, 3)))
    assert float(found.min()) >= 0 and float(found.max()) < 1
    # The largest gap between the empirical and the uniform distribution; 0.031 is Kolmogorov's bound at 1 in 1,000.
    assert float((found.sort().values - torch.arange(4000) / 4000).abs().max()) < 0.031


def chain(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 1), nn.BatchNorm2d(2)]
    model = nn.Sequential(*layers).eval()
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight, -2, 2)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_prune_by_one_side_removes_what_the_paper_would(name: str) -> None:
    model = chain()
    removed = fec_fast.prune(model, torch.randn(1, 3, 8, 8), criterion=name, sides="producer", recover=None).plan.sets[
        0
    ]["removed"]
    values = PUBLISHED[name](model[0].weight.detach())
    assert removed == sorted(sorted(range(6), key=values.__getitem__)[:3])


def test_bn_scale_removes_the_least_gammas_and_signs_do_not_count() -> None:
    model = chain()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -0.1, 2.0, -3.0, 0.2, 1.0]))
    result = fec_fast.prune(model, torch.randn(1, 3, 8, 8), criterion="bn_scale", recover=None)
    assert result.plan.sets[0]["removed"] == [0, 1, 4]
    assert result.plan.criterion == "bn_scale"
    mean = 6.8 / 6
    assert result.plan.sets[0]["scores"] == pytest.approx([g / mean for g in (0.5, 0.1, 2.0, 3.0, 0.2, 1.0)])
    by_function = fec_fast.prune(model, torch.randn(1, 3, 8, 8), criterion=criteria.bn_scale, recover=None)
    assert by_function.plan.to_json() == result.plan.to_json()


def test_bn_scale_of_coupled_batch_norms_is_the_mean_of_their_relative_scales() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)
            self.norm, self.other = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.norm(self.a(x)) + self.other(self.b(x)))

    model = Sum().eval()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1.0, 3.0]))
        model.other.weight.copy_(torch.tensor([-60.0, 20.0]))
    scores = fec_fast.prune(model, torch.randn(1, 3, 4, 4), criterion="bn_scale", recover=None).plan.sets[0]["scores"]
    assert scores == pytest.approx([(0.5 + 1.5) / 2, (1.5 + 0.5) / 2])


def test_bn_scale_without_a_batch_norm_is_refused_by_name() -> None:
    model = nn.Sequential(*chain(), nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    image, before = torch.randn(1, 3, 8, 8), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(fec_fast.LayerError, match=r"follows 5 or .*ignore=\('5',\)"):
        fec_fast.prune(model, image, criterion="bn_scale", recover=None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert fec_fast.prune(model, image, criterion="bn_scale", ignore=("5",), recover=None).model[0].out_channels == 3
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)).eval()
    with pytest.raises(fec_fast.LayerError, match="follows 0 or"):
        fec_fast.prune(plain, image, criterion="bn_scale", recover=None)


@pytest.mark.parametrize("sides", ["both", "producer"])
@pytest.mark.parametrize("name", criteria.CLASSICAL_CRITERIA)
def test_the_function_and_its_name_are_the_same_criterion(name: str, sides: str) -> None:
    plans = []
    for criterion in (name, criteria.CLASSICAL_CRITERIA[name]):
        torch.manual_seed(1)
        model = chain()
        plans.append(
            fec_fast.prune(
                model, torch.randn(1, 3, 8, 8), criterion=criterion, sides=sides, recover=None
            ).plan.to_json()
        )
    assert plans[0] == plans[1]


@settings(max_examples=20)
@given(
    groups=st.sampled_from([1, 2]),
    wider=st.integers(1, 3),
    sides=st.sampled_from(["both", "producer"]),
    formula=st.sampled_from([Formula(), Formula("rms", axis="channels"), Formula("rms", axis="both")]),
    seed=st.integers(0, 99),
)
def test_fec_l1_is_the_entropy_times_the_l1_norm_side_by_side(groups, wider, sides, formula, seed) -> None:
    torch.manual_seed(seed)
    width = 4 * wider
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 6, 3, groups=groups)).eval()
    result = fec_fast.prune(model, torch.randn(1, 3, 8, 8), formula=formula, sides=sides, ratio=0.5, recover=None)
    assert result.plan.criterion == "fec_l1" == criteria.DEFAULT_CRITERION  # the default
    assert result.plan.formula is not None
    (record,) = (one for one in result.plan.sets if "0" in one["layers"])
    unit_of = torch.tensor(record["filters"]["0"])  # several channels each where the second layer is grouped
    expected, share = torch.ones(record["units"], dtype=torch.float64), 0.0
    for layer, axis in ((model[0], 0), (model[2], 1)):
        if axis == 1 and sides == "producer":
            continue
        filters = reference.filters_of(layer.weight, axis=axis, groups=layer.groups)
        units = torch.stack([filters[unit_of == unit] for unit in range(record["units"])])  # [units, filters, ...]
        entropy = torch.zeros_like(expected)
        for part in formula.parts():
            if part.axis == "filters":  # a unit's filters are one point
                entropy += reference.entropy(units.transpose(1, 2).flatten(2), part)
            else:
                entropy += (
                    reference.entropy(filters, part)
                    .reshape_as(unit_of)[unit_of.argsort(stable=True)]
                    .reshape(record["units"], -1)
                    .mean(1)
                )
        found = entropy * units.abs().sum((2, 3)).mean(1)
        share += reference.tolerance(torch.float32, len(filters)) / float(entropy.min())
        expected *= found / found.mean()
    assert record["scores"] == pytest.approx(
        expected.tolist(), rel=2 * share
    )  # of a score and of the mean it is divided by


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(fec_fast.ArgumentError, match="bn_scale"):
        fec_fast.prune(chain(), torch.randn(1, 3, 8, 8), criterion="bnscale", recover=None)


@pytest.mark.parametrize("away", [[], ["0.weight", "1.weight"], ["1.weight"]])
def test_weights_are_scored_where_they_are(away: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)).eval()
    traced = trace_model(ModelIndex.of(model), torch.randn(1, 3, 8, 8))
    weights = {name: weight.to("meta") if name in away else weight for name, weight in model.named_parameters()}
    asked = []

    def zeros(weights, formula, *, backend, **_):
        asked.append(backend)
        return [torch.zeros(len(weight), dtype=torch.float64) for weight in weights]

    monkeypatch.setattr(ops, "entropies", zeros)
    resolved = unit_scores.scoring_backend(traced, weights)
    assert resolved.name == "cpu"  # a model on several devices is scored on the CPU as a whole
    unit_scores.side_entropies(traced, weights, Formula(), (False,), resolved)
    assert asked == [resolved]
