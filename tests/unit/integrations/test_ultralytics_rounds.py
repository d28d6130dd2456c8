"""Pruning in rounds inside ultralytics' own trainer: narrowed together, validated, saved, resumed; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.yolo_data import without_network, write_boxes

without_network()
pytest.importorskip("ultralytics", reason="needs the extra 'ultralytics': pip install 'fec_fast[ultralytics]'")

from ultralytics import YOLO  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402

import fec_fast  # noqa: E402
from fec_fast import ArgumentError, Budget, CheckpointError, PruningSchedule  # noqa: E402
from fec_fast.integrations import ultralytics as integration  # noqa: E402
from helpers.yolo_networks import Interrupted, interrupt, settings, two_classes, widths  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

HALF = Budget.remove(macs=0.5)
TWO = PruningSchedule.linear([1, 2], unit="epochs")
EVERY_BATCH = {"nbs": 5}  # the optimizer makes a step after each of the two batches of an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up data set: ten images to train on, four to validate on, one box in each."""
    return write_boxes(tmp_path_factory.mktemp("boxes"))


def callback(schedule: PruningSchedule = TWO, **options: Any) -> Any:
    return integration.PruningCallback(
        **{"budget": HALF, "schedule": schedule, "criterion": "l1", "imgsz": 64, **options}
    )


def dense(folder: Path, family: str = "v8/yolov8.yaml") -> Any:
    """A network as a user has it: loaded from a checkpoint."""
    two_classes(folder, family).save(str(folder / "dense.pt"))
    return YOLO(str(folder / "dense.pt"))


def size(model: nn.Module) -> int:
    return sum(map(torch.Size.numel, widths(model).values()))


def watch(yolo: Any) -> list[int]:
    """After every epoch, the size of network, average and optimizer, which must be one; averages must have moved."""
    sizes: list[int] = []
    before: dict[str, torch.Tensor] = {}

    def remember(trainer: Any) -> None:
        before.update({name: tensor.clone() for name, tensor in trainer.ema.ema.named_parameters()})

    def compare(trainer: Any) -> None:
        moved = [not torch.equal(before[name], own) for name, own in trainer.ema.ema.named_parameters()]
        # The first step of all has the learning rate 0.
        assert trainer.epoch == 0 or sum(moved) > len(moved) / 2, "the average no longer follows the network"

    def look(trainer: Any) -> None:
        assert widths(trainer.model) == widths(trainer.ema.ema)
        for parameter, state in trainer.optimizer.state.items():
            assert all(value.shape == parameter.shape for value in state.values() if value.dim())
        sizes.append(size(trainer.model))

    yolo.add_callback("on_train_epoch_start", remember)
    yolo.add_callback("on_train_batch_end", compare)
    yolo.add_callback("on_fit_epoch_end", look)
    return sizes


def autocast_and_scaler(trainer: Any) -> None:
    """What ultralytics itself switches on for GPUs alone."""
    trainer.amp, trainer.scaler = True, torch.amp.GradScaler("cpu", init_scale=64.0)


@pytest.mark.parametrize(
    ("family", "recover", "mixed", "optimizer"),
    [
        ("v8/yolov8.yaml", "images", True, "auto"),
        ("26/yolo26.yaml", "batch-norm", False, "MuSGD"),  # two states per weight, two heads
    ],
)
def test_network_optimizer_and_average_are_narrowed_in_rounds(
    family: str, recover: str, mixed: bool, optimizer: str, data: Path, tmp_path: Path
) -> None:
    yolo = dense(tmp_path, family)
    whole = size(yolo.model)
    pruning = callback(PruningSchedule.linear([1, 2], unit="epochs", recover=recover))
    pruning.attach(yolo)
    sizes = watch(yolo)
    if mixed:
        yolo.add_callback("on_train_start", autocast_and_scaler)
    # The third epoch is worse than the second, so best.pt is not the last network.
    yolo.train(epochs=3, optimizer=optimizer, **EVERY_BATCH, **settings(data, tmp_path))
    assert [(made.epochs, made.steps) for made in pruning.rounds] == [(1, 2), (2, 4)]
    assert whole > sizes[0] > sizes[1] == sizes[2] == size(yolo.model)
    assert pruning.pruner.rounds[-1].size_after <= 0.5 * pruning.pruner.rounds[0].size_before
    assert integration.plan_of(yolo) == pruning.plan
    yolo.val(**settings(data, tmp_path))
    again = integration.load(integration.save(yolo, tmp_path / "saved"))
    assert widths(again.model) == widths(yolo.model)
    again.train(epochs=1, **settings(data, tmp_path))
    assert widths(again.model) == widths(yolo.model)
    yolo.train(epochs=1, **settings(data, tmp_path))  # attach was for one training
    assert size(yolo.model) == sizes[1] and len(pruning.rounds) == 2


def test_best_pt_is_the_best_since_the_last_round(data: Path, tmp_path: Path) -> None:
    """Even where the dense network scored better, and early stopping waits for the rounds."""
    yolo, scores = dense(tmp_path), iter([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])

    class Scored(DetectionTrainer):
        def validate(self) -> Any:
            metrics, _ = super().validate()
            fitness = next(scores)
            self.best_fitness = fitness if self.best_fitness is None else max(self.best_fitness, fitness)
            return metrics, fitness

    pruning = callback(PruningSchedule.linear([2, 4], unit="epochs"))
    pruning.attach(yolo)
    sizes = watch(yolo)
    yolo.train(trainer=Scored, epochs=6, patience=1, **EVERY_BATCH, **settings(data, tmp_path))
    assert pruning.pruner.is_finished and size(yolo.model) == sizes[-1] < sizes[0]
    assert yolo.trainer.best_fitness == 0.3 and yolo.trainer.epoch == 4, "one epoch of patience after the last round"


@pytest.mark.parametrize("before_the_first_round", [True, False])
def test_a_training_is_resumed_with_its_rounds(before_the_first_round: bool, data: Path, tmp_path: Path) -> None:
    yolo = dense(tmp_path)
    schedule = PruningSchedule.linear([2, 3] if before_the_first_round else [1, 3], unit="epochs")
    first = callback(schedule)
    first.attach(yolo)
    yolo.add_callback("on_model_save", interrupt)
    with pytest.raises(Interrupted):
        yolo.train(epochs=4, **EVERY_BATCH, **settings(data, tmp_path))
    last = tmp_path / "run" / "weights" / "last.pt"
    assert type(yolo) is (YOLO if before_the_first_round else type(integration.from_checkpoint(last)))
    assert len(first.rounds) == (not before_the_first_round)
    with pytest.raises(ArgumentError, match="rounds of pruning are left; attach a PruningCallback"):
        integration.from_checkpoint(last).train(resume=True)
    other = integration.from_checkpoint(last)
    callback(schedule, budget=Budget.remove(macs=0.4)).attach(other)
    with pytest.raises(CheckpointError, match="cannot go on with other settings"):
        other.train(resume=True)
    again, starts = integration.from_checkpoint(last), []
    second = callback(schedule)
    second.attach(again)
    again.add_callback(
        "on_train_start",
        lambda trainer: starts.append((trainer.start_epoch, size(trainer.model), len(trainer.optimizer.state))),
    )
    sizes = watch(again)
    again.train(resume=True)
    assert starts[0][0] == 1 and starts[0][1] == size(first.model) and starts[0][2] > 100
    assert [made.epochs for made in second.rounds] == list(schedule.at)
    assert second.pruner.is_finished and size(again.model) == sizes[-1] < starts[0][1]
    assert integration.load(integration.save(again, tmp_path / "saved")).names == again.names


def test_rounds_after_steps_follow_an_earlier_pruning(data: Path, tmp_path: Path) -> None:
    yolo = dense(tmp_path)
    earlier = integration.prune(
        yolo, budget=Budget.remove(macs=0.3), imgsz=64, criterion="l1", verify=False, recover=None
    ).plan
    pruning = callback(PruningSchedule.one_shot(3, recover="data-free"), verify=False)
    pruning.attach(yolo)
    yolo.add_callback("on_model_save", interrupt)
    with pytest.raises(Interrupted):
        yolo.train(epochs=2, **EVERY_BATCH, **settings(data, tmp_path))
    again = integration.from_checkpoint(tmp_path / "run" / "weights" / "last.pt")
    pruning = callback(PruningSchedule.one_shot(3, recover="data-free"), verify=False)
    pruning.attach(again)
    again.train(resume=True)
    assert [made.steps for made in pruning.rounds] == [3]
    assert integration.plan_of(again) == fec_fast.compose(earlier, pruning.plan)
    integration.load(integration.save(again, tmp_path / "saved"))


def test_a_loss_that_is_not_finite_goes_back_to_last_pt(data: Path, tmp_path: Path) -> None:
    yolo, epochs = dense(tmp_path), []

    class Spoiled(DetectionTrainer):
        def optimizer_step(self) -> None:
            super().optimizer_step()
            if epochs.count(1) == 1:
                self.loss = torch.tensor(float("nan"))

    pruning = callback()
    pruning.attach(yolo)
    yolo.add_callback("on_train_epoch_start", lambda trainer: epochs.append(trainer.epoch))
    sizes = watch(yolo)
    yolo.train(trainer=Spoiled, epochs=3, **EVERY_BATCH, **settings(data, tmp_path))
    assert epochs == [0, 1, 1, 2]
    assert [(made.epochs, made.steps) for made in pruning.rounds] == [(1, 2), (2, 4)]
    assert size(yolo.model) == sizes[-1] < sizes[0]


def test_where_last_pt_is_of_before_a_round_the_error_says_so(data: Path, tmp_path: Path) -> None:
    yolo = dense(tmp_path)
    callback().attach(yolo)

    class Worthless(DetectionTrainer):
        def validate(self) -> Any:
            metrics, fitness = super().validate()
            return metrics, float("nan") if self.epoch == 1 else fitness

    with pytest.raises(fec_fast.TrainingError, match=r"epoch 2: .* last.pt is of the network before it"):
        yolo.train(trainer=Worthless, epochs=3, **EVERY_BATCH, **settings(data, tmp_path))


def test_a_training_that_ends_before_the_last_round_is_warned_of(data: Path, tmp_path: Path) -> None:
    yolo = dense(tmp_path)
    callback(PruningSchedule.linear([1, 2], unit="epochs")).attach(yolo)
    yolo.add_callback("on_train_batch_end", lambda trainer: setattr(trainer, "stop", True))
    with pytest.warns(fec_fast.FecWarning, match="ended before the last round of pruning: .* and 1 epochs, "):
        yolo.train(epochs=2, **EVERY_BATCH, **settings(data, tmp_path))


class Several(DetectionTrainer):
    """As with device=[0, 1] on a machine that has them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ddp, self.world_size = True, 2


def test_what_cannot_work_is_refused_before_the_training(data: Path, tmp_path: Path) -> None:
    yolo = dense(tmp_path)
    weights = {name: tensor.clone() for name, tensor in yolo.model.state_dict().items()}
    for wrong, message, options in (
        (callback(), "starts a process for each GPU", {"trainer": Several}),
        (callback(), "prune first, then train with distill_model", {"distill_model": "yolov8s.pt"}),
        (callback(), "one data set", {"data": [str(data), str(data)]}),
        (callback(PruningSchedule.one_shot(4, unit="epochs")), "after 4 epochs, but the training has at most 3", {}),
        (callback(PruningSchedule.one_shot(7)), "after 7 steps, but the training has at most 6", {}),
        (callback(budget=Budget.remove(macs=0.9999)), "macs", {}),
        (callback(images=data), "does not need them", {}),
    ):
        started: list[Any] = []
        yolo.add_callback("on_train_start", started.append)
        wrong.attach(yolo)
        with pytest.raises(fec_fast.FecError, match=message):
            yolo.train(epochs=3, **{**EVERY_BATCH, **settings(data, tmp_path), **options})
        assert not started
        yolo = YOLO(str(tmp_path / "dense.pt"))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in yolo.model.state_dict().items())
    yolo.train(epochs=2, **EVERY_BATCH, **settings(data, tmp_path), save_period=1)
    stock = integration.PruningCallback(budget=HALF, schedule=TWO)
    unpruned = YOLO(str(tmp_path / "run" / "weights" / "epoch0.pt"))
    stock.attach(unpruned)
    with pytest.raises(CheckpointError, match="no state of a PruningCallback"):
        unpruned.train(resume=True)


def test_calls_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    yolo, pruning = two_classes(tmp_path), callback()
    with pytest.raises(ArgumentError, match=r"made by yolo.train; call attach\(yolo\) before it"):
        pruning.plan  # noqa: B018
    with pytest.raises(ArgumentError, match="expected an ultralytics.YOLO or RTDETR object"):
        pruning.attach(yolo.model)
    with pytest.raises(ArgumentError, match=r"not for add_callback: call attach\(yolo\)"):
        pruning(None)
    pruning.attach(yolo)
    with pytest.raises(ArgumentError, match="attached to it already"):
        callback().attach(yolo)
    with pytest.raises(ArgumentError, match="attached to another"):
        pruning.attach(two_classes(tmp_path))
    with pytest.raises(ArgumentError, match="give a fec_fast.PruningSchedule"):
        callback(schedule="cubic")
    with pytest.raises(ArgumentError, match="a multiple of 32 pixels"):
        callback(imgsz=50)
