"""Classification: metrics, and labels outside the classes."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import fec_fast
from fec_fast.training.finetuning import finetune
from fec_fast.training.tasks.classification import Classification
from fec_fast.utils.errors import InputError
from helpers.comparison import same_weights
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
