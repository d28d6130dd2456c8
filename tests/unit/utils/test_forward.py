"""Contexts that leave a model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.utils.forward import call_model, evaluation_mode, restored_modes, undisturbed


def mixed() -> nn.Module:
    """A network in training mode with one module in evaluation mode."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)))
    model[2].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_modes_are_restored_module_by_module_after_an_error() -> None:
    first, second = mixed(), mixed().eval()
    before = modes(first), modes(second)
    with pytest.raises(RuntimeError, match="stop"), restored_modes(first, second):
        first.eval()
        second[1].train()
        raise RuntimeError("stop")
    assert (modes(first), modes(second)) == before


def test_evaluating() -> None:
    model = mixed()
    before = modes(model)
    with evaluation_mode(model):
        assert not any(modes(model)) and not torch.is_grad_enabled()
    assert modes(model) == before and torch.is_grad_enabled()


class Remembering(nn.Module):
    """Counts its calls and keeps what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen, self.first, self.sizes, self.built = 0, [1], None, {"a": 1}, False
        self.nothing: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(self.calls)
        self.nothing.append(self.calls)
        self.sizes["a"], self.sizes["b"] = 2, 3
        self.first, self.last = x, x
        if not self.built:
            self.built, self.layer = True, nn.Identity()
            self.register_buffer("scale", torch.ones(1))
            self.register_forward_hook(lambda module, given, output: output)
        return x


def test_undisturbed_restores_attributes() -> None:
    model = nn.Sequential(Remembering(), Remembering())
    seen = model[0].seen
    with pytest.raises(RuntimeError, match="stop"), undisturbed(model):
        model(torch.ones(2))
        raise RuntimeError("stop")
    for part in model:
        assert (part.calls, part.seen, part.first, part.sizes) == (0, [1], None, {"a": 1})
        assert (
            part.nothing == []
            and not part.built
            and not any(hasattr(part, name) for name in ("last", "layer", "scale"))
        )
        assert not part._forward_hooks
    assert model[0].seen is seen


@pytest.mark.parametrize("training", [False, True])
def test_undisturbed_restores_modes_buffers_and_random_state(training: bool) -> None:
    model = mixed()
    before, buffers = modes(model), [buffer.clone() for buffer in model.buffers()]
    state = torch.get_rng_state()
    with undisturbed(model, training=training):
        assert all(mode is training for mode in modes(model))
        model(torch.randn(4, 1, 8, 8))
    assert modes(model) == before
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), [2, 3, 8, 8], torch.Size((2, 3, 8, 8))], ids=["tuple", "list", "Size"])
def test_a_shape_in_the_place_of_example_inputs_is_answered_with_a_tensor(shape: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    for call in calls_with(model, shape):
        with pytest.raises(
            fec_fast.FecError, match=r": \(2, 3, 8, 8\) is a shape, not a tensor: give torch.randn\(2, 3, "
        ):
            call()


def test_an_array_in_the_place_of_example_inputs_is_answered_with_a_tensor() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    array = np.zeros((2, 3, 8, 8), np.float32)
    for inputs in (array, (array,), {"input": array}):
        for call in calls_with(model, inputs):
            with pytest.raises(fec_fast.FecError, match=r"a NumPy array is no tensor: give torch.from_numpy\(array\)"):
                call()


def calls_with(model: nn.Module, inputs: Any) -> list[Callable[[], Any]]:
    """Public functions that take example inputs."""
    result = fec_fast.prune(model, torch.randn(2, 3, 8, 8), remove=0.5, criterion="l1", recover=None)
    budget = fec_fast.Budget.remove(params=0.5)
    return [
        lambda: fec_fast.prune(model, inputs, remove=0.5, recover=None),
        lambda: fec_fast.couplings(model, inputs),
        lambda: fec_fast.verify_equivalence(model, result.model, result.plan, inputs),
        lambda: fec_fast.prune_iteratively(model, inputs, budget=budget, rounds=2, train=print, recover=None),
        lambda: fec_fast.measure_sensitivity(model, inputs, lambda network: 1.0),
        lambda: result.latency(model, inputs),
    ]


def test_a_model_that_takes_arrays_is_run_on_them() -> None:
    class Converting(nn.Module):
        def forward(self, array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array)

    assert call_model(Converting(), np.ones(2)).tolist() == [1.0, 1.0]
