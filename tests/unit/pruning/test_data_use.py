"""What ``prune`` does where ``recover`` is not given: whether it recovers, on what, and that it is never in the way."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast import Budget
from fec_fast.pruning import pruner
from fec_fast.pruning.allocation.policies import AblationPolicy, ReconstructionPolicy
from fec_fast.recovery import noise
from fec_fast.utils.errors import InputError
from helpers.comparison import assert_same_weights, same_weights
from helpers.everything import Restless, of_model, of_process
from helpers.networks import Blocks, draw_norms

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(128) % 4
HALF, THIRD = Budget.remove(params=0.5), Budget.remove(macs=0.3)
BARE = "recover=None for the bare cut"


@pytest.fixture(scope="module", autouse=True)
def little_noise() -> Iterator[None]:
    """One batch of noise instead of eight: how good the recovery is does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "MOST", noise.FEWEST)
        yield


def network(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3)
    norms = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    model = nn.Sequential(convolutions[0], norms[0], nn.ReLU(), convolutions[1], norms[1], nn.ReLU(), *head)
    draw_norms(model)
    return model.eval()


def without_norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()


class Picky(nn.Module):
    """A network that checks its input, so that noise cannot be run through it."""

    def __init__(self, error: type[Exception] = ValueError) -> None:
        super().__init__()
        self.layers, self.error = network(), error

    def forward(self, x: Tensor) -> Tensor:
        if bool((x < 0).any()):
            raise self.error("intensities are positive")
        return self.layers(x)


class Tokens(nn.Module):
    """A network of a sequence of numbers of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(20, 3 * 64), network()

    def forward(self, tokens: Tensor) -> Tensor:
        assert tokens.dtype == torch.int64 and tokens.ndim == 1, "numbers of words"
        return self.layers(self.words(tokens).reshape(-1, 3, 8, 8))


def told(*arguments: Any, **options: Any) -> tuple[fec_fast.PruneResult, list[str]]:
    """The result, and the warnings."""
    with warnings.catch_warnings(record=True) as given_:
        warnings.simplefilter("always")
        result = fec_fast.prune(*arguments, **options)
    return result, [str(one.message) for one in given_]


def assert_same(one: fec_fast.PruneResult, other: fec_fast.PruneResult) -> None:
    """The same plan but for the times in it, the same weights, the same layers recovered."""
    assert one.plan == other.plan
    assert_same_weights(one.model, other.model)
    assert (one.recovery is None) == (other.recovery is None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"budget": HALF},
        {"remove": {"0": 0.25}},
        {"budget": HALF, "criterion": "l1"},
        {"budget": HALF, "ratios": "uniform"},
        {"formula": fec_fast.Formula(compress="mean")},
        {"sides": "producer"},
    ],
)
def test_with_batch_norms_it_is_data_free(options: dict[str, Any]) -> None:
    result, messages = told(network(), IMAGE, **options)
    assert result.recovery is not None and result.recovery.method == "data-free" and result.recovery.layers
    assert_same(result, fec_fast.prune(network(), IMAGE, recover="data-free", **options))
    assert not messages
    bare = "criterion" in options or "formula" in options or "sides" in options
    assert result.plan.criterion == (options.get("criterion", "fec_l1") if bare else "reconstruction")
    cut = network()
    fec_fast.apply_plan(cut, result.plan)
    assert not same_weights(result.model, cut)


def test_the_images_of_the_calibration_are_those_of_the_recovery() -> None:
    labelled = [(IMAGES[:64], LABELS[:64]), (IMAGES[64:], LABELS[64:])]
    for images in (IMAGES, labelled):
        for options in ({"budget": HALF}, {"criterion": "reconstruction"}):
            result, messages = told(network(), IMAGE, calibration=images, **options)
            assert result.recovery is not None and result.recovery.images == 128 and not messages
            assert result.plan.criterion == "reconstruction"
            assert_same(result, fec_fast.prune(network(), IMAGE, calibration=images, recover=images, **options))
    # without batch norms too, and there the images are needed
    result, messages = told(without_norms(), IMAGE, calibration=IMAGES)
    assert result.recovery is not None and result.recovery.method == "least squares" and not messages


def test_a_calibration_that_is_read_once_leaves_nothing_to_recover_on() -> None:
    # Two readers, the criterion and the policy: what an iterator gives is kept for both.
    for options in ({}, {"criterion": "reconstruction", "ratios": "ablation"}):
        options = {"budget": HALF, "verify": False, **options}
        result, messages = told(network(), IMAGE, calibration=(batch for batch in IMAGES.split(32)), **options)
        assert result.recovery is not None and result.recovery.method == "data-free" and not messages
        assert_same(result, fec_fast.prune(network(), IMAGE, calibration=IMAGES, recover="data-free", **options))
    result, messages = told(without_norms(), IMAGE, calibration=iter([IMAGES]), criterion="reconstruction")
    assert result.recovery is None and len(messages) == 1 and "no batch norm says" in messages[0]


class _Stream:
    """A stream that looks like a list: its second reading has no images."""

    def __init__(self) -> None:
        self._batches = iter([(IMAGES, LABELS)])

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def test_labelled_images_choose_by_gradients_and_recover() -> None:
    loader = [(IMAGES[:64], LABELS[:64]), (IMAGES[64:], LABELS[64:])]
    options: dict[str, Any] = {"criterion": "taylor", "budget": HALF}
    bare = fec_fast.prune(network(), IMAGE, calibration=loader, recover=None, **options)
    result, messages = told(network(), IMAGE, calibration=loader, **options)
    assert result.plan.keep == bare.plan.keep and result.plan.criterion == "taylor" and not messages
    assert result.recovery is not None and result.recovery.images == 128
    assert_same(result, fec_fast.prune(network(), IMAGE, calibration=loader, recover=IMAGES, **options))
    # The labels come first: the recovery must not take the only reading.
    result, messages = told(network(), IMAGE, calibration=_Stream(), **options)
    assert_same(result, fec_fast.prune(network(), IMAGE, calibration=_Stream(), recover=None, **options))
    assert len(messages) == 1 and messages[0].startswith("not recovered") and messages[0].endswith(BARE)


def test_sensitivity_is_measured_by_a_function_and_the_recovery_is_data_free() -> None:
    def quality(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((model(IMAGES[:16]) - network()(IMAGES[:16])).square().mean())

    options: dict[str, Any] = {"budget": HALF, "ratios": "sensitivity", "calibration": quality}
    result, messages = told(network(), IMAGE, **options)
    assert result.plan.criterion == "fec_l1" and not messages
    assert result.recovery is not None and result.recovery.method == "data-free"
    assert result.plan.keep == fec_fast.prune(network(), IMAGE, recover=None, **options).plan.keep


@pytest.mark.parametrize(
    ("make", "image", "reason"),
    [
        (without_norms, IMAGE, "no batch norm says what the layers read: give images as recover=, or " + BARE),
        (lambda: network().half(), IMAGE.half(), "0.weight is in half precision: call .float() on the model"),
        (lambda: network().bfloat16(), IMAGE.bfloat16(), "0.weight is in half precision: call .float() on the model"),
    ],
)
def test_where_it_cannot_be_done_one_warning_says_why(
    make: Callable[[], nn.Module], image: Tensor, reason: str
) -> None:
    for options in ({}, {"budget": HALF}, {"criterion": "l1"}):
        result, messages = told(make(), image, **options)
        assert len(messages) == 1 and messages[0].startswith("not recovered, so most of the accuracy may be lost: ")
        assert reason in messages[0] and messages[0].endswith(BARE)
        bare, others = told(make(), image, recover=None, **options)
        assert_same(result, bare)
        assert result.recovery is None and not others


def test_few_images_of_the_calibration_choose_but_do_not_recover() -> None:
    result, messages = told(network(), IMAGE, criterion="reconstruction", calibration=IMAGES[:4])
    assert result.recovery is None and result.plan.criterion == "reconstruction"
    (message,) = messages
    assert "4 calibration image(s) are too few" in message and message.endswith(BARE)


@pytest.mark.parametrize(
    "options", [{}, {"budget": THIRD}, {"remove": {"layers.3": 0.25}}, {"budget": THIRD, "ratios": "uniform"}]
)
@pytest.mark.parametrize("make", [Picky, lambda: Picky(AssertionError), Tokens])
def test_where_noise_cannot_be_run_the_named_shares_are_kept(
    make: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    model = make().eval()
    example = torch.tensor([3]) if isinstance(model, Tokens) else IMAGE.abs()
    result, messages = told(model, example, **options)
    (message,) = messages
    assert message.startswith("the criterion is 'fec_l1', because 'reconstruction' cannot be measured on noise: ")
    assert message.endswith("most of the accuracy may be lost: give images as recover=, or " + BARE)
    bare = fec_fast.prune(model, example, recover=None, criterion="fec_l1", **options)
    assert result.recovery is None and result.plan.keep == bare.plan.keep
    assert_same_weights(result.model, bare.model)
    if "ratios" in options:
        assert any('by the policy "uniform"' in note for note in result.plan.notes)


def test_where_noise_cannot_be_run_a_named_criterion_is_kept() -> None:
    model = Picky().eval()
    result, messages = told(model, IMAGE.abs(), criterion="l1")
    (message,) = messages
    assert message.startswith("not recovered") and "intensities are positive" in message and message.endswith(BARE)
    assert_same(result, fec_fast.prune(model, IMAGE.abs(), criterion="l1", recover=None))


@pytest.mark.parametrize("ratios", ["reconstruction", "ablation", ReconstructionPolicy(), AblationPolicy()])
def test_a_policy_that_is_named_and_needs_noise_is_not_replaced(ratios: Any) -> None:
    assert fec_fast.prune(network(), IMAGE, budget=HALF, ratios=ratios).recovery is not None
    with pytest.raises(InputError, match="intensities are positive"):
        fec_fast.prune(Picky().eval(), IMAGE.abs(), budget=HALF, ratios=ratios)


def test_infinity_outside_of_weights_is_no_obstacle_and_in_statistics_no_error() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x) + self.mask[0]

    result, messages = told(Masked().eval(), IMAGE)
    assert result.recovery is not None and result.recovery.layers and not messages
    model = network()
    model[1].running_var[0] = math.inf  # the channel is constant, and the network runs
    result, messages = told(model, IMAGE)
    assert result.recovery is None and result.plan.criterion == "fec_l1"
    assert len(messages) == 1 and "1.running_var has NaN or infinite values" in messages[0]


def test_a_model_without_an_input_is_not_recovered() -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, *images: Any) -> Tensor:
            return self.layers(IMAGE)

    for inputs in ([], (), ([],)):
        result, messages = told(Drawn().eval(), inputs)
        assert result.recovery is None and len(messages) == 1 and "nothing is recovered" in messages[0]


@pytest.mark.parametrize("make", [network, without_norms])
def test_nothing_pruned_is_nothing_recovered(make: Callable[[], nn.Module]) -> None:
    for remove in (0.0, 0.01):
        result, messages = told(make(), IMAGE, remove=remove)
        assert result.recovery is None and not any("recovered" in message for message in messages)
        assert len(messages) == (remove > 0)  # nothing was pruned: the shares to remove are too small
        assert_same_weights(result.model, make())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("error", [None, InputError("in the end"), KeyboardInterrupt()])
def test_the_dense_model_is_left_as_it_was(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        assert error is not None
        raise error

    model, example = Restless().train(), IMAGE.clone()
    model.norm.eval()
    model.head.register_forward_hook(lambda module, inputs, output: None)
    before = of_model(model), of_process()
    if error is not None:
        monkeypatch.setattr(pruner, "compensate", fail)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            fec_fast.prune(model, example)
    else:
        assert (fec_fast.prune(model, example).recovery is None) == (error is not None)
    assert (of_model(model), of_process()) == before and torch.equal(example, IMAGE)


def test_another_word_is_refused_with_all_that_are_known() -> None:
    for word in ("bogus", "datafree", ""):
        with pytest.raises(fec_fast.ArgumentError, match=f"recover='{word}': give images .*, 'data-free' or 'auto'"):
            fec_fast.prune(network(), IMAGE, recover=word)
    assert inspect.signature(fec_fast.prune).parameters["recover"].default == "auto"


def test_rounds_recover_each_before_its_training() -> None:
    seen: list[dict[str, Tensor]] = []

    def train(model: nn.Module, number: int) -> None:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    options: dict[str, Any] = {"budget": HALF, "train": train, "rounds": 2}
    result = fec_fast.prune_iteratively(network(), IMAGE, **options)
    assert "recovered data-free, on noise: 2 layers changed" in result.plan.notes
    named = fec_fast.prune_iteratively(network(), IMAGE, recover="data-free", **options)
    assert same_weights(result.model, named.model) and len(seen) == 4
    assert all(torch.equal(seen[0][name], seen[2][name]) for name in seen[0])
    with pytest.warns(fec_fast.FecWarning, match="no batch norm says"):
        fec_fast.prune_iteratively(without_norms(), IMAGE, **options)


@settings(max_examples=12)
@given(
    width=st.integers(1, 12),
    branch=st.integers(1, 8),
    group=st.integers(1, 3),
    groups=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    options=st.sampled_from(
        [
            {"remove": 0.5},
            {"remove": 0.9},
            {"remove": 0.0},
            {"remove": 0.5, "round_to": 4},
            {"remove": {"fc": 0.0, "hidden": 0.5}},
            {"budget": Budget.remove(params=0.3)},
            {"budget": Budget.remove(macs=0.3), "ratios": "uniform", "criterion": "l1"},
            {"budget": Budget.remove(params=0.3), "ratios": "global", "sides": "producer"},
        ]
    ),
    size=st.sampled_from([1, 2, 5]),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e3, 1e18, 0.0]),
)
def test_it_never_stands_in_the_way(
    width: int, branch: int, group: int, groups: int, seed: int, options: dict[str, Any], size: int, scale: float
) -> None:
    """Where the bare cut succeeds the default does, and its weights are numbers: whatever the widths and the scales."""
    torch.manual_seed(seed)
    model, image = Blocks(width, branch, group, groups).eval(), torch.randn(1, 3, size, size)
    draw_norms(model)
    with torch.no_grad():
        model.inner.weight.mul_(scale)
        model.norm.weight[: width // 2] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fec_fast.FecWarning)
        try:
            bare = fec_fast.prune(model, image, recover=None, **options)
        except fec_fast.FecError:
            return
        result = fec_fast.prune(model, image, **options)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.model.state_dict().values())
    assert (result.recovery is None) or any(result.plan.keep.values())
    if "criterion" in options or "sides" in options:
        assert result.plan.keep == bare.plan.keep
