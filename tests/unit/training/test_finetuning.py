"""Fine-tuning: it learns, repeats to the same bits, and names what is wrong before it starts."""

import copy
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from fec_fast.training import engine
from fec_fast.training.finetuning import finetune
from fec_fast.utils.errors import ArgumentError, BackendError, InputError, TrainingError
from fec_fast.utils.evaluation import evaluate
from helpers.comparison import same_weights
from helpers.states import assert_same_state, state
from helpers.training import classifier, dot_images, dot_loader, dropout_classifier, train


def test_it_learns_and_returns_its_history() -> None:
    model = dropout_classifier()
    before = evaluate(model, dot_loader())
    result = train(model, epochs=6, lr=0.05, val_loader=dot_loader())
    assert result.model is model
    assert evaluate(model, dot_loader()) > max(before, 0.9)
    assert [row.epoch for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].val_accuracy == evaluate(model, dot_loader())
    rates = [row.lr for row in result.history]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < 0.001 and rates[0] < 0.05


def test_without_held_out_data_there_is_no_held_out_accuracy() -> None:
    assert train(dropout_classifier(), epochs=1).history[0].val_accuracy is None


def test_same_seed_same_bits_other_seed_others() -> None:
    models = [dropout_classifier(), dropout_classifier(), dropout_classifier()]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        torch.rand(7)  # the state of the global generator must have no effect
        train(model, epochs=2, seed=seed)
    assert same_weights(models[0], models[1])
    assert not same_weights(models[0], models[2])


def test_callers_random_state_and_modes_are_restored() -> None:
    model, teacher = dropout_classifier(), dropout_classifier().train()
    model.eval()
    model[1].train()
    torch.manual_seed(9)
    random.seed(9)
    expected = (torch.rand(3), random.random())
    torch.manual_seed(9)
    random.seed(9)
    train(model, epochs=1, teacher=teacher)
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]
    assert [m.training for m in model] == [False, True, False, False, False, False]
    assert teacher.training and "forward" not in model.__dict__


def test_label_smoothing_keeps_logits_smaller() -> None:
    plain, smooth = dropout_classifier(dropout=0.0), dropout_classifier(dropout=0.0)
    train(plain, epochs=8, lr=0.05)
    train(smooth, epochs=8, lr=0.05, label_smoothing=0.3)
    images = dot_images().tensors[0]
    with torch.no_grad():
        assert smooth.eval()(images).softmax(1).max(1)[0].mean() < plain.eval()(images).softmax(1).max(1)[0].mean()


def test_bf16_trains_and_leaves_float32_weights_and_no_wrapper() -> None:
    model = dropout_classifier()
    train(model, epochs=4, lr=0.05, mixed_precision="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(dot_images().tensors[0]).dtype == torch.float32 and "forward" not in model.__dict__
    assert evaluate(model, dot_loader()) > 0.9
    # The precision of one call does not carry over to the next.
    full = train(dropout_classifier(), epochs=1).history[0].loss
    half = train(dropout_classifier(), epochs=1, mixed_precision="bf16").history[0].loss
    assert full != half and full == pytest.approx(half, rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="float16 training works where there is a GPU")
def test_fp16_without_a_gpu_is_an_error_not_a_fallback() -> None:
    with pytest.raises(BackendError, match="fp16"):
        train(dropout_classifier(), epochs=1, mixed_precision="fp16")
    train(dropout_classifier(), epochs=1)


def test_precision_other_than_that_of_the_callers_accelerator_is_refused() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    own = Accelerator(mixed_precision="bf16")
    try:
        with pytest.raises(BackendError, match="mixed_precision='no'"):
            train(dropout_classifier(), epochs=1)
        train(dropout_classifier(), epochs=1, mixed_precision="bf16")
        assert own.mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state()


class _Poisoned(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Images of which one holds NaN."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = dot_images()[index]
        return (image * float("nan") if index == 40 else image), label


def test_nan_loss_names_the_step_and_keeps_the_weights(tmp_path: Path) -> None:
    loader = DataLoader(_Poisoned(), batch_size=16)
    model = dropout_classifier()
    with pytest.raises(TrainingError, match=r"nan at step 3 \(epoch 1\).*no epoch was finished"):
        finetune(model, loader, epochs=2, checkpoint=tmp_path / "s", progress=False)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    with pytest.raises(TrainingError, match="no state was kept"):
        finetune(dropout_classifier(), loader, epochs=2, progress=False)


def test_nan_loss_names_the_last_good_state(tmp_path: Path) -> None:
    class Late(_Poisoned):
        served = 0

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            self.served += 1
            # 16 for the check, 48 for the first epoch
            return super().__getitem__(index) if self.served > 64 else dot_images()[index]

    with pytest.raises(TrainingError, match=rf"step 6 \(epoch 2\).*after epoch 1, in {tmp_path / 's'}"):
        finetune(
            dropout_classifier(), DataLoader(Late(), batch_size=16), epochs=2, checkpoint=tmp_path / "s", progress=False
        )


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ([], "train_loader is empty"),
        (DataLoader(dot_images(), batch_size=100, drop_last=True), "train_loader is empty"),
        (iter(()), "no length"),
        ([torch.zeros(4, 1, 6, 6)], "pair of images"),
        ([(torch.zeros(4, 1, 6, 6), torch.zeros(4))], "integer labels"),
        ([(torch.zeros(4, 1, 6, 6), torch.zeros(3, dtype=torch.int64))], "pair of images"),
        ([(torch.zeros(4, 2, 6, 6), torch.zeros(4, dtype=torch.int64))], r"cannot be run .*\[4, 2, 6, 6\]"),
    ],
)
def test_bad_data_is_named_before_training(loader: Any, words: str) -> None:
    model = dropout_classifier()
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=words):
        finetune(model, loader, epochs=1, progress=False)
    assert same_weights(model, before)


def test_networks_that_cannot_be_trained() -> None:
    frozen = dropout_classifier().requires_grad_(False)
    with pytest.raises(InputError, match="nothing to train"):
        train(frozen, epochs=1)
    with pytest.raises(InputError, match="the model, Sequential, returns .*task="):
        train(dropout_classifier()[:3], epochs=1)
    model = dropout_classifier()
    with pytest.raises(ArgumentError, match="the model itself"):
        train(model, epochs=1, teacher=model)
    with pytest.raises(InputError, match="the teacher has 4 classes and the model 3"):
        train(model, epochs=1, teacher=dropout_classifier(classes=4))
    with pytest.raises(InputError, match="Linear cannot be run on the images of train_loader, as the teacher"):
        train(model, epochs=1, teacher=nn.Linear(3, 3))


def test_frozen_layers_do_not_change(tmp_path: Path) -> None:
    model = dropout_classifier()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train(model, epochs=1, checkpoint=tmp_path / "s")
    assert torch.equal(model[0].weight, before)


def test_missing_accelerate_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install 'fec_fast\[train\]'"):
        finetune(dropout_classifier(), dot_loader(), epochs=1)


class Once:
    """A loader with a length whose iterator is the same one each time."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.iterator = batches, iter(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return self.iterator


class Emptying(Once):
    """A loader whose batches are gone after some, which a look at it beforehand does not show."""

    def __init__(self, batches: list[Any], gives: int) -> None:
        super().__init__(batches)
        self.left = gives

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.left:
                self.left -= 1
                yield batch


class Longer(list):
    """A loader that gives batches for ever, whatever its length says."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(list(super().__iter__()))


def batches() -> list[Any]:
    return list(dot_loader(shuffle=False))


@pytest.mark.parametrize("name", ["train_loader", "val_loader"])
@pytest.mark.parametrize("loader", [lambda: Once(batches()), lambda: (batch for batch in batches())])
def test_data_that_can_be_gone_through_once_is_refused_before_training(name: str, loader: Any) -> None:
    model = classifier()
    before = state(model)
    loaders = {"train_loader": batches(), "val_loader": batches(), name: loader()}
    with pytest.raises(InputError, match=rf"^{name} (can be gone through only once|has no length)"):
        finetune(model, loaders["train_loader"], val_loader=loaders["val_loader"], epochs=2, progress=False)
    assert_same_state(model, before)


def test_an_epoch_without_a_batch_ends_the_training() -> None:
    loader = Emptying(batches(), 1 + 3)  # one for the check
    with pytest.raises(TrainingError, match=r"no batch in epoch 2, though its length is 3.*gone through only once"):
        finetune(classifier(), loader, epochs=3, progress=False)


def test_fewer_batches_than_the_length_are_reported() -> None:
    with pytest.warns(UserWarning, match="gave 2 batches in epoch 1, its length is 3"):
        finetune(classifier(), Emptying(batches(), 1 + 2), epochs=1, progress=False)


def test_more_batches_than_the_length_are_not_taken() -> None:
    longer, usual = classifier(), classifier()
    result = finetune(longer, Longer(batches()), epochs=2, progress=False)
    finetune(usual, batches(), epochs=2, progress=False)
    assert result.stopped == "epochs" and same_weights(longer, usual)


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        ([], "val_loader is empty"),
        ([torch.zeros(2, 1, 6, 6)], "a batch of val_loader must be a pair"),
        ([(torch.zeros(2, 1, 6, 6), torch.tensor([0, 7]))], "label 7 in the first batch of val_loader"),
        ([(torch.zeros(2, 1, 9, 9), torch.tensor([0, 1]))], "cannot be run on"),
        (3, "val_loader: a int is no loader"),
    ],
)
def test_held_out_data_is_checked_before_training(held_out: Any, words: str) -> None:
    model = classifier()
    before = state(model)
    with pytest.raises((InputError, ArgumentError), match=words):
        finetune(model, dot_loader(), val_loader=held_out, epochs=1, progress=False)
    assert_same_state(model, before)


class Stream(IterableDataset):
    """Images one after another, of a number that is not known."""

    def __iter__(self) -> Iterator[Any]:
        return iter(dot_images(12))


def test_held_out_data_of_unknown_length_with_a_limit_of_time() -> None:
    held_out = DataLoader(Stream(), batch_size=4)
    result = train(classifier(), val_loader=held_out, max_minutes=5.0)
    assert [row.held_out is not None for row in result.history] == [True, True]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_accelerate_is_left_on_the_model(
    precision: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    if fails:
        monkeypatch.setattr(engine, "TrainingProgress", None)  # fails after accelerate has prepared the model
        with pytest.raises(TypeError):
            train(model, epochs=1, mixed_precision=precision)
    else:
        train(model, epochs=1, mixed_precision=precision)
    for name, module in model.named_modules():
        assert vars(module) == before[name]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_own_forward_of_the_model_is_kept() -> None:
    model = classifier()
    own = model.forward = lambda images: nn.Sequential.forward(model, images)
    train(model, epochs=1)
    assert vars(model)["forward"] is own and "_original_forward" not in vars(model)
