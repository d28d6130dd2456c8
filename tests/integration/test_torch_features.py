"""Models that use more of torch: TorchScript, compiled and exported parts, inference mode, transforms, own operators.

Each is pruned right, kept whole, or refused by name.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fec_fast

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*TorchScript:UserWarning")


class Middle(nn.Module):
    """The part that is scripted, compiled, or called in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.norm(self.inner(x)).relu())


class Network(nn.Module):
    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 8, 3, padding=1), Middle() if middle is None else middle
        self.last, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.stem(x)).relu()).relu().mean((2, 3)))


class Between(nn.Module):
    """Calls a function of the channels, and a convolution."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.function(x))


class Around(nn.Module):
    """Calls an ordinary part through a function of the part and its input."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.part = call, Middle()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.part, x)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Accumulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.cumsum(1)


@torch.library.custom_op("fec_fast_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


@torch.library.custom_op("fec_fast_tests::reversed_channels", mutates_args=())
def reversed_channels(x: Tensor) -> Tensor:
    return x.flip(1).contiguous()


def scripted_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def scripted_halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([a * b, b], 1)


def scripted_cut(x: Tensor) -> Tensor:
    return torch.cat([x[:, :4], x[:, 4:] * 2], 1)


def scripted_condition(x: Tensor) -> Tensor:
    if x.shape[1] == 8:
        return x * 2
    return x


def inference(part: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return part(x)


def over_images(part: nn.Module, x: Tensor) -> Tensor:
    return torch.vmap(lambda image: part(image[None])[0])(x)


def functional(part: nn.Module, x: Tensor) -> Tensor:
    return torch.func.functional_call(part, dict(part.named_parameters()) | dict(part.named_buffers()), (x,))


def tangent(part: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jvp(part, (x,), (torch.ones_like(x),))[0]


def transformed_gradient(part: nn.Module, x: Tensor) -> Tensor:
    return torch.func.grad(lambda given: part(given).sum())(x)


def gradient(part: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        given = x.detach().requires_grad_()
        return torch.autograd.grad(part(given).sum(), given)[0]


ALL, KEPT, INNER = {"stem": 4, "inner": 6}, {"stem": 8, "inner": 12}, {"stem": 4}
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "scripted": (lambda: Network(torch.jit.script(Middle())), ALL),
    "traced": (lambda: Network(torch.jit.trace(Middle().eval(), torch.randn(2, 8, 8, 8))), ALL),
    "traced by fx": (lambda: Network(torch.fx.symbolic_trace(Middle())), ALL),
    "compiled": (lambda: torch.compile(Network(), backend="eager"), ALL),
    "compiled part": (lambda: Network(torch.compile(Middle(), backend="eager")), ALL),
    "scripted function": (lambda: Network(Between(torch.jit.script(scripted_swish))), INNER),
    "scripted halves": (lambda: Network(Between(torch.jit.script(scripted_halves))), INNER),
    "scripted cut": (lambda: Network(Between(torch.jit.script(scripted_cut))), {"stem": 8}),
    "scripted condition": (lambda: Network(Between(torch.jit.script(scripted_condition))), {"stem": 8}),
    "compiled function": (lambda: Network(Between(torch.compile(scripted_swish, backend="eager"))), INNER),
    "compiled cut": (lambda: Network(Between(torch.compile(scripted_cut, backend="eager"))), {"stem": 8}),
    "operator of a library": (lambda: Network(Between(twice)), INNER),
    "operator that mixes": (lambda: Network(Between(reversed_channels)), {"stem": 8}),
    "autograd function": (lambda: Network(Between(Swish.apply)), INNER),
    "autograd function that mixes": (lambda: Network(Between(Accumulated.apply)), {"stem": 8}),
    "inference mode": (lambda: Network(Around(inference)), ALL),
    "vmap": (lambda: Network(Around(over_images)), {"stem": 4, "inner": 12}),
    "functional_call": (lambda: Network(Around(functional)), ALL),
    "checkpoint": (lambda: Network(Around(lambda part, x: checkpoint(part, x, use_reentrant=False))), ALL),
    "jvp": (lambda: Network(Around(tangent)), KEPT),
    "grad of torch.func": (lambda: Network(Around(transformed_gradient)), KEPT),
    "grad of autograd": (lambda: Network(Around(gradient)), KEPT),
    "channels last": (lambda: Network().to(memory_format=torch.channels_last), ALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_pruned_right_or_kept(name: str, tmp_path: Path) -> None:
    build, widths = MODELS[name]
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    result = fec_fast.prune(model, images, ratio=0.5, recover=None)
    found = {
        part: tensor.shape[0]
        for key, tensor in result.model.named_parameters()
        if key.endswith("weight") and (part := key.split(".")[-2]) in widths
    }
    assert found == widths
    assert result.difference is not None and result.difference < 1e-9
    assert not [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    if widths["stem"] == 8:  # the reason names a line of the model's code, or the operator in it
        assert "test_torch_features.py" in result.plan.pinned["stem"] or "aten" in result.plan.pinned["stem"]
    loaded = fec_fast.load(build().eval(), fec_fast.save(result, tmp_path / "saved"))
    with torch.no_grad():
        assert torch.allclose(loaded(images), result.model(images), atol=1e-6)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_volumes_keep_their_memory_format(memory_format: torch.memory_format) -> None:
    model = nn.Sequential(
        *(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1)),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    result = fec_fast.prune(
        model.to(memory_format=memory_format).eval(), torch.randn(2, 3, 6, 6, 6), ratio=0.5, recover=None
    )
    for layer in (result.model[0], result.model[3]):
        assert layer.out_channels == 4 and layer.weight.is_contiguous(memory_format=memory_format)


def test_a_call_in_inference_mode_gives_a_network_that_can_be_trained() -> None:
    model, images = Network().eval(), torch.randn(8, 3, 8, 8)
    with torch.inference_mode():
        assert fec_fast.couplings(model, images).sets
        result = fec_fast.prune(model, images, ratio=0.5, recover=None)
        fec_fast.verify_equivalence(model, result.model, result.plan, images)
        fec_fast.compensate(model, result.model, result.plan, [images])
        with pytest.raises(fec_fast.ArgumentError, match="outside of it"):
            fec_fast.finetune(result.model, [(images, torch.zeros(8, dtype=torch.int64))], epochs=1)
        inside = copy.deepcopy(model)
    expected = fec_fast.prune(model, images, ratio=0.5, recover=None)
    assert result.plan == expected.plan
    result.model(images).sum().backward()
    assert result.model.stem.weight.grad is not None
    with pytest.raises(fec_fast.WeightError, match=r"'stem': its weight was made inside torch.inference_mode"):
        fec_fast.apply_plan(inside, result.plan)
    fec_fast.apply_plan(copy.deepcopy(inside), result.plan)


def test_example_inputs_of_inference_mode() -> None:
    with torch.inference_mode():
        images = torch.randn(2, 3, 8, 8)
    assert fec_fast.prune(Network().eval(), images, ratio=0.5, recover=None).model.stem.out_channels == 4


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted whole": (lambda: torch.jit.script(Network()), "script the result"),
    "frozen part": (
        lambda: Network(torch.jit.freeze(torch.jit.script(Middle().eval()))),
        "'middle' is a frozen .* freeze the result",
    ),
    "exported part": (
        lambda: Network(torch.export.export(Middle().eval(), (torch.randn(2, 8, 8, 8),)).module()),
        "'middle', a GraphModule, .* export it again",
    ),
    "exported whole": (
        lambda: torch.export.export(Network().eval(), (torch.randn(2, 3, 8, 8),)).module(),
        "the model, a GraphModule, .* export it again",
    ),
    "weights of inference mode": (
        lambda: torch.inference_mode()(Network)(),
        "'stem': its weight was made inside torch.inference_mode",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str) -> None:
    build, message = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    for function in (fec_fast.couplings, fec_fast.prune):
        with pytest.raises((fec_fast.ArgumentError, fec_fast.WeightError), match=message):
            function(model, torch.randn(2, 3, 8, 8))
