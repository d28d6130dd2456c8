"""Warnings where people get hurt: early and narrow layers, few images, costly re-estimation, accuracy at chance."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fec_fast
from fec_fast.pruning.allocation import sensitivity
from helpers.training import classifier, dot_images, dot_loader

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def chain(*widths: int) -> nn.Sequential:
    """Convolutions of these widths, which have names "0", "1", ...; the last is the network's output."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in zip((3, *widths), widths, strict=False))).eval()


def said(model: nn.Module, ratios: dict[str, float]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fec_fast.prune(model, IMAGE, ratios=ratios, verify=False, recover=None)
    assert all(issubclass(warning.category, fec_fast.FecWarning) for warning in caught)
    return [str(warning.message) for warning in caught if "early or narrow" in str(warning.message)]


@settings(max_examples=30)
@given(st.integers(8, 64), st.floats(0, 0.95), st.integers(8, 64), st.floats(0, 0.95))
def test_warns_if_and_only_if_less_than_a_quarter_is_left(
    first: int, first_ratio: float, later: int, later_ratio: float
) -> None:
    model = chain(first, later, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ratios = {"0": first_ratio, "1": later_ratio}
        result = fec_fast.prune(model, IMAGE, ratios=ratios, verify=False, recover=None)
    kept = {name: result.model.get_submodule(name).out_channels for name in ("0", "1")}
    hurt = [f"0 keeps {kept['0']} of {first} filters"] if kept["0"] < first / 4 else []
    hurt += [f"1 keeps {kept['1']} of {later} filters"] if later <= 32 and kept["1"] < later / 4 else []
    messages = said(model, ratios)
    assert len(messages) == bool(hurt) and all(text in messages[0] for text in hurt)


def test_many_layers_are_one_warning() -> None:
    model = chain(64, 16, 16, 16, 16, 4)
    (message,) = said(model, {str(layer): 0.9 for layer in range(5)})
    assert message.startswith("5 early or narrow layers lose most of the filters: 0 keeps 7 of 64 filters, ")
    assert "and 2 more" in message and "min_channels=" in message


def test_a_wide_layer_further_back_is_no_reason() -> None:
    model = chain(64, 64, 64, 4)
    assert said(model, {"1": 0.9}) == [] and len(said(model, {"0": 0.9})) == 1


def test_sensitivity_warns_where_re_estimation_costs_the_dense_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    model = classifier()
    fec_fast.finetune(model, dot_loader(), epochs=4, lr=0.05, progress=False)
    calibration, example = dot_loader(shuffle=False), dot_images().tensors[0][:1]
    options: dict[str, Any] = {"at": (0.5,), "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", fec_fast.FecWarning)
        fec_fast.measure_sensitivity(model.eval(), example, calibration, **options)

    def ruin(network: nn.Module, loader: object) -> None:
        nn.init.zeros_(network[1].weight)

    monkeypatch.setattr(sensitivity, "reestimate", ruin)
    with pytest.warns(fec_fast.FecWarning, match=r"costs the dense network 66.7 points of accuracy \(1.0000 before, "):
        fec_fast.measure_sensitivity(model, example, calibration, **options)


def test_finetune_warns_if_the_first_evaluation_is_at_chance() -> None:
    pytest.importorskip("accelerate")
    shuffled = [(images, labels.roll(1)) for images, labels in dot_loader(shuffle=False)]
    with pytest.warns(fec_fast.FecWarning, match="about that of guessing among 3 classes"):
        fec_fast.finetune(classifier(), dot_loader(), val_loader=shuffled, epochs=2, lr=0.05, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fec_fast.FecWarning)
        held_out = dot_loader(shuffle=False)
        fec_fast.finetune(classifier(), dot_loader(), val_loader=held_out, epochs=2, lr=0.05, progress=False)


def test_few_images_to_choose_channels_by_are_warned_of() -> None:
    options: dict[str, Any] = {"criterion": "reconstruction", "ratios": "uniform", "budget": fec_fast.Budget(macs=0.5)}
    images = torch.randn(128, 3, 8, 8)
    for calibration in (images, iter(images.split(32))):
        with warnings.catch_warnings():
            warnings.simplefilter("error", fec_fast.FecWarning)
            fec_fast.prune(chain(16, 16, 4), IMAGE, calibration=calibration, **options, recover=None)
    for recover in (None, images[:127]):  # chosen and recovered on the same images: one warning
        with pytest.warns(fec_fast.FecWarning) as warned:
            fec_fast.prune(chain(16, 16, 4), IMAGE, calibration=images[:127], recover=recover, **options)
        assert [str(each.message)[:31] for each in warned] == ["127 calibration images are few:"]
        assert recover is not None or warned[0].filename == __file__


def test_recovery_warns_of_few_images() -> None:
    model = chain(16, 16, 4)
    result = fec_fast.prune(model, IMAGE, recover=None)
    images = torch.randn(128, 3, 8, 8)
    with pytest.warns(fec_fast.FecWarning, match="127 calibration images are few"):
        fec_fast.compensate(model, result.model, result.plan, images[:127], progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fec_fast.FecWarning)
        fec_fast.compensate(model, result.model, result.plan, images, progress=False)


@pytest.mark.parametrize(
    ("widths", "round_to", "useless"),
    [
        ((12, 20, 4), 64, "the widest is 20"),  # none is as wide
        ((12, 20, 4), 16, None),  # 20 can become 16
        ((64, 20, 4), 64, None),  # 64 stays 64, so none of it is removed
        ((12, 20, 4), 1, None),
    ],
)
def test_a_rounding_that_decides_nothing_is_said(widths: tuple[int, ...], round_to: int, useless: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fec_fast.prune(chain(*widths), IMAGE, remove=0.5, round_to=round_to, recover=None)
        freely = fec_fast.prune(chain(*widths), IMAGE, remove=0.5, recover=None)
    told = [str(warning.message) for warning in caught if "has no effect" in str(warning.message)]
    assert len(told) == (useless is not None)
    if useless is not None:
        assert told[0].startswith(f"round_to={round_to} has no effect: ") and useless in told[0]
        assert result.plan == freely.plan
