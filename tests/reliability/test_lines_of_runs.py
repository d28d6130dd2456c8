"""An exception before each line of what runs a model: model, process and, where it is changed, its weights are whole.

A run comes to most lines many times. The long part raises the first and the last time, the fast part at some lines.
"""

from __future__ import annotations

import copy
import linecache
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import fec_fast
from helpers.comparison import same_weights
from helpers.everything import Restless, of_model, of_process
from helpers.interruptions import Interrupted, Place, places_of, raise_before
from helpers.networks import SharedWeight
from helpers.training import dot_loader, dropout_classifier

PACKAGE = str(Path(fec_fast.__file__).parent)
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
# How many of the lines, chosen at random; all in the long part.
LINES = [12, pytest.param(None, marks=(pytest.mark.slow, pytest.mark.sweep))]


def chosen(call: Callable[[], Any], lines: int | None, *folders: str) -> list[tuple[Place, int]]:
    """The places of a call in some parts of the package, with the times at which to raise there."""
    call()  # also what a first call alone does, such as imports
    places: dict[Place, int] = {}
    for folder in folders or ("",):
        places.update(places_of(call, f"{PACKAGE}/{folder}"))
    # Nothing can be raised at a line `try:`, which does nothing: Python looks for Ctrl-C at calls and jumps.
    places = {place: n for place, n in places.items() if linecache.getline(place.file, place.line).strip() != "try:"}
    times = [(place, number) for place, count in places.items() for number in sorted({1, count})]
    return times if lines is None else random.Random(0).sample(times, lines)


def raise_at_each(
    call: Callable[[], Any], times: list[tuple[Place, int]], check: Callable[[str], None], renew: Callable[[], None]
) -> None:
    """Raises at each place of a call and checks what it leaves; renews what the call changes where it went on."""
    raised = 0
    for place, number in times:
        where = f"{place.file}:{place.line} {place.event}, time {number}"
        try:
            raise_before(call, place, number)
        except Interrupted:
            raised += 1
            check(where)
        renew()
    assert raised > 0.9 * len(times)
    print(f"{raised} of {len(times)} times raised: 0 changed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("how", ["ratio", "budget", "recovery"])
def test_prune(how: str, lines: int | None) -> None:
    torch.manual_seed(0)
    model = Restless().train() if how == "ratio" else SharedWeight().train()
    options: dict[str, Any] = {
        "ratio": {"ratio": 0.5, "recover": None},
        "budget": {"budget": fec_fast.Budget(macs=0.5), "recover": None},
        "recovery": {"ratio": 0.5, "recover": IMAGES},
    }[how]
    images = IMAGES.clone()

    def prune() -> None:
        fec_fast.prune(model, images, **options)

    folders = {"ratio": [""], "budget": ["pruning/"], "recovery": ["recovery/", "pruning/pruner", "pruning/recon"]}[how]
    times = chosen(prune, lines, *folders)
    before, process = of_model(model), of_process()

    def check(where: str) -> None:
        assert of_model(model) == before, where
        assert of_process() == process, where
        assert torch.equal(images, IMAGES), where

    raise_at_each(prune, times, check, lambda: None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lines", LINES)
@pytest.mark.parametrize("images", [True, False])
def test_compensate(images: bool, lines: int | None) -> None:
    """The pruned model has the weights that it had, in the objects that it had, or all new ones in them."""
    torch.manual_seed(0)
    model = SharedWeight().train()
    pruned = fec_fast.prune(model, IMAGES, ratio=0.5, recover=None)
    target, whole = copy.deepcopy(pruned.model), copy.deepcopy(pruned.model)

    def compensate(network: nn.Module) -> None:
        calibration = IMAGES if images else None
        fec_fast.compensate(model, network, pruned.plan, calibration, example_inputs=IMAGES, progress=False)

    compensate(whole)
    assert not same_weights(whole, target)
    times = chosen(lambda: compensate(copy.deepcopy(target)), lines, "recovery/", "utils/")
    before, process = [of_model(model), of_model(target)], of_process()
    changed_at_the_end = 0

    def check(where: str) -> None:
        nonlocal changed_at_the_end
        assert of_process() == process, where
        assert of_model(model) == before[0], where
        if of_model(target) != before[1]:
            assert same_weights(target, whole), where
            changed_at_the_end += 1

    def renew() -> None:
        if of_model(target) != before[1]:
            target.load_state_dict(pruned.model.state_dict())
        assert of_model(target) == before[1]

    raise_at_each(lambda: compensate(target), times, check, renew)
    assert changed_at_the_end < 60, "it is complete only where functions are left after the last write"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lines", LINES)
def test_finetune(tmp_path: Path, lines: int | None) -> None:
    """The weights are those after a step or those before the first; nothing of the training stays on the model."""
    loader, held_out = dot_loader(), dot_loader(shuffle=False)
    states: list[dict[str, torch.Tensor]] = []

    def train(model: nn.Module, folder: Path | None = None) -> None:
        fec_fast.finetune(
            model,
            loader,
            val_loader=held_out,
            epochs=2,
            ema_decay=0.9,
            checkpoint=None if folder is None else folder / "state",
            log_dir=folder,
            progress=False,
        )

    model = dropout_classifier()
    pristine = copy.deepcopy(model.state_dict())
    objects = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    attributes = [(set(vars(module)), module.training) for module in model.modules()]

    def record(optimizer: Any, *rest: Any) -> None:
        states.append(copy.deepcopy(model.state_dict()))

    hook = register_optimizer_step_post_hook(record)
    try:
        train(model)
    finally:
        hook.remove()
    states.append(copy.deepcopy(model.state_dict()))
    after = [pristine, *states]

    def restart() -> None:
        model.load_state_dict(pristine)
        for parameter in model.parameters():
            parameter.grad = None

    restart()
    times = chosen(lambda: train(copy.deepcopy(model)), lines, "training/")
    process = of_process()

    def check(where: str) -> None:
        assert of_process() == process, where
        assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == objects, where
        assert [(set(vars(module)), module.training) for module in model.modules()] == attributes, where
        assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules()), where
        now = dict(model.named_parameters())
        assert any(all(torch.equal(now[name], state[name]) for name in now) for state in after), where
        assert all(parameter.grad is None for parameter in model.parameters()), where

    def train_with_state() -> None:
        for entry in ("state", "metrics.csv"):
            shutil.rmtree(tmp_path / entry, ignore_errors=True)
        train(model, tmp_path)

    raise_at_each(train_with_state, times, check, restart)
