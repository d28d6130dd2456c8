"""Distillation: the student follows its teacher, in its outputs and in its features."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fec_fast.training.distillation import attention_distance
from fec_fast.training.finetuning import finetune
from fec_fast.utils.errors import ArgumentError, FecWarning, InputError, LayerError
from fec_fast.utils.evaluation import evaluate
from helpers.comparison import same_weights
from helpers.training import classifier, dot_images, dropout_classifier, train


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_teacher_pulls_the_student_towards_it(temperature: float) -> None:
    images, labels = dot_images().tensors
    contrary = DataLoader(TensorDataset(images, (labels + 1) % 3), batch_size=16)
    teacher = dropout_classifier()
    finetune(teacher, contrary, epochs=6, lr=0.05, progress=False)
    frozen = copy.deepcopy(teacher)
    agreement = {}
    for weight in (0.0, 1.0):
        student = dropout_classifier()
        train(student, epochs=6, lr=0.05, teacher=teacher, distill_weight=weight, temperature=temperature)
        agreement[weight] = evaluate(student, contrary)
    assert agreement[1.0] > 0.9 and agreement[0.0] < 0.1
    assert same_weights(teacher, frozen)


def test_attention_maps_do_not_depend_on_widths() -> None:
    features = torch.randn(3, 5, 4, 4)
    doubled = torch.cat([features, features], 1) * 7
    assert float(attention_distance(features, doubled)) < 1e-10
    assert 0 < float(attention_distance(features, torch.randn(3, 9, 4, 4))) <= 2
    # The formula, image by image.
    other = torch.randn(3, 9, 4, 4)
    maps = [[(x**2).mean(0) / (x**2).mean(0).norm() for x in batch.double()] for batch in (features, other)]
    wanted = sum(float(((a - b) ** 2).sum()) for a, b in zip(*maps, strict=True)) / 3
    assert float(attention_distance(features, other)) == pytest.approx(wanted, rel=1e-5)


def test_imitated_features_become_more_similar() -> None:
    images = dot_images().tensors[0]
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(16 * 36, 3))
    apart = {}
    for weight in (0.0, 5.0):
        student = classifier()
        train(
            student,
            epochs=6,
            teacher=teacher,
            distill_weight=0.0,
            feature_layers={"2": "1"},
            feature_weight=weight,
        )
        with torch.no_grad():
            apart[weight] = float(attention_distance(student.eval()[:3](images), teacher[:2](images)))
        assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))
    assert apart[5.0] < 0.7 * apart[0.0]


def test_features_that_do_not_fit_are_named() -> None:
    teacher = classifier()
    for layers, error, words in (
        (["7"], LayerError, "no module '7'"),
        (["3"], InputError, r"'3' returns float32 \[16, 288\]"),
        ({"0": "pooled"}, LayerError, "'pooled'"),
        ("2", ArgumentError, "feature_layers='2'"),
    ):
        with pytest.raises(error, match=words):
            train(classifier(), teacher=teacher, feature_layers=layers)
    with pytest.raises(ArgumentError, match="needs a teacher"):
        train(classifier(), feature_layers=["2"])
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InputError, match=r"maps of \[6, 6\] and the teacher's '1' of \[4, 4\]"):
        train(classifier(), teacher=pooled, feature_layers={"2": "1"})


class Skipping(nn.Module):
    """A layer that training mode skips: in every other run, or always."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.layer, self.always, self.runs = nn.Conv2d(4, 4, 3, padding=1), always, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += self.training
        return x if self.training and (self.always or self.runs % 2) else x + self.layer(x)


@pytest.mark.parametrize("always", [False, True])
def test_a_layer_that_a_step_skips_is_left_out_of_it(always: bool) -> None:
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(nn.Conv2d(1, 4, 3), Skipping(always=always), nn.Flatten(), nn.Linear(64, 3)) for _ in range(2)
    )
    before = student[1].layer.weight.detach().clone()
    warned = pytest.warns(FecWarning, match="'1.layer' was never run in training") if always else nullcontext()
    with warned:
        train(student, teacher=teacher, feature_layers=["1.layer"], feature_weight=100.0)
    assert torch.equal(student[1].layer.weight, before) == always
