"""Classification: metrics, and labels outside the classes."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import fec_fast
from fec_fast.training.finetuning import finetune
from fec_fast.training.tasks.classification import Classification
from fec_fast.utils.errors import InputError
from helpers.comparison import same_weights
from helpers.states import assert_same_state, state
from helpers.training import classifier, dot_images, dot_loader, dropout_classifier


def test_metrics_are_counted_rightly() -> None:
    model = classifier(classes=8)
    data = dot_images(40, classes=8)
    metrics = Classification().evaluate(model, DataLoader(data, batch_size=7))
    with torch.no_grad():
        logits = model.eval()(data.tensors[0])
    top = logits.topk(5).indices == data.tensors[1][:, None]
    assert metrics == pytest.approx(
        {
            "accuracy": float(top[:, 0].double().mean()),
            "top5": float(top.any(1).double().mean()),
            "loss": float(nn.functional.cross_entropy(logits, data.tensors[1])),
        }
    )
    assert metrics["accuracy"] == pytest.approx(fec_fast.evaluate(model, DataLoader(data, batch_size=9)))
    assert set(Classification().evaluate(classifier(), dot_loader())) == {"accuracy", "loss"}


class _Hidden(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Images whose labels cannot be listed without opening every image."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.dataset[index]
        return image, label


class _Targets(_Hidden):
    """Lists its labels as torchvision's data sets do."""

    @property
    def targets(self) -> list[int]:
        labels: list[int] = self.dataset.tensors[1].tolist()
        return labels


@pytest.mark.parametrize("kind", ["tensors", "targets", "subset", "first batch"])
@pytest.mark.parametrize("label", [3, -1])
def test_label_outside_the_classes_is_found_before_training(kind: str, label: int) -> None:
    dataset = dot_images()
    dataset.tensors[1][0 if kind == "first batch" else 47] = label
    chosen = {
        "tensors": dataset,
        "targets": _Targets(dataset),
        "subset": Subset(_Targets(dataset), [1, 2, 3, 47]),
        "first batch": _Hidden(dataset),
    }[kind]
    model = dropout_classifier()
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=rf"label {label} .*not one of the model's 3 classes \(0 to 2\)"):
        finetune(model, DataLoader(chosen, batch_size=2), epochs=1, progress=False)
    assert same_weights(model, before)


def test_label_outside_the_classes_in_a_late_batch_is_named() -> None:
    dataset = dot_images()
    dataset.tensors[1][47] = 8
    with pytest.raises(InputError, match=r"label 8 in step 3 \(epoch 1\)"):
        finetune(dropout_classifier(), DataLoader(_Hidden(dataset), batch_size=16), epochs=1, progress=False)


def test_a_subset_without_the_wrong_label_is_fine() -> None:
    dataset = dot_images()
    dataset.tensors[1][47] = 8
    finetune(dropout_classifier(), DataLoader(Subset(dataset, range(40)), batch_size=20), epochs=1, progress=False)


class WithAuxiliary(NamedTuple):
    """What torchvision's GoogLeNet returns in training mode."""

    logits: Tensor
    aux_logits2: Tensor | None
    aux_logits1: Tensor


class Inception(nn.Module):
    """A classifier that returns something else in training mode."""

    def __init__(self, in_training: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.main, self.side, self.in_training = classifier(), classifier(), in_training

    def forward(self, images: Tensor) -> Any:
        logits = self.main(images)
        return self.in_training(logits, self.side(images)) if self.training else logits


def test_auxiliary_classifiers_of_training_mode_are_trained() -> None:
    images, labels = dot_images().tensors
    model = Inception(lambda logits, side: WithAuxiliary(logits, None, side)).train()
    before = copy.deepcopy(model)
    result = finetune(model, [(images, labels)], epochs=1, lr=0.1, momentum=0.0, weight_decay=0.0, progress=False)
    logits, _, side = before(images)
    loss = nn.functional.cross_entropy(logits, labels) + 0.3 * nn.functional.cross_entropy(side, labels)
    loss.backward()
    assert result.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    wanted = before.side[0].weight - 0.1 * before.side[0].weight.grad
    assert torch.allclose(model.side[0].weight, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("in_training", "words"),
    [
        (lambda logits, side: (logits, side), r"a tuple \(float32 \[16, 3\], float32 \[16, 3\]\) in training mode"),
        (lambda logits, side: {"logits": logits}, r"a dict .* in training mode"),
        (lambda logits, side: logits[:, :2], r"\[16, 2\]\) in training mode and logits \[16, 3\] in evaluation mode"),
        (lambda logits, side: WithAuxiliary(logits, None, side[:, :2]), "WithAuxiliary .* in training mode"),
        (lambda logits, side: side / None, "cannot be run on the images of train_loader in training mode"),
    ],
)
def test_other_outputs_in_training_mode_are_refused_before_anything_changes(in_training: Any, words: str) -> None:
    model = Inception(in_training)
    before = state(model)
    with pytest.raises(InputError, match=words):
        finetune(model, dot_loader(), epochs=1, progress=False)
    assert_same_state(model, before)


def test_hooks_on_gradients_in_training_mode_are_no_reason_to_refuse() -> None:
    seen: list[Tensor] = []

    def hooked(logits: Tensor, side: Tensor) -> Tensor:
        logits.register_hook(seen.append)
        return logits

    finetune(Inception(hooked), [dot_images().tensors], epochs=1, progress=False)
    assert len(seen) == 1  # in the step alone: the check before computes no gradients


def test_a_last_batch_of_one_image_is_refused_where_batch_norm_cannot_take_it() -> None:
    model = nn.Sequential(classifier(), nn.BatchNorm1d(3))
    before = state(model)
    with pytest.raises(InputError, match=r"the last batch of train_loader, one image \(drop_last=True leaves it out\)"):
        finetune(model, dot_loader(16, count=33), epochs=1, progress=False)
    assert_same_state(model, before)
    finetune(model, dot_loader(16, count=33, drop_last=True), epochs=1, progress=False)
    finetune(classifier(), dot_loader(16, count=33), epochs=1, progress=False)  # batch norm of maps can take it


def test_an_empty_batch_is_named() -> None:
    images, labels = dot_images().tensors
    with pytest.raises(InputError, match=r"train_loader: a batch has no images at step 2 \(epoch 1\)"):
        finetune(classifier(), [(images, labels), (images[:0], labels[:0])], epochs=1, progress=False)
