"""Rounds of pruning in a training loop: what is narrowed, what is counted, and that a resumed training is the same."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast import Budget, PruningSchedule
from helpers.networks import SharedWeight
from helpers.processes import run_python
from helpers.states import assert_same_state, state
from helpers.training_loops import BUDGET, EXAMPLE, IMAGES, LABELS, SCHEDULE, Loop, adamw, network


def macs(model: nn.Module) -> int:
    return fec_fast.prune(model, EXAMPLE, ratio=0.0, verify=False, recover=None).before.macs


def test_a_round_is_what_its_parts_do_by_hand() -> None:
    """Model and average narrowed by the plan, the optimizer's state by remap_optimizer; the rates are not touched."""
    loop, by_hand = Loop(), Loop()
    for each in (loop, by_hand):
        for number in range(3):
            each.update(number)
    made = loop.pruner.step()
    fec_fast.apply_plan(by_hand.model, made.plan)
    fec_fast.apply_plan(by_hand.average.module, made.plan)
    fec_fast.remap_optimizer(by_hand.optimizer, made.plan, by_hand.model)
    by_hand.optimizer.zero_grad()
    for number in range(3, 5):
        loop.update(number)
        by_hand.update(number)
    assert_same_state(loop.model, state(by_hand.model))
    assert_same_state(loop.average, state(by_hand.average))
    assert loop.rates.get_last_lr() == by_hand.rates.get_last_lr()
    assert [len(group["params"]) for group in loop.optimizer.param_groups] == [
        len(group["params"]) for group in by_hand.optimizer.param_groups
    ]


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        (PruningSchedule.one_shot(4), [4]),
        (PruningSchedule.linear([2, 6]), [2, 6]),
        (SCHEDULE, [3, 5, 8]),
        (PruningSchedule.until_budget(2, 3, 0.2), range(2, 12, 3)),  # as many as are needed
    ],
)
def test_the_budget_is_reached_at_the_steps_of_the_schedule(
    schedule: PruningSchedule, at: Sequence[int], tmp_path
) -> None:
    loop = Loop(schedule=schedule)
    dense = macs(loop.model)
    assert loop.pruner.plan is None and not loop.pruner.is_finished
    loop.run(0, 12)
    pruner = loop.pruner
    if schedule.every:
        assert len(pruner.rounds) > 1
        at = at[: len(pruner.rounds)]
    assert [made.steps for made in pruner.rounds] == [made.steps for made in loop.rounds] == list(at)
    assert [made.number for made in pruner.rounds] == list(range(1, len(at) + 1))
    assert pruner.is_finished and macs(loop.model) == pruner.rounds[-1].size_after <= dense / 2
    assert all((made.size_after < made.size_before) == (made.plan is not None) for made in pruner.rounds)
    fec_fast.save(pruner, tmp_path / "saved")
    again = fec_fast.load(network(7), tmp_path / "saved")
    assert_same_state(again, state(loop.model))


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 9])
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(stop: int) -> None:
    whole, first, second = Loop(), Loop(), Loop(seed=5)
    whole.run(0, 11)
    first.run(0, stop)
    second.resume(first.stored())
    second.run(stop, 11)
    assert second.pruner.plan == whole.pruner.plan
    # A resumed training does not keep the plans of earlier rounds one by one.
    assert [row.size_after for row in second.pruner.rounds] == [row.size_after for row in whole.pruner.rounds]
    assert_same_state(second.model, state(whole.model))
    assert_same_state(second.average, state(whole.average))


RESUMED = """
import sys, torch
from helpers.training_loops import Loop
loop = Loop(seed=9)
loop.resume(open(sys.argv[1], "rb").read())
loop.run(4, 11)
torch.save(loop.model.state_dict(), sys.argv[2])
"""


def test_a_training_resumes_in_a_fresh_process(tmp_path) -> None:
    whole, first = Loop(), Loop()
    whole.run(0, 11)
    first.run(0, 4)
    (tmp_path / "checkpoint").write_bytes(first.stored())
    threads = str(torch.get_num_threads())
    done = run_python("-c", RESUMED, tmp_path / "checkpoint", tmp_path / "end", OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr
    assert_same_state(whole.model, torch.load(tmp_path / "end", weights_only=True))


def test_a_model_that_is_narrow_already_goes_on_with_state() -> None:
    """As after a checkpoint that holds the pickled model: optimizer and pruner are made on the narrow one."""
    whole, first = Loop(), Loop()
    whole.run(0, 11)
    first.run(0, 6)
    stored = json.loads(json.dumps(first.pruner.state_dict()))
    second = Loop(model=copy.deepcopy(first.model), state=stored)
    second.resume(first.stored())
    second.run(6, 11)
    assert_same_state(second.model, state(whole.model))
    assert second.pruner.plan == whole.pruner.plan


def test_an_optimizer_whose_narrow_state_was_loaded_first_is_left_as_it_is() -> None:
    first, second = Loop(), Loop(seed=5)
    first.run(0, 6)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.pruner.load_state_dict(first.pruner.state_dict())
    assert str(second.optimizer.state_dict()) == str(first.optimizer.state_dict())


def test_epochs_are_counted_by_end_epoch() -> None:
    loop = Loop(schedule=PruningSchedule.linear([1, 3], unit="epochs"))
    for epoch in range(4):
        loop.run(2 * epoch, 2 * epoch + 2)
        made = loop.pruner.end_epoch()
        assert (made is not None) == (epoch in (0, 2))
    assert [(made.epochs, made.steps) for made in loop.pruner.rounds] == [(1, 2), (3, 6)] and not loop.rounds


def test_batches_that_accumulate_do_not_count_and_rounds_leave_no_gradients() -> None:
    loop = Loop(schedule=PruningSchedule.one_shot(2))
    for number in range(4):
        loop.loss(number).backward()
        if number % 2:
            loop.optimizer.step()
            if number < 3:
                loop.optimizer.zero_grad()
        made = loop.pruner.step()
        assert (made is not None) == (number == 3)
    assert all(parameter.grad is None for parameter in loop.model.parameters())


def test_several_steps_between_two_calls_are_counted_and_their_rounds_made_as_one() -> None:
    loop = Loop()
    for number in range(6):
        loop.update(number)
    made = loop.pruner.step()
    assert (made.number, made.steps) == (2, 6) and loop.pruner.step() is None
    loop.run(6, 8)
    assert [row.number for row in loop.pruner.rounds] == [2, 3] and macs(loop.model) <= 0.5 * made.size_before


def test_steps_that_a_scaler_skips_do_not_count() -> None:
    loop = Loop(schedule=PruningSchedule.one_shot(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    made = []
    for number in range(5):
        loop.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loop.loss(number)
        scaler.scale(loss * (torch.inf if number == 1 else 1)).backward()
        scaler.step(loop.optimizer)
        scaler.update()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # the round plans in float32 all the same
            made.append(loop.pruner.step())
    assert [each is not None for each in made] == [False, False, False, True, False]
    assert all(torch.isfinite(parameter).all() for parameter in loop.model.parameters())


def test_a_compiled_model_is_compiled_once_more_per_round() -> None:
    compiled: list[list[int]] = []

    def backend(graph, inputs):
        compiled.append([])
        return graph.forward

    torch.compiler.reset()
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 5)]
    inner = nn.Sequential(*layers)
    model = torch.compile(inner, backend=backend, fullgraph=True)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.01)
    schedule = PruningSchedule.linear(range(1, 11))  # more rounds than torch compiles a function for
    pruner = fec_fast.TrainingPruner(model, optimizer, EXAMPLE, budget=Budget(macs=0.8), schedule=schedule)
    counts = []
    for number in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES[number]), LABELS[number]).backward()
        counts.append(len(compiled))
        optimizer.step()
        pruner.step()
    assert all(made.plan is not None for made in pruner.rounds)
    assert counts == [*range(1, 12), 11]
    torch.compiler.reset()


@pytest.mark.parametrize("recover", ["images", "data-free", "batch-norm"])
def test_rounds_recover_the_model_and_its_copies_each_from_its_own_weights(recover: str) -> None:
    calibration = [IMAGES.flatten(0, 1)[:64]]
    images = None if recover == "data-free" else calibration
    loop = Loop(schedule=PruningSchedule.one_shot(3, recover=recover), images=images, criterion="l1")
    plain = Loop(schedule=PruningSchedule.one_shot(3), criterion="l1")
    for each in (loop, plain):
        for number in range(3):
            each.update(number)
    with torch.random.fork_rng():
        before, average = copy.deepcopy(loop.model), copy.deepcopy(loop.average.module)
        made, cut = loop.pruner.step(), plain.pruner.step()
        assert made.plan.keep == cut.plan.keep
        for dense, narrow in ((before, loop.model), (average, loop.average.module)):
            wanted = copy.deepcopy(dense)
            fec_fast.apply_plan(wanted, made.plan)
            if recover == "batch-norm":
                fec_fast.recalibrate(wanted, calibration)
            else:
                fec_fast.compensate(dense, wanted, made.plan, images, example_inputs=EXAMPLE)
            assert_same_state(narrow, state(wanted))
    cut_alone = state(plain.model)
    assert not all(torch.equal(tensor, cut_alone[name]) for name, tensor in state(loop.model).items())
    loop.update(3)


def test_a_round_without_anything_left_to_remove_is_noted() -> None:
    loop = Loop(schedule=PruningSchedule.linear([1, 2, 3]), budget=Budget(params=0.05))
    loop.run(0, 4)
    assert [made.number for made in loop.pruner.rounds] == [1, 2, 3] and loop.pruner.is_finished
    empty = [made for made in loop.pruner.rounds if made.plan is None]
    assert empty and all(made.size_before == made.size_after for made in empty)


def test_ultralytics_like_averages_and_modules_are_found_in_their_holders() -> None:
    class Holder:
        def __init__(self, model: nn.Module) -> None:
            self.ema, self.updates = copy.deepcopy(model).eval(), 0
            for parameter in self.ema.parameters():
                parameter.requires_grad_(False)

    model = network()
    holder, plain = Holder(model), copy.deepcopy(model)
    optimizer = adamw(model)
    pruner = fec_fast.TrainingPruner(
        model, optimizer, EXAMPLE, budget=BUDGET, schedule=PruningSchedule.one_shot(1), copies=[holder, plain]
    )
    model(EXAMPLE).sum().backward()
    optimizer.step()
    made = pruner.step()
    for each in (holder.ema, plain):
        assert {name: tuple(t.shape) for name, t in each.state_dict().items()} == {
            name: tuple(t.shape) for name, t in model.state_dict().items()
        }
    assert not any(parameter.requires_grad for parameter in holder.ema.parameters())
    assert not holder.ema.training and model.training and made.plan == pruner.plan


@pytest.mark.parametrize(
    "listed", [lambda holder: holder, lambda holder: {holder}, lambda holder: (h for h in [holder])]
)
def test_an_average_that_holds_lists_of_tensors_still_follows_the_model_after_a_round(listed: Any) -> None:
    """As Ultralytics' ModelEMA, which makes them at its first update."""

    class Holder:
        def __init__(self, model: nn.Module) -> None:
            self.ema, self._pairs = copy.deepcopy(model), None

        def update(self, model: nn.Module) -> None:
            averages = self.ema.state_dict()
            self._pairs = self._pairs or [(averages[name], own) for name, own in model.state_dict().items()]
            for average, own in self._pairs:
                average.copy_(own)

    def trained(stored: dict[str, object] | None = None) -> fec_fast.TrainingPruner:
        model = network()
        holder = Holder(model)
        holder.update(model)
        optimizer = adamw(model)
        schedule = PruningSchedule.one_shot(1)
        pruner = fec_fast.TrainingPruner(
            model, optimizer, EXAMPLE, budget=BUDGET, schedule=schedule, copies=listed(holder), state=stored
        )
        for _ in range(2):
            model(EXAMPLE).sum().backward()
            optimizer.step()
            holder.update(model)
            assert_same_state(holder.ema, state(model))
            pruner.step()
        return pruner

    pruner = trained()
    assert len(pruner.rounds) == 1
    trained(pruner.state_dict())


def test_repr_and_table() -> None:
    loop = Loop()
    loop.run(0, 6)
    assert re.match(
        r"<TrainingPruner: 2 rounds in 6 steps, macs from [\d.e+]+ to [\d.e+]+, to [\d.e+]+>", repr(loop.pruner)
    )
    lines = str(loop.pruner).splitlines()
    assert lines[1].split() == ["round", "steps", "epochs", "macs", "before", "after"] and len(lines) == 5


def test_channels_last_survives_a_round() -> None:
    torch.manual_seed(0)
    loop = Loop(model=SharedWeight().to(memory_format=torch.channels_last))
    loop.run(0, 4)
    assert loop.model.one.weight.is_contiguous(memory_format=torch.channels_last)
