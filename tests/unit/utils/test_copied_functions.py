"""Functions that refer to a model, in its copies: forward methods put in place, hooks, wrappers, variables."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fec_fast
from fec_fast.utils.copying import copied_model
from fec_fast.utils.model_index import ModelIndex

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:64 calibration images are few")


class Network(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 12, 3), nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.second(functional.relu(self.norm(self.first(images)))))
        return self.head(hidden.mean((2, 3)))


class Halved:
    """A wrapper around a function, as accelerate's around ``forward``."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*args, **kwargs) / 2


def by_closure(model: nn.Module) -> None:
    old = model.forward
    model.forward = lambda images: old(images) / 2  # type: ignore[method-assign]


def by_default(model: nn.Module) -> None:
    model.forward = lambda images, old=model.forward: old(images) / 2  # type: ignore[method-assign]


def by_wrapper(model: nn.Module) -> None:
    halved = Halved(model.forward)

    @functools.wraps(model.forward)
    def forward(*args: Any) -> Tensor:
        return halved(*args)

    model.forward = forward  # type: ignore[method-assign]


def by_method(model: nn.Module) -> None:
    halved = Halved(type(model).forward)
    model.forward = types.MethodType(lambda self, images: halved(self, images), model)  # type: ignore[method-assign]


def by_partial(model: nn.Module) -> None:
    model.forward = functools.partial(lambda old, images: old(images) / 2, model.forward)  # type: ignore[method-assign]


def by_list(model: nn.Module) -> None:
    chain = [model.forward, lambda output: output / 2]
    model.forward = lambda images: chain[1](chain[0](images))  # type: ignore[method-assign]


def by_functions_in_a_list(model: nn.Module) -> None:
    old = model.forward
    model.chain = [lambda images: old(images), (lambda output: output / 2,)]  # type: ignore[assignment]
    by_self = lambda self, images: self.chain[1][0](self.chain[0](images))  # noqa: E731
    model.forward = types.MethodType(by_self, model)  # type: ignore[method-assign]


def by_a_function_in_a_wrapper(model: nn.Module) -> None:
    old = model.forward
    halved = Halved(types.MethodType(lambda self, images: old(images), model))
    halved.again = halved.__call__  # type: ignore[attr-defined]
    halved.table = {1: [lambda images: old(images)]}  # type: ignore[attr-defined]
    model.forward = halved  # type: ignore[method-assign]


WAYS = [
    by_closure,
    by_default,
    by_wrapper,
    by_method,
    by_partial,
    by_list,
    by_functions_in_a_list,
    by_a_function_in_a_wrapper,
]


@pytest.mark.parametrize("change", WAYS)
def test_a_replaced_forward_runs_the_layers_of_the_copy(change: Callable[[nn.Module], None]) -> None:
    model, plain = Network().eval(), Network().eval()
    change(model)
    options: dict[str, Any] = {"remove": 0.5, "recover": IMAGES}
    result, wanted = (fec_fast.prune(each, IMAGES[:2], **options) for each in (model, plain))
    assert result.proof is not None and result.proof.layers == 4 and not result.proof.not_reached
    torch.testing.assert_close(result.model(IMAGES), wanted.model(IMAGES) / 2)
    for parameter in result.model.parameters():
        nn.init.zeros_(parameter)
    assert not result.model(IMAGES).any() and model(IMAGES).all()


old_forward: Any = None


def test_a_forward_that_refers_to_the_model_by_a_global_variable_is_refused() -> None:
    global old_forward
    model = Network().eval()
    old_forward, before = model.forward, model(IMAGES)
    model.forward = lambda images: old_forward(images) / 2  # type: ignore[method-assign]
    with pytest.raises(fec_fast.ArgumentError, match="forward .* by the global variable 'old_forward'.* self.model"):
        fec_fast.prune(model, IMAGES[:2], remove=0.5)
    assert torch.equal(model(IMAGES), before / 2)


def test_a_global_variable_of_the_name_of_an_attribute_is_not_one_that_is_read() -> None:
    global old_forward
    model = Network().eval()
    old_forward = model.forward
    forward = types.MethodType(lambda self, images: Network.forward(self, images), model)
    model.forward = forward  # type: ignore[method-assign]
    model.old_forward = nn.Identity()
    assert fec_fast.prune(model, IMAGES[:2], remove=0.5, recover=None).proof


SCALES: dict[str, Any] = {"scale": 0.5}
TABLE = torch.linspace(0, 1, 8)


def test_a_global_container_and_a_constant_that_is_a_buffer_too_are_no_reasons_to_refuse() -> None:
    model = Network().eval()
    SCALES["model"] = model
    model.register_buffer("table", TABLE)
    forward = types.MethodType(lambda self, images: Network.forward(self, images + TABLE) * SCALES["scale"], model)
    model.forward = forward  # type: ignore[method-assign]
    assert fec_fast.prune(model, IMAGES[:2], remove=0.5, recover=None).proof


def test_a_partial_keeps_what_it_wraps() -> None:
    model = Network()
    model.forward = functools.update_wrapper(functools.partial(model.forward), Network.forward)  # type: ignore[method-assign]
    copied = copied_model(ModelIndex.of(model)).forward
    assert copied.__wrapped__ is Network.forward and copied.func.__self__ is not model  # type: ignore[attr-defined]


class Uncopyable:
    """Holds a tensor, and something that cannot be copied or is ended with it."""

    ended = 0

    def __init__(self) -> None:
        self.last = torch.zeros(1)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot be copied")

    def __del__(self) -> None:
        Uncopyable.ended += 1


def test_an_object_that_a_hook_writes_to_is_copied_only_where_that_is_harmless() -> None:
    keeper, model = Uncopyable(), Network().eval()
    model.first.register_forward_hook(lambda module, given, output: setattr(keeper, "last", output))
    fec_fast.prune(model, IMAGES[:2], remove=0.5, recover=IMAGES)
    assert not Uncopyable.ended and keeper.last.shape[1] in (4, 8)


class Shared:
    """An object that its copies are: it refers to the model all the same."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        return self

    def run(self, images: Tensor) -> Tensor:
        return self.layer(images)


def test_a_copy_that_runs_the_original_is_not_proven() -> None:
    model = Network().eval()
    model.shared = Shared(model.first)  # type: ignore[assignment]
    model.forward = types.MethodType(  # type: ignore[method-assign]
        lambda self, images: self.head(functional.relu(self.second(self.shared.run(images))).mean((2, 3))), model
    )
    with pytest.raises(fec_fast.ArgumentError, match=r"a copy of it reads first\.(weight|bias) of the model itself"):
        fec_fast.prune(model, IMAGES[:2], remove=0.5, recover=None)


class Skipping(nn.Module):
    """A sum of two layers; a hook hands the first one's channels on, which are kept whole then."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.third, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        kept: dict[str, Tensor] = {}
        last: Tensor | None = None
        nested: list[Any] = [types.SimpleNamespace(output=torch.zeros(()), all=[None])]

        def keep(module: nn.Module, given: Any, output: Tensor) -> None:
            nonlocal last
            kept["first"] = nested[0].output = nested[0].all[0] = last = output

        if way != "plain":
            self.first.register_forward_hook(keep)
        ways: dict[str, Callable[[], Any]] = {
            "dictionary": lambda: kept["first"],
            "variable": lambda: last,
            "object": lambda: nested[0].output,
            "list": lambda: nested[0].all[0],
        }
        self.handed_on = ways.get(way)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        third = self.third(functional.relu(self.norm(self.second(functional.relu(first)))))
        skip = first if self.handed_on is None else self.handed_on()
        return self.head(functional.relu(third + skip).mean((2, 3)))


@pytest.mark.parametrize("recover", [IMAGES.split(16), "data-free"])
@pytest.mark.parametrize("way", ["dictionary", "variable", "object", "list"])
def test_runs_that_take_turns_do_not_share_what_a_hook_keeps(way: str, recover: Any) -> None:
    options: dict[str, Any] = {"remove": {"second": 0.5}, "recover": recover}
    result, wanted = (fec_fast.prune(Skipping(each).eval(), IMAGES[:2], **options) for each in (way, "plain"))
    assert result.recovery is not None and "third" in {layer.layer for layer in result.recovery.layers}
    for name, tensor in wanted.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], tensor)


def test_a_hook_of_the_user_goes_on_writing_where_the_user_looks() -> None:
    seen: list[torch.Size] = []
    model = Network().eval()
    model.first.register_forward_hook(lambda module, given, output: seen.append(output.shape))
    result = fec_fast.prune(model, IMAGES[:2], remove=0.5)
    seen.clear()
    result.model(IMAGES)
    assert seen == [torch.Size([64, 4, 8, 8])]


def test_functions_that_refer_to_nothing_of_the_model_stay_the_same() -> None:
    model, outside = Network(), nn.Linear(2, 2)
    model.made = lambda: outside  # type: ignore[assignment]
    assert copied_model(ModelIndex.of(model)).made is model.made
    apart = copied_model(ModelIndex.of(model), keeps_apart=True).made
    assert apart is not model.made and apart() is outside  # type: ignore[operator]
