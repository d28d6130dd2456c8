"""Removal errors: those of least squares on the images, or of channels that are left out without compensation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast import Budget
from fec_fast.pruning import context, unit_errors
from fec_fast.pruning.allocation import allocate
from fec_fast.pruning.allocation.policies import AblationPolicy, ReconstructionPolicy
from fec_fast.pruning.context import PruningContext, build_context
from tests.helpers.networks import Blocks, SharedWeight

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def measured(model: nn.Module, images: Any = IMAGES, criterion: str = "reconstruction") -> PruningContext:
    return build_context(model, IMAGE, criterion, None, "both", (), images)


def scores(model: nn.Module, images: Any = IMAGES, criterion: str = "reconstruction") -> list[list[float]]:
    return [values.tolist() for values in measured(model, images, criterion).scores]


def chain(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).eval()


@pytest.fixture
def no_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors on the images themselves, not those to be expected on others."""
    monkeypatch.setattr(unit_errors, "_RIDGE", 1e-12)
    plain = unit_errors.gather_input_covariances

    def without_shrinkage(*arguments: Any) -> Any:
        found = plain(*arguments)
        for layer in found.values():
            layer.shrinkage.zero_()
        return found

    monkeypatch.setattr(unit_errors, "gather_input_covariances", without_shrinkage)


@pytest.mark.usefixtures("no_ridge")
@pytest.mark.parametrize("images", [IMAGES, "data-free"])
def test_copies_and_combinations_of_channels_cost_nothing(images: Any) -> None:
    model = chain()
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            tensor[4] = tensor[1]  # a copy
        model[1].weight[2] = 0  # constant
    first = scores(model, images)[0]
    free = sorted(range(6), key=first.__getitem__)[:2]
    assert 2 in free and set(free) - {2} <= {1, 4}
    assert max(first[unit] for unit in free) < 1e-6
    assert min(value for unit, value in enumerate(first) if unit not in free) > 1e-3


@pytest.mark.usefixtures("no_ridge")
def test_errors_are_those_of_least_squares_on_the_images() -> None:
    model = chain()
    errors = measured(model).scores[0].tolist()
    order = sorted(range(6), key=errors.__getitem__)
    with torch.no_grad():
        hidden = model[:3](IMAGES)
        target = model[3](hidden).permute(0, 2, 3, 1).flatten(0, 2).double()
    rows = nn.functional.unfold(hidden, 3).unflatten(1, (6, 9)).permute(0, 3, 1, 2).flatten(0, 1).double()
    energy = (target - target.mean(0)).square().sum()
    for removed in range(1, 6):
        kept = rows[:, order[removed:]].flatten(1)
        kept = torch.cat([kept, torch.ones(len(kept), 1, dtype=torch.float64)], 1)
        residual = target - kept @ torch.linalg.lstsq(kept, target).solution
        expected = float(residual.square().sum() / energy)
        assert errors[order[removed - 1]] == pytest.approx(expected, rel=1e-3)


def test_ablation_errors_are_the_changes_of_the_output_on_the_images() -> None:
    model = chain()
    errors = measured(model, criterion="ablation").scores[0].tolist()
    order = sorted(range(6), key=errors.__getitem__)
    with torch.no_grad():
        hidden = model[:3](IMAGES).double()
        reader = copy.deepcopy(model[3]).double()
        target = reader(hidden)
        energy = (target - target.mean((0, 2, 3), keepdim=True)).square().sum()
        highest = 0.0
        for removed in range(1, 7):
            masked = hidden.clone()
            masked[:, order[:removed]] = 0
            change = target - reader(masked)
            change -= change.mean((0, 2, 3), keepdim=True)
            highest = max(highest, float(change.square().sum() / energy))
            assert errors[order[removed - 1]] == pytest.approx(highest, rel=1e-3)
    assert highest == pytest.approx(1)


def test_ablation_sees_what_batch_norm_and_readers_make_of_a_channel() -> None:
    model = chain()
    with torch.no_grad():
        model[1].weight[2] = 0  # constant, whatever its filter
        model[3].weight[:, 4] = 0  # nobody reads it
    for calibration in (IMAGES, "data-free"):
        first = scores(model, calibration, "ablation")[0]
        free = sorted(range(6), key=first.__getitem__)[:2]
        assert set(free) == {2, 4} and max(first[unit] for unit in free) < 1e-6
        assert min(value for unit, value in enumerate(first) if unit not in free) > 1e-3


@settings(max_examples=10)
@given(
    width=st.integers(1, 5),
    branch=st.integers(1, 4),
    group=st.integers(1, 3),
    groups=st.integers(1, 3),
    extra=st.integers(0, 2),
    limit=st.sampled_from([2, 20, 2048]),
)
def test_the_last_error_of_a_set_is_that_of_all_who_read_only_it(width, branch, group, groups, extra, limit) -> None:
    torch.manual_seed(0)
    model = Blocks(width, branch, group, groups, extra).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_errors, "_MOST_COLUMNS", limit)
        found = measured(model)
    for coupled, values in zip(found.coupling.sets, found.scores, strict=True):
        assert bool((values > 0).all())
        total = float(values.max())
        if coupled.layers == ("inner",):  # read by "outer" alone, which reads nothing else
            assert total == pytest.approx(1)
        if coupled.layers == ("grouped", "depthwise"):  # passed on to "hidden"
            assert total == pytest.approx(1)
        if "stem" in coupled.layers:  # inner, one, side, two (another set), join (partly)
            assert total <= 5 * 5 * (1 + 1e-6)  # five layers, whose errors have one cause


def test_a_depthwise_layer_passes_channels_on() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, groups=5, bias=False), nn.Conv2d(5, 2, 1))
    found = measured(plain)
    assert [coupled.layers for coupled in found.coupling.sets] == [("0", "1")]
    assert float(found.scores[0].max()) == pytest.approx(1)  # the error of layer 2 alone


def test_layers_that_are_not_seen_are_reported() -> None:
    class Hidden(nn.Module):
        """The second layer is called under a mode that hides it, like a layer inside a compiled function."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return self.two(self.one(x))

    model = Hidden()
    result = fec_fast.prune(model, IMAGE, criterion="reconstruction", calibration=IMAGES, recover=None)
    assert "the inputs of two were not seen: taken to be uncorrelated" in "; ".join(result.plan.notes)
    norms = model.two.weight.detach().square().sum((0, 2, 3))
    assert result.plan.keep["one.weight"]["0"] == norms.argsort()[2:].sort().values.tolist()
    by_policy = fec_fast.prune(
        model,
        IMAGE,
        criterion="l1",
        budget=Budget(params=0.2),
        ratios="reconstruction",
        calibration=IMAGES,
        recover=None,
    )
    assert any("were not seen" in note for note in by_policy.plan.notes)


def test_without_images_nothing_is_known_in_front_of_a_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    before = copy.deepcopy(model.state_dict())
    result = fec_fast.prune(model.eval(), IMAGE, criterion="reconstruction", calibration="data-free", recover=None)
    assert "the inputs of 2 were not seen: taken to be uncorrelated" in "; ".join(result.plan.notes)
    norms = model[2].weight.detach().square().sum((0, 2, 3))
    assert result.plan.keep["0.weight"]["0"] == norms.argsort()[3:].sort().values.tolist()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_noise_does_not_take_the_place_of_labels() -> None:
    for options in ({"criterion": "taylor"}, {"budget": Budget(params=0.5), "ratios": "sensitivity"}):
        with pytest.raises(fec_fast.ArgumentError, match="calibration='data-free'; give a loader of images and labels"):
            fec_fast.prune(chain(), IMAGE, calibration="data-free", **options, recover=None)


@pytest.mark.parametrize("budget", [Budget(params=0.4), Budget(macs=0.4), Budget(memory=0.1)])
@pytest.mark.parametrize("ratios", ["reconstruction", "ablation"])
@pytest.mark.parametrize("criterion", ["reconstruction", "ablation", "l1"])
def test_budgets_are_met(criterion: str, ratios: str, budget: Budget) -> None:
    torch.manual_seed(0)
    model = SharedWeight().eval()
    result = fec_fast.prune(
        model,
        IMAGE,
        criterion=criterion,
        budget=budget,
        ratios=ratios,
        calibration=[IMAGES[:40], IMAGES[40:]],
        recover=None,
    )
    assert f"budget {budget}" in result.plan.notes[0] and ratios in "; ".join(result.plan.notes)


def test_the_order_of_another_criterion_is_kept() -> None:
    model = chain()
    by_l1 = fec_fast.prune(model, IMAGE, criterion="l1", ratio=0.0, recover=None).plan.sets[0]["scores"]
    plan = fec_fast.prune(
        model,
        IMAGE,
        criterion="l1",
        budget=Budget(params=0.4),
        ratios="reconstruction",
        calibration=IMAGES,
        recover=None,
    ).plan
    assert plan.sets[0]["scores"] == by_l1 and plan.criterion == "l1"
    both = fec_fast.prune(
        model,
        IMAGE,
        criterion="reconstruction",
        budget=Budget(params=0.4),
        ratios="reconstruction",
        calibration=IMAGES,
        recover=None,
    ).plan
    named = fec_fast.prune(
        model,
        IMAGE,
        criterion="reconstruction",
        budget=Budget(params=0.4),
        ratios=ReconstructionPolicy(),
        calibration=IMAGES,
        recover=None,
    ).plan
    assert both.to_json() == named.to_json()


def test_the_two_policies_differ_and_have_objects() -> None:
    model = chain(16)
    options: dict[str, Any] = {"criterion": "l1", "budget": Budget(macs=0.5), "calibration": IMAGES}
    plans = [
        fec_fast.prune(model, IMAGE, ratios=ratios, **options, recover=None).plan
        for ratios in ("ablation", AblationPolicy(), "reconstruction", ReconstructionPolicy())
    ]
    assert plans[0].to_json() == plans[1].to_json() != plans[2].to_json() == plans[3].to_json()


def test_ablation_keeps_one_of_each_kind_once_much_is_lost() -> None:
    """Four strong channels say the same, three weaker ones something each, to other outputs: two are left."""
    generator = torch.Generator().manual_seed(0)
    first, second = nn.Conv2d(1, 7, 3, bias=False), nn.Conv2d(7, 40, 1, bias=False)
    with torch.no_grad():
        kinds = nn.functional.normalize(torch.randn(4, 9, generator=generator)).view(4, 1, 3, 3)
        first.weight.copy_(torch.cat([kinds[:1].expand(4, 1, 3, 3), 0.7 * kinds[1:]]))
        second.weight.copy_(torch.linalg.qr(torch.randn(40, 7, generator=generator)).Q[:, :, None, None])
    images = torch.randn(256, 1, 8, 8, generator=generator)
    pruned = fec_fast.prune(
        nn.Sequential(first, second),
        images[:1],
        remove={"0": 5 / 7},
        criterion="ablation",
        calibration=images,
        recover=None,
    ).model
    # By the error that nothing makes up for alone, two of the strong ones would be left.
    assert sorted(bool((weight == kinds[0]).all()) for weight in pruned[0].weight) == [False, True]


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x).relu()).relu()
        return self.three(y.reshape(len(x), 8, 4, 4))


@pytest.mark.parametrize("criterion", ["reconstruction", "l1"])
def test_images_are_run_once_when_it_is_planned_again(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = unit_errors.removal_errors

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return plain(*arguments, **options)

    for module in (context, allocate):
        monkeypatch.setattr(module, "removal_errors", counted)
    result = fec_fast.prune(
        HardCoded(),
        IMAGE,
        criterion=criterion,
        budget=Budget(params=0.5),
        ratios="reconstruction",
        calibration=iter([IMAGES]),
        recover=None,
    )
    assert "model's code" in result.plan.pinned["two"]  # planned twice
    assert len(calls) == 1


def test_labels_are_ignored_and_the_order_of_images_does_not_matter() -> None:
    model = chain()
    whole = torch.tensor(scores(model)[0])
    labelled = [(IMAGES[:20], torch.zeros(20)), (IMAGES[20:], torch.zeros(44))]
    assert torch.allclose(torch.tensor(scores(model, labelled)[0]), whole, rtol=1e-3)
    assert torch.allclose(torch.tensor(scores(model, IMAGES.flip(0))[0]), whole, rtol=1e-3)


def test_images_that_do_not_fit_are_named_as_such() -> None:
    for options in ({"recover": IMAGES[:, :1]}, {"criterion": "ablation", "calibration": IMAGES[:, :1]}):
        with pytest.raises(fec_fast.InputError, match=r"cannot be run on the images \(float32 \[\d+, 1, 8, 8\]"):
            fec_fast.prune(chain(), IMAGE, ratio=0.5, **{"recover": None, **options})


def test_a_plan_without_an_amount_says_how_much_was_removed() -> None:
    note = "no amount was given: half of every coupled set was removed"
    assert note in fec_fast.prune(chain(), IMAGE, recover=None).plan.notes
    assert note not in fec_fast.prune(chain(), IMAGE, ratio=0.5, recover=None).plan.notes
    with pytest.raises(fec_fast.ArgumentError, match="got a PruneResult; give its .model"):
        fec_fast.prune(fec_fast.prune(chain(), IMAGE, recover=None), IMAGE, recover=None)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_bit_for_bit(training: bool) -> None:
    model = nn.Sequential(*chain(), nn.Dropout(0.5)).train(training)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fec_fast.prune(model, IMAGE, criterion="reconstruction", calibration=IMAGES, recover=None)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training == training for module in model.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("calibration", "kind", "words"),
    [
        ([], fec_fast.InputError, "no images"),
        (
            lambda model: 1.0,
            fec_fast.ArgumentError,
            "needs images: calibration= is a function; give a loader or a tensor",
        ),
        (torch.full((2, 3, 8, 8), torch.nan), fec_fast.InputError, "NaN"),
        (torch.zeros(2, 4, 8, 8), fec_fast.InputError, "cannot be run"),
        (None, fec_fast.RatioError, "criterion='reconstruction' needs calibration="),
        ("images", fec_fast.ArgumentError, "calibration='images'; give a loader or a tensor .* or 'data-free'"),
    ],
)
def test_bad_calibration_is_refused(calibration: Any, kind: type, words: str) -> None:
    model = chain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=words):
        fec_fast.prune(model, IMAGE, criterion="reconstruction", calibration=calibration, recover=None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_policy_without_images_is_refused() -> None:
    for name, policies in (
        ("reconstruction", ("reconstruction", ReconstructionPolicy())),
        ("ablation", (AblationPolicy(),)),  # by its name alone it is measured on noise
    ):
        for ratios in policies:
            with pytest.raises(fec_fast.RatioError, match=f"ratios='{name}' needs calibration=, a loader or a tensor"):
                fec_fast.prune(chain(), IMAGE, budget=Budget(params=0.5), ratios=ratios, recover=None)
    with pytest.raises(fec_fast.RatioError, match="nothing else does: leave it out"):
        fec_fast.prune(chain(), IMAGE, ratio=0.5, calibration=IMAGES, recover=None)


def test_the_images_of_the_recovery_choose_too() -> None:
    model = chain(16)

    def once() -> Any:
        yield IMAGES[:40], torch.zeros(40)
        yield IMAGES[40:], torch.zeros(24)

    options: dict[str, Any] = {"budget": Budget(params=0.5)}
    kept = []
    for ratios in ("reconstruction", "entropy", ReconstructionPolicy()):
        by_images = fec_fast.prune(
            model, IMAGE, criterion="reconstruction", ratios=ratios, calibration=IMAGES, **options, recover=None
        )
        kept.append(by_images.plan.keep)
        assert fec_fast.prune(model, IMAGE, recover=once(), ratios=ratios, **options).plan.keep == by_images.plan.keep
    assert kept[0] == kept[2] != kept[1]
    assert fec_fast.prune(model, IMAGE, recover=once(), **options).plan.keep == kept[0]  # by default, with images
    by_norm = fec_fast.prune(model, IMAGE, criterion="l1", ratios="entropy", **options, recover=None).plan.keep
    assert fec_fast.prune(model, IMAGE, recover=once(), criterion="l1", **options).plan.keep == by_norm
    options["budget"] = Budget(macs=0.5)
    result = fec_fast.prune(model, IMAGE, recover="data-free", **options)
    assert result.recovery is not None and result.recovery.method == "data-free"
    named: dict[str, Any] = {"criterion": "reconstruction", "calibration": "data-free", **options}
    by_noise, by_entropy = (
        fec_fast.prune(model, IMAGE, ratios=ratios, **named, recover=None).plan.keep
        for ratios in ("reconstruction", "entropy")
    )
    assert result.plan.keep == by_noise != by_entropy


@pytest.mark.parametrize(
    ("options", "criterion"),
    [
        ({}, "fec_l1"),
        ({"recover": IMAGES}, "reconstruction"),
        ({"recover": [IMAGES]}, "reconstruction"),
        ({"recover": "data-free"}, "reconstruction"),
        ({"recover": IMAGES, "formula": fec_fast.Formula()}, "fec_l1"),
        ({"recover": IMAGES, "criterion": "l1"}, "l1"),
        ({"recover": IMAGES, "budget": Budget(params=0.3), "ratios": "sensitivity", "calibration": len}, "fec_l1"),
        ({"budget": Budget(params=0.3)}, "ablation"),
        ({"budget": Budget(params=0.3), "calibration": IMAGES}, "ablation"),
        ({"budget": Budget(params=0.3), "ratios": "ablation"}, "ablation"),
        ({"budget": Budget(params=0.3), "ratios": "entropy"}, "fec_l1"),
        ({"budget": Budget(params=0.3), "sides": "producer"}, "fec_l1"),
        ({"budget": Budget(params=0.3), "formula": fec_fast.Formula()}, "fec_l1"),
        ({"budget": Budget(params=0.3), "criterion": "l1"}, "l1"),
    ],
)
def test_the_default_criterion(options: dict[str, Any], criterion: str) -> None:
    assert fec_fast.prune(chain(), IMAGE, **{"recover": None, **options}).plan.criterion == criterion


def test_a_budget_is_spread_by_the_default_criterion_on_noise() -> None:
    model, budget = chain(16), Budget(params=0.5)
    named = {"criterion": "ablation", "ratios": "ablation", "calibration": "data-free"}
    by_default = fec_fast.prune(model, IMAGE, budget=budget, recover=None).plan
    assert by_default.keep == fec_fast.prune(model, IMAGE, budget=budget, **named, recover=None).plan.keep
    assert by_default.keep != fec_fast.prune(model, IMAGE, budget=budget, criterion="fec_l1", recover=None).plan.keep


class _OneImage(nn.Module):
    """A network that takes a single image, so that noise cannot be run through it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise ValueError("one image at a time")
        return self.layers(x)


def test_where_noise_cannot_be_run_filters_decide_and_the_user_is_told() -> None:
    with pytest.warns(fec_fast.FecWarning, match="the criterion is 'fec_l1', because .* one image at a time"):
        plan = fec_fast.prune(_OneImage().eval(), IMAGE, budget=Budget(params=0.3), recover=None).plan
    assert plan.criterion == "fec_l1"
    assert any("cannot be measured on noise" in note for note in plan.notes)


def test_the_default_criterion_without_images_and_without_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    with pytest.warns(UserWarning, match="nothing was recovered"):
        result = fec_fast.prune(model, IMAGE, recover="data-free")
    assert result.plan.criterion == "fec_l1" and "recovered" not in repr(result)
