"""Copies of models: what cannot be copied is shared, made anew, or named."""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.utils.copying import copied_model
from fec_fast.utils.model_index import ModelIndex

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Holds something besides its layers; if that is a lock, its forward takes it."""

    def __init__(self, held: Any = None) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)
        self.norm.held = held

    def forward(self, x: Tensor) -> Tensor:
        held = self.norm.held
        if hasattr(held, "acquire"):
            with held:
                return self.computed(x)
        return self.computed(x)

    def computed(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


class Stream:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle 'Stream' object")


class Closing:
    """Would close what its original needs, when a copy is destroyed."""

    file: Any = None

    def __init__(self) -> None:
        self.file = Path("/dev/null").open()  # noqa: SIM115 (it is held)

    def __del__(self) -> None:
        if self.file is not None:  # of a copy that failed
            self.file.close()


class Slots:
    __slots__ = ("lock", "values")

    def __init__(self) -> None:
        self.lock, self.values = threading.Lock(), [1, 2]


class Settings(dict[str, Any]):
    """A subclass of a container, with an attribute."""


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


def numbers() -> Any:
    yield from range(3)


SHARED: dict[str, Callable[[], Any]] = {
    "module": lambda: itertools,
    "logger": lambda: logging.Logger("own"),
    "generator": numbers,
    "file": lambda: Path("/dev/null").open("rb"),  # noqa: SIM115 (it is held)
    "stream": Stream,
    "pool": lambda: ThreadPoolExecutor(1),
    "queue": queue.SimpleQueue,
    "thread": lambda: threading.Thread(target=print),
    "destructor": Closing,
    "view of a dictionary": lambda: {"a": 1}.keys(),
}
ANEW: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "recursive lock": threading.RLock,
    "condition": threading.Condition,
    "semaphore": threading.Semaphore,
}
INSIDE: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "attribute": (lambda value: value, lambda held: held),
    "list": (lambda value: [1, value], lambda held: held[1]),
    "dictionary": (lambda value: {"a": {3: (value, 2)}}, lambda held: held["a"][3][0]),
    "object": (Holder, lambda held: held.value),
    "subclass": (lambda value: Settings(a=[value]), lambda held: held["a"][0]),
    "namespace": (lambda value: types.SimpleNamespace(v=value), lambda held: held.v),
}


def copy_of(model: nn.Module) -> Any:
    return copied_model(ModelIndex.of(model))


@pytest.mark.parametrize("place", INSIDE)
@pytest.mark.parametrize("kind", [*SHARED, *ANEW])
def test_what_cannot_be_copied_is_shared_and_locks_are_made_anew(kind: str, place: str) -> None:
    put, get = INSIDE[place]
    value = (SHARED | ANEW)[kind]()
    model = Network(put(value))
    copied = copy_of(model)
    found = get(copied.norm.held)
    assert type(found) is type(value)
    assert (found is value) == (kind in SHARED)
    if place != "attribute":
        assert copied.norm.held is not model.norm.held
    for one, other in zip(copied.parameters(), model.parameters(), strict=True):
        assert one is not other and torch.equal(one, other)


def test_objects_beside_are_copied_and_stay_the_same_object() -> None:
    shared = [threading.Lock(), [1, 2]]
    model = Network({"one": shared, "two": shared, "layer": None, "slots": Slots()})
    model.norm.held["layer"] = [model.first, model.first.weight]
    model.head.held = shared
    held = copy_of(model).norm.held
    assert held["one"] is held["two"] and held["one"] is not shared and held["one"][1] is not shared[1]
    slots, original = held["slots"], model.norm.held["slots"]
    assert slots is not original and slots.values == [1, 2] and slots.values is not original.values
    assert slots.lock is not original.lock

    copied = copy_of(model)
    assert copied.head.held is copied.norm.held["one"]
    assert copied.norm.held["layer"][0] is copied.first and copied.norm.held["layer"][1] is copied.first.weight


def test_an_object_that_refers_to_itself_and_a_lock_is_copied() -> None:
    held = Holder(threading.Lock())
    held.itself = [held]
    found = copy_of(Network(held)).norm.held
    assert found is not held and found.itself[0] is found


def test_a_tensor_with_a_history_is_copied_without_it() -> None:
    model = Network()
    model.last = model(IMAGES)
    found = copy_of(model).last
    assert torch.equal(found, model.last) and not found.requires_grad and model.last.requires_grad


@pytest.mark.parametrize(
    "held", [lambda model: model._modules.values(), lambda model: (layer for layer in [model.first])]
)
def test_what_must_not_be_shared_is_named(held: Callable[[Network], Any]) -> None:
    model = Network()
    model.norm.held = held(model)
    next(iter(model.norm.held))
    with pytest.raises(fec_fast.ArgumentError, match=r"norm\.held holds a \w+ that cannot be copied .*take it off"):
        fec_fast.prune(model, IMAGES, ratio=0.5, recover=None)


def test_a_module_whose_own_copy_fails_is_named() -> None:
    class Single(nn.Conv2d):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("there is one of me")

    model = Network()
    model.second = Single(8, 8, 3)
    with pytest.raises(fec_fast.ArgumentError, match=r"Single that cannot be copied \(RuntimeError: there is one"):
        fec_fast.prune(model, IMAGES, ratio=0.5, recover=None)


@pytest.mark.parametrize("kind", ["lock", "semaphore", "generator"])
def test_every_public_function_takes_such_a_model(kind: str, tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return Network((SHARED | ANEW)[kind]()).eval()

    model = build()
    assert fec_fast.couplings(model, IMAGES).sets
    result = fec_fast.prune(model, IMAGES, ratio=0.5, recover=None)
    fec_fast.verify_equivalence(model, result.model, result.plan, IMAGES)
    fec_fast.save(result, tmp_path / "saved")
    loaded = fec_fast.load(build(), tmp_path / "saved")
    applied = build()
    fec_fast.apply_plan(applied, result.plan)
    with torch.no_grad():
        expected = result.model(IMAGES)
        assert torch.equal(loaded(IMAGES), expected) and torch.equal(applied(IMAGES), expected)
    # Several copies run in lock step, and each takes the lock.
    fec_fast.compensate(model, result.model, result.plan, [IMAGES, IMAGES + 1])
    fec_fast.compensate(model, applied, result.plan, example_inputs=IMAGES)
    pytest.importorskip("accelerate")
    data = [(IMAGES[:4], torch.tensor([0, 1, 2, 3]))]
    fec_fast.finetune(result.model, data, epochs=1, teacher=model, ema_decay=0.9, progress=False)


def test_generators_of_a_model_are_as_they_were() -> None:
    class Noisy(Network):
        def __init__(self) -> None:
            super().__init__()
            self.noise, self.luck = torch.Generator().manual_seed(3), random.Random(3)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.rand(x.shape, generator=self.noise) * self.luck.random()
            return super().forward(x + noise)

    model = Noisy().eval()
    before = model.noise.get_state(), model.luck.getstate()
    result = fec_fast.prune(model, IMAGES, ratio=0.5, recover=None)
    assert result.model.first.out_channels == 4
    assert torch.equal(model.noise.get_state(), before[0]) and model.luck.getstate() == before[1]
    assert torch.equal(result.model.noise.get_state(), before[0])
