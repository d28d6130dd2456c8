"""What is refused, and that nothing has changed after an exception, Ctrl-C or bad arguments."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import signal
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_pre_hooks
from torch.optim.swa_utils import AveragedModel

import fec_fast
from fec_fast import ArgumentError, Budget, BudgetError, CheckpointError, PlanError, PruningSchedule, RatioError
from fec_fast.plan import optimizer_state, surgery
from fec_fast.pruning.during_training import round_plan, stored_state, training_pruner
from fec_fast.utils import undo
from helpers.interruptions import Interrupted, keyboard, press_at_random, raise_at
from helpers.networks import SharedWeight
from helpers.training_loops import BUDGET, EXAMPLE, SCHEDULE, Loop, adamw, network

MODULES = (training_pruner, round_plan, stored_state, optimizer_state, surgery, undo)
FILES = {module.__file__ for module in MODULES}


def due(**options: Any) -> Loop:
    """A loop whose next call of ``pruner.step`` makes a round."""
    loop = Loop(schedule=PruningSchedule.one_shot(2, recover="batch-norm"), images=[EXAMPLE + 1.0], **options)
    loop.run(0, 1)
    loop.update(1)
    return loop


# Thinned out in the fast part, but for the lines of the change itself.
@pytest.mark.parametrize("thinned", [True, pytest.param(False, marks=(pytest.mark.slow, pytest.mark.sweep))])
def test_an_exception_at_any_line_of_a_round_leaves_all_as_it_was(thinned: bool) -> None:
    loop = due()
    steps = raise_at(due().pruner.step, None, FILES)
    before, ran = loop.everything(), 0
    assert steps > 300
    last = steps - 40
    for at in [*range(1, last, last // 20 if thinned else 1), *range(last, steps, 3 if thinned else 1)]:
        with contextlib.suppress(Interrupted):
            raise_at(loop.pruner.step, at, FILES)
        if loop.pruner.rounds:  # after the last change, or ignored by Python: all is done
            reference = due()
            reference.pruner.step()
            assert loop.everything() == reference.everything()
            loop, ran = due(), ran + 1
        assert loop.everything() == before, at
    assert ran < 60
    print(f"{steps} steps")
    assert loop.pruner.step() is not None and loop.everything() != before


def test_ctrl_c_at_random_moments_of_a_round_leaves_all_as_it_was() -> None:
    def make():
        loop = due()
        before = loop.everything()
        return loop.pruner.step, lambda: None if loop.pruner.rounds else check(loop, before)

    def check(loop: Loop, before: list[Any]) -> None:
        assert loop.everything() == before
        assert loop.pruner.step() is not None

    press_at_random(make, rounds=5, seed=2)


def test_ctrl_c_that_the_model_ignores_still_ends_the_call() -> None:
    pressed: list[bool] = []

    class Deaf(SharedWeight):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if not pressed:
                pressed.append(True)
                with contextlib.suppress(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
            return super().forward(image)

    with keyboard(), pytest.raises(KeyboardInterrupt):
        pruner(model=Deaf())
    pressed.clear()
    with keyboard(), pytest.raises(KeyboardInterrupt):
        fec_fast.prune_iteratively(
            Deaf(), EXAMPLE, budget=BUDGET, train=lambda model, number: None, rounds=1, recover=None
        )


def test_an_error_in_a_round_names_it_and_the_round_can_be_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = due()
    before = loop.everything()

    def fail(*args: Any, **options: Any) -> None:
        raise BudgetError("cannot be met")

    with monkeypatch.context() as patch:
        patch.setattr(round_plan, "prune", fail)
        with pytest.raises(BudgetError, match="cannot be met") as raised:
            loop.pruner.step()
    assert "in round 1 of pruning, after 2 steps; nothing was changed" in raised.value.__notes__
    assert loop.everything() == before
    loop.update(2)
    assert loop.pruner.step().steps == 3


def test_loading_is_undone_too() -> None:
    stored = Loop()
    stored.run(0, 6)
    state, loop = stored.pruner.state_dict(), Loop(seed=5)
    before = loop.everything()
    steps = raise_at(functools.partial(Loop(seed=5).pruner.load_state_dict, state), None, FILES)
    for at in [*range(1, steps - 30, 29), *range(steps - 30, steps - 8, 3)]:
        with pytest.raises(Interrupted):
            raise_at(functools.partial(loop.pruner.load_state_dict, state), at, FILES)
        assert loop.everything() == before, at


def test_an_optimizer_that_was_not_given_is_refused_at_its_next_step() -> None:
    loop = Loop()
    other = torch.optim.SGD(loop.model.parameters(), lr=0.01, momentum=0.9)
    loop.loss(0).backward()
    other.step()
    loop.run(0, 3)
    loop.optimizer.zero_grad()
    loop.loss(3).backward()
    message = "the SGD holds .*, which round 1 of pruning has narrowed to .*give all optimizers.*remap_optimizer"
    with pytest.raises(PlanError, match=message):
        other.step()
    fec_fast.remap_optimizer(other, loop.rounds[0].plan, loop.model)
    other.step()
    torch.optim.SGD(loop.model.parameters(), lr=0.01, momentum=0.9).step()  # a new one has no states


def test_watching_ends_with_the_pruner() -> None:
    loop = Loop()
    other = torch.optim.SGD(loop.model.parameters(), lr=0.01, momentum=0.9)
    loop.loss(0).backward()
    other.step()
    loop.run(0, 3)
    hooks = len(_global_optimizer_pre_hooks)
    model = loop.model
    del loop
    assert len(_global_optimizer_pre_hooks) == hooks - 1
    model(EXAMPLE).sum().backward()
    with pytest.raises(RuntimeError, match="size of tensor"):  # torch's own words, not ours
        other.step()


def test_states_of_other_shapes_are_refused_after_the_first_step_not_in_the_first_round() -> None:
    loop = Loop(make=lambda model: torch.optim.Adafactor(model.parameters()))
    loop.update(0)
    with pytest.raises(PlanError, match=r"row_var has shape .*make a new optimizer after pruning"):
        loop.pruner.step()


def test_optimizers_that_keep_tensors_elsewhere_are_refused_before_the_training() -> None:
    class Slow(torch.optim.SGD):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.slow = [each.detach().clone() for each in self.param_groups[0]["params"]]

    with pytest.raises(ArgumentError, match="the Slow keeps a tensor of shape .* in its attribute slow"):
        Loop(make=lambda model: Slow(model.parameters(), lr=0.01))


def test_parameters_that_were_replaced_are_noticed_in_the_next_round() -> None:
    loop = Loop()
    loop.run(0, 2)
    loop.model.load_state_dict(copy.deepcopy(loop.model.state_dict()), assign=True)
    loop.loss(2).backward()
    loop.optimizer.step()
    with pytest.raises(
        ArgumentError, match=r"holds no parameter of this model|no longer hold .*load_state_dict\(assign"
    ):
        loop.pruner.step()


def test_calls_without_steps_of_the_optimizer_are_warned_of() -> None:
    loop = Loop()
    with pytest.warns(fec_fast.FecWarning, match=r"1000 times without a step of the AdamW: nothing will be pruned"):
        for _ in range(1000):
            loop.pruner.step()


def test_a_checkpoint_between_a_step_and_its_count_is_refused() -> None:
    loop = Loop()
    loop.update(0)
    with pytest.raises(fec_fast.TrainingError, match=r"call step\(\) before the checkpoint"):
        loop.pruner.state_dict()
    loop.pruner.step()
    assert loop.pruner.state_dict()["steps"] == 1
    Loop(schedule=PruningSchedule.one_shot(2, unit="epochs")).pruner.state_dict()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": "other"}, CheckpointError, "it is no state of a TrainingPruner: give what"),
        ({"version": 7}, CheckpointError, "it has version 7; this version of fec_fast reads 1"),
        ({"steps": -1}, CheckpointError, "it was edited or damaged"),
        ({"rounds": [{"number": 1}]}, CheckpointError, "it was edited or damaged"),
        ({"size_before": float("nan")}, CheckpointError, "it was edited or damaged"),
        ({"size_before": float("inf")}, CheckpointError, "it was edited or damaged"),
        ({"target": -1.0}, CheckpointError, "it was edited or damaged"),
        ({"epochs": 0, "steps": 0}, CheckpointError, "its rounds are not in order"),
        ({"plan": "{}"}, PlanError, "not a plan"),
        ({"original": "sha256:0"}, CheckpointError, "its plan is for another model than it says"),
        ({"budget": "macs=0.6"}, CheckpointError, "budget was 'macs=0.6' and is 'macs=0.5'"),
        ({"schedule": {}}, CheckpointError, "at was None and is [3, 5, 8]"),
    ],
)
def test_other_states_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    stored = Loop()
    stored.run(0, 4)
    loop = Loop(seed=5)
    before = loop.everything()
    with pytest.raises(error, match=re.escape(message)):
        loop.pruner.load_state_dict({**stored.pruner.state_dict(), **change})
    assert loop.everything() == before
    with pytest.raises(CheckpointError, match="it is no state"):
        loop.pruner.load_state_dict("state")


def l1(weight: Tensor) -> Tensor:
    return weight.flatten(1).abs().sum(1)


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({"criterion": "l1"}, {"criterion": "l2"}, "criterion was 'l1' and is 'l2'"),
        ({"criterion": "l1"}, {"criterion": l1}, "criterion was 'l1' and is .*failures.l1"),
        ({}, {"round_to": 2}, "round_to was not given and is 2"),
        ({"ignore": ["inner"]}, {}, r"ignore was \['inner'\] and is not given"),
        (
            {"formula": fec_fast.Formula(axis="both")},
            {"formula": fec_fast.Formula(axis="filters")},
            "formula was .* and is",
        ),
    ],
)
def test_a_state_with_other_options_is_refused(then: dict[str, Any], now: dict[str, Any], words: str) -> None:
    stored = Loop(**then)
    stored.run(0, 4)
    loop = Loop(seed=5, **now)
    before = loop.everything()
    with pytest.raises(CheckpointError, match=f"with other settings .*{words}.*: give the old ones"):
        loop.pruner.load_state_dict(stored.pruner.state_dict())
    assert loop.everything() == before
    same = {"round_to": 1, "verify": False, **{name: set(v) if name == "ignore" else v for name, v in then.items()}}
    Loop(seed=5, **same).pruner.load_state_dict(stored.pruner.state_dict())  # as the defaults, and another kind of list


def test_a_state_of_another_model_is_refused() -> None:
    stored = Loop()
    stored.run(0, 4)
    other = Loop(
        model=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    )
    with pytest.raises(PlanError, match="the model is not the one whose training was stored.*has no"):
        other.pruner.load_state_dict(stored.pruner.state_dict())


def pruner(**options: Any) -> fec_fast.TrainingPruner:
    model = options.pop("model", None)
    model = network() if model is None else model
    optimizer = options.pop("optimizer", None)
    optimizer = adamw(model) if optimizer is None else optimizer
    options = {"budget": BUDGET, "schedule": SCHEDULE, **options}
    return fec_fast.TrainingPruner(model, optimizer, options.pop("example_inputs", EXAMPLE), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "net", "optimizer": ()}, ArgumentError, "model: expected a torch.nn.Module, got a str"),
        ({"optimizer": "sgd"}, ArgumentError, "optimizer: expected a torch.optim.Optimizer, got a str"),
        ({"optimizer": ()}, ArgumentError, "optimizer=(): give the optimizer that trains the model"),
        (
            {"optimizer": torch.optim.SGD(network().parameters(), lr=0.1)},
            ArgumentError,
            "holds no parameter of this model",
        ),
        ({"budget": 0.5}, ArgumentError, "budget=0.5: give a fec_fast.Budget, such as Budget(macs=0.5)"),
        ({"budget": Budget(macs=0.9999)}, BudgetError, "the nearest that can be met is Budget(macs="),
        ({"schedule": "cubic"}, ArgumentError, "schedule='cubic': give a fec_fast.PruningSchedule, such as"),
        ({"copies": network().head}, ArgumentError, "copies[0]: this Linear is no copy of the model"),
        ({"ratio": 0.5}, RatioError, "ratio=: give budget= alone"),
        ({"remove": 0.5}, RatioError, "remove=: give budget= alone"),
        ({"ratios": {"one": 0.5}}, RatioError, "ratios=: name a policy"),
        ({"ratios": "globl"}, ArgumentError, "ratios='globl': nearest: 'global'"),
        ({"recover": "images"}, ArgumentError, "recover=: no option of prune in a round; say it in the schedule"),
        ({"min_chanels": 2}, ArgumentError, "min_chanels=: no option of prune in a round; nearest: 'min_channels'"),
        ({"criterion": "taylor"}, RatioError, "criterion='taylor' needs calibration="),
        ({"criterion": "tailor"}, ArgumentError, "tailor"),
        ({"images": [EXAMPLE]}, ArgumentError, "images=: the schedule does not need them (recover=None)"),
        (
            {"schedule": PruningSchedule.one_shot(1, recover="images")},
            ArgumentError,
            "the schedule recovers by 'images', which needs images=",
        ),
        (
            {"schedule": PruningSchedule.one_shot(1, recover="batch-norm"), "images": iter([EXAMPLE])},
            ArgumentError,
            "images: a list_iterator can be read once only",
        ),
        ({"ddp": network()}, ArgumentError, "ddp: expected a DistributedDataParallel, got a SharedWeight"),
        ({"example_inputs": torch.zeros(2, 4, 8, 8)}, fec_fast.InputError, "example inputs"),
        (
            {"schedule": PruningSchedule.one_shot(1, recover="images"), "images": [EXAMPLE]},
            fec_fast.InputError,
            "images: 2 are too few: give at least 8",
        ),
        (
            {"schedule": PruningSchedule.one_shot(1, recover="data-free"), "model": network().bfloat16()},
            fec_fast.WeightError,
            "stem.weight is bfloat16, which is too coarse for recover='data-free': keep the weights in float32",
        ),
        ({"state": {}}, CheckpointError, "it is no state of a TrainingPruner"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        pruner(**options)


def test_batch_norm_takes_a_tensor_of_images_and_refuses_others_at_once() -> None:
    schedule = PruningSchedule.one_shot(1, recover="batch-norm")
    loop = Loop(schedule=schedule, images=torch.ones(9, 3, 8, 8))
    loop.run(0, 1)
    assert loop.rounds[0].plan is not None
    with pytest.raises(fec_fast.InputError, match=r"float32 \[8, 2, 8, 8\]"):
        Loop(schedule=schedule, images=torch.ones(9, 2, 8, 8))


def test_the_model_itself_is_no_copy() -> None:
    model = network()
    average = AveragedModel(model)
    average.module = model
    with pytest.raises(ArgumentError, match=r"copies\[0\] is the model itself"):
        pruner(model=model, copies=[average])


def test_sharded_models_are_refused_with_the_way_out(tmp_path) -> None:
    distributed = pytest.importorskip("torch.distributed")
    tensor = pytest.importorskip("torch.distributed.tensor")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch is built without gloo")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = network()
        model.stem.weight = nn.Parameter(tensor.distribute_tensor(model.stem.weight, mesh, [tensor.Shard(0)]))
        with pytest.raises(fec_fast.WeightError, match=r"layer 'stem': its weight is a DTensor.*before sharding"):
            pruner(model=model)
        own_group = nn.parallel.DistributedDataParallel(network(), process_group=distributed.new_group([0]))
        with pytest.raises(ArgumentError, match="a process group of its own"):
            pruner(model=own_group)
        hooked = nn.parallel.DistributedDataParallel(network())
        hooked.register_comm_hook(None, lambda state, bucket: bucket.buffer())
        with pytest.raises(ArgumentError, match="communication hook.*train without register_comm_hook"):
            pruner(model=hooked)
        with pytest.raises(ArgumentError, match="does not hold the model"):
            pruner(ddp=nn.parallel.DistributedDataParallel(network()))
    finally:
        distributed.destroy_process_group()
