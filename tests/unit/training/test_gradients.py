"""Gradients before a step, and what a training begins with: loaders, teachers, the caller's own state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fec_fast import ArgumentError, TrainingError
from fec_fast.training.gradients import accumulation_scale
from fec_fast.training.history import Epoch, best_epoch_of
from helpers.comparison import same_weights
from helpers.training import classifier, dot_images, dot_loader, train


class RootOfZero(nn.Module):
    """Its loss is finite, the gradient of a root at 0 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, x: Tensor) -> Tensor:
        first = next(self.inner.parameters())
        return self.inner(x) + (first * 0).sum().sqrt()


def test_a_gradient_that_is_not_finite_ends_the_training_before_the_step(tmp_path: Path) -> None:
    model = RootOfZero()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingError, match=r"finite, but not its gradient, at step 1 .*inner\.\S+ is the first such"):
        train(model, epochs=2, checkpoint=tmp_path / "state")
    assert all(torch.equal(before[name], each) for name, each in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_from_before_the_training_have_no_part_in_it() -> None:
    fresh, used = classifier(), classifier()
    used.load_state_dict(fresh.state_dict())
    next(used.parameters()).requires_grad_(False)
    next(fresh.parameters()).requires_grad_(False)
    for parameter in used.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    results = [train(model, epochs=1, clip_norm=0.5) for model in (fresh, used)]
    assert same_weights(results[0].model, results[1].model)


class Scaled(DataLoader):
    """Changes the batches of the data set, as loaders do that normalise on a GPU."""

    def __iter__(self) -> Iterator[Any]:
        for images, labels in super().__iter__():
            yield images / 255, labels


def test_what_a_loader_does_in_its_own_iter_is_trained_on() -> None:
    plain = dot_loader(shuffle=False)
    scaled = Scaled(plain.dataset, batch_size=plain.batch_size)
    given = [(images / 255, labels) for images, labels in plain]
    results = [train(classifier(), loader=loader, epochs=1, val_loader=loader) for loader in (scaled, given, plain)]
    assert same_weights(results[0].model, results[1].model)
    assert not same_weights(results[0].model, results[2].model)
    with pytest.raises(ArgumentError, match="accumulate=2 needs a torch DataLoader without an __iter__ of its own"):
        train(classifier(), loader=scaled, epochs=1, accumulate=2)


class Longer(list):
    """Has more batches than its length says."""

    def __len__(self) -> int:
        return 2


def test_batches_beyond_the_length_are_reported() -> None:
    with pytest.warns(UserWarning, match="gave more batches in epoch 1, its length is 2: the rest is left out"):
        train(classifier(), loader=Longer(dot_loader(shuffle=False)), epochs=1)


def test_a_teacher_that_shares_weights_is_refused() -> None:
    model = classifier()
    for teacher in (model, nn.DataParallel(model), nn.Sequential(*model)):
        with pytest.raises(ArgumentError, match="teacher has parameters of the model itself; give a copy"):
            train(model, epochs=1, teacher=teacher)


def test_no_training_without_gradients() -> None:
    with torch.no_grad(), pytest.raises(ArgumentError, match=r"inside torch\.no_grad\(\): call finetune outside"):
        train(classifier(), epochs=1)


def test_the_scale_of_the_last_group() -> None:
    assert [accumulation_scale(number, 4, 6) for number in range(6)] == [1, 1, 1, 1, 2, 2]


def test_an_epoch_whose_metric_is_no_number_is_not_the_best() -> None:
    history = [Epoch(n, 1.0, {}, {"mAP": value}, 0.1, 8, 1.0) for n, value in enumerate((float("nan"), 0.2, 0.9), 1)]
    assert best_epoch_of(history, "mAP") == 3
    assert best_epoch_of(history[:1], "mAP") == 1


class WritesToItsInput(nn.Module):
    """Normalises in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(2).add_(1))


def test_a_model_may_write_to_its_input() -> None:
    model, teacher = WritesToItsInput(), WritesToItsInput()
    batches = [(images.clone(), labels) for images, labels in dot_loader(shuffle=False)]
    before = copy.deepcopy(batches)
    train(model, loader=batches, epochs=2, teacher=teacher)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(before, batches, strict=True))
    plain, plain_teacher = classifier(), classifier()
    train(plain, loader=[(images * 2 + 1, labels) for images, labels in before], epochs=2, teacher=plain_teacher)
    assert same_weights(model.inner, plain)


def test_a_loader_that_accelerate_has_prepared_is_one_that_can_be_shared() -> None:
    from accelerate import Accelerator

    from fec_fast.training.batches import is_plain

    plain = dot_loader(shuffle=False)
    prepared = Accelerator(cpu=True).prepare_data_loader(plain)
    assert is_plain(plain) and is_plain(prepared) and not is_plain(Scaled(plain.dataset)) and not is_plain([])
    results = [train(classifier(), loader=loader, epochs=1, accumulate=2) for loader in (plain, prepared)]
    assert same_weights(results[0].model, results[1].model)


class Stateful(DataLoader):
    """As torchdata's, which is not installed here: an ``__iter__`` that gives the same batches."""

    def __iter__(self) -> Any:
        return super().__iter__()


Stateful.__iter__.__module__ = "torchdata.stateful_dataloader.stateful_dataloader"


def test_a_stateful_loader_of_torchdata_is_one_that_can_be_shared() -> None:
    options = {"accumulate": 2, "epochs": 2}
    found = train(classifier(), loader=Stateful(dot_images(), batch_size=16, shuffle=True), **options)
    assert same_weights(found.model, train(classifier(), loader=dot_loader(), **options).model)

    class Changed(Stateful):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(ArgumentError, match="without an __iter__ of its own"):
        train(classifier(), loader=Changed(dot_images(), batch_size=16), **options)
