"""Training: it learns, it resumes to the same bits, and it names what is wrong before it starts."""

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fec_fast.training.finetuning import finetune
from fec_fast.utils.errors import ArgumentError, BackendError, CheckpointError, InputError, TrainingError
from fec_fast.utils.evaluation import evaluate
from helpers.training import Stops, numbers, same


def _data(count: int = 48, classes: int = 3) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 1, 6, 6, generator=generator) * 0.3
    images[torch.arange(count), 0, labels, labels] += 3.0
    return TensorDataset(images, labels)


def _loader(dataset: Any = None, batch_size: int = 16, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset or _data(), batch_size=batch_size, shuffle=True, **options)


def _model(classes: int = 3, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8 * 36, classes),
    )


def test_it_learns_and_tells_how() -> None:
    model = _model()
    before = evaluate(model, _loader())
    result = finetune(model, _loader(), epochs=6, lr=0.05, val_loader=_loader(), progress=False)
    assert result.model is model
    assert evaluate(model, _loader()) > max(before, 0.9)
    assert [row.epoch for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.history[-1].loss < result.history[0].loss
    assert result.history[-1].val_accuracy == evaluate(model, _loader())
    rates = [row.lr for row in result.history]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < 0.001 and rates[0] < 0.05


def test_without_held_out_data_there_is_no_held_out_accuracy() -> None:
    assert finetune(_model(), _loader(), epochs=1, progress=False).history[0].val_accuracy is None


def test_same_seed_same_bits_other_seed_others() -> None:
    models = [_model(), _model(), _model()]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        torch.rand(7)  # the state of the global generator has no say
        finetune(model, _loader(), epochs=2, seed=seed, progress=False)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_callers_random_state_and_modes_are_restored() -> None:
    model, teacher = _model(), _model().train()
    model.eval()
    model[1].train()
    torch.manual_seed(9)
    random.seed(9)
    expected = (torch.rand(3), random.random())
    torch.manual_seed(9)
    random.seed(9)
    finetune(model, _loader(), epochs=1, teacher=teacher, progress=False)
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]
    assert [m.training for m in model] == [False, True, False, False, False, False]
    assert teacher.training and "forward" not in model.__dict__


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("interrupted_after", [1, 3])
def test_resume_comes_to_the_same_bits(tmp_path: Path, own_generator: bool, interrupted_after: int) -> None:
    def loader() -> DataLoader[Any]:
        return _loader(generator=torch.Generator().manual_seed(2) if own_generator else None)

    held_out = DataLoader(_data(), batch_size=16)
    straight = _model()
    whole = finetune(straight, loader(), epochs=4, val_loader=held_out, progress=False)

    first = _model()
    with pytest.raises(KeyboardInterrupt):
        finetune(
            first,
            loader(),
            epochs=4,
            val_loader=Stops(held_out, interrupted_after),
            checkpoint=tmp_path / "state",
            progress=False,
        )
    assert (tmp_path / "state" / f"state-{interrupted_after:04d}.safetensors").is_file()
    second = _model()
    torch.manual_seed(77)
    resumed = finetune(
        second, loader(), epochs=4, val_loader=held_out, checkpoint=tmp_path / "state", resume=True, progress=False
    )
    assert same(second, straight)
    assert numbers(resumed.history) == numbers(whole.history)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["state-0004.safetensors", "training.json"]


def test_resume_of_a_finished_training_gives_its_model_and_history(tmp_path: Path) -> None:
    model = _model()
    done = finetune(model, _loader(), epochs=2, checkpoint=tmp_path / "s", progress=False)
    again = finetune(_model(), _loader(), epochs=2, checkpoint=tmp_path / "s", resume=True, progress=False)
    assert again.history == done.history and same(again.model, model)


def test_resume_with_nothing_there_warns_and_starts(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nothing to resume"):
        result = finetune(_model(), _loader(), epochs=1, checkpoint=tmp_path / "s", resume=True, progress=False)
    assert len(result.history) == 1


@pytest.mark.parametrize("damage", ["truncated", "edited", "version", "json", "gone"])
def test_damaged_state_is_refused_and_model_unchanged(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "s"
    finetune(_model(), _loader(), epochs=1, checkpoint=folder, progress=False)
    tensors, index = folder / "state-0001.safetensors", folder / "training.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "edited":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "version":
        index.write_text(json.dumps({**json.loads(index.read_text()), "version": 99}))
    elif damage == "json":
        index.write_text(index.read_text()[:-10])
    else:
        tensors.unlink()
    model = _model()
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match=str(folder)):
        finetune(model, _loader(), epochs=1, checkpoint=folder, resume=True, progress=False)
    assert same(model, before)


def test_state_of_another_training_or_model_is_refused(tmp_path: Path) -> None:
    finetune(_model(), _loader(), epochs=1, checkpoint=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match=r"lr was 0.02 and is 0.5; seed was 0 and is 1"):
        finetune(_model(), _loader(), epochs=1, lr=0.5, seed=1, checkpoint=tmp_path, resume=True, progress=False)
    narrow = _model()
    narrow[5] = nn.Linear(288, 4)
    with pytest.raises(CheckpointError, match="for another model"):
        finetune(narrow, _loader(), epochs=1, checkpoint=tmp_path, resume=True, progress=False)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    model = _model()
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match="left alone"):
        finetune(model, _loader(), epochs=1, checkpoint=tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="is a file"):
        finetune(model, _loader(), epochs=1, checkpoint=tmp_path / "thesis.tex", progress=False)
    assert same(model, before) and [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_teacher_pulls_the_student_towards_it(temperature: float) -> None:
    images, labels = _data().tensors
    contrary = DataLoader(TensorDataset(images, (labels + 1) % 3), batch_size=16)
    teacher = _model()
    finetune(teacher, contrary, epochs=6, lr=0.05, progress=False)
    frozen = copy.deepcopy(teacher)
    agreement = {}
    for weight in (0.0, 1.0):
        student = _model()
        finetune(
            student,
            _loader(),
            epochs=6,
            lr=0.05,
            teacher=teacher,
            distill_weight=weight,
            temperature=temperature,
            progress=False,
        )
        agreement[weight] = evaluate(student, contrary)
    assert agreement[1.0] > 0.9 and agreement[0.0] < 0.1
    assert same(teacher, frozen)


def test_label_smoothing_keeps_logits_smaller() -> None:
    plain, smooth = _model(dropout=0.0), _model(dropout=0.0)
    finetune(plain, _loader(), epochs=8, lr=0.05, progress=False)
    finetune(smooth, _loader(), epochs=8, lr=0.05, label_smoothing=0.3, progress=False)
    images = _data().tensors[0]
    with torch.no_grad():
        assert smooth.eval()(images).softmax(1).max(1)[0].mean() < plain.eval()(images).softmax(1).max(1)[0].mean()


def test_bf16_trains_and_leaves_float32_weights_and_no_wrapper() -> None:
    model = _model()
    finetune(model, _loader(), epochs=4, lr=0.05, mixed_precision="bf16", progress=False)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(_data().tensors[0]).dtype == torch.float32 and "forward" not in model.__dict__
    assert evaluate(model, _loader()) > 0.9
    # The precision of one call does not stick to the next.
    full = finetune(_model(), _loader(), epochs=1, progress=False).history[0].loss
    half = finetune(_model(), _loader(), epochs=1, mixed_precision="bf16", progress=False).history[0].loss
    assert full != half and full == pytest.approx(half, rel=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="float16 training works where there is a GPU")
def test_fp16_without_a_gpu_is_an_error_not_a_fallback() -> None:
    with pytest.raises(BackendError, match="fp16"):
        finetune(_model(), _loader(), epochs=1, mixed_precision="fp16", progress=False)
    finetune(_model(), _loader(), epochs=1, progress=False)


def test_precision_other_than_the_callers_accelerator_is_an_error_and_his_state_survives() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    own = Accelerator(mixed_precision="bf16")
    try:
        with pytest.raises(BackendError, match="mixed_precision='no'"):
            finetune(_model(), _loader(), epochs=1, progress=False)
        finetune(_model(), _loader(), epochs=1, mixed_precision="bf16", progress=False)
        assert own.mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state()


class _Poisoned(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """One image holds NaN."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = _data()[index]
        return (image * float("nan") if index == 40 else image), label


def test_nan_loss_names_the_step_and_keeps_the_weights(tmp_path: Path) -> None:
    loader = DataLoader(_Poisoned(), batch_size=16)
    model = _model()
    with pytest.raises(TrainingError, match=r"nan at step 3 \(epoch 1\).*no epoch was finished"):
        finetune(model, loader, epochs=2, checkpoint=tmp_path / "s", progress=False)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    with pytest.raises(TrainingError, match="no state was kept"):
        finetune(_model(), loader, epochs=2, progress=False)


def test_nan_loss_names_the_last_good_state(tmp_path: Path) -> None:
    class Late(_Poisoned):
        served = 0

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            self.served += 1
            # 16 served to the check, 48 to the first epoch
            return super().__getitem__(index) if self.served > 64 else _data()[index]

    with pytest.raises(TrainingError, match=rf"step 6 \(epoch 2\).*after epoch 1, in {tmp_path / 's'}"):
        finetune(_model(), DataLoader(Late(), batch_size=16), epochs=2, checkpoint=tmp_path / "s", progress=False)


class _Hidden(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Labels that cannot be listed without opening every image."""

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
    dataset = _data()
    dataset.tensors[1][0 if kind == "first batch" else 47] = label
    chosen = {
        "tensors": dataset,
        "targets": _Targets(dataset),
        "subset": Subset(_Targets(dataset), [1, 2, 3, 47]),
        "first batch": _Hidden(dataset),
    }[kind]
    model = _model()
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=rf"label {label} .*not one of the model's 3 classes \(0 to 2\)"):
        finetune(model, DataLoader(chosen, batch_size=2), epochs=1, progress=False)
    assert same(model, before)


def test_label_outside_the_classes_in_a_late_batch_is_named() -> None:
    dataset = _data()
    dataset.tensors[1][47] = 8
    with pytest.raises(InputError, match=r"label 8 in step 3 \(epoch 1\)"):
        finetune(_model(), DataLoader(_Hidden(dataset), batch_size=16), epochs=1, progress=False)


def test_a_subset_without_the_wrong_label_is_fine() -> None:
    dataset = _data()
    dataset.tensors[1][47] = 8
    finetune(_model(), DataLoader(Subset(dataset, range(40)), batch_size=20), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ([], "train_loader is empty"),
        (DataLoader(_data(), batch_size=100, drop_last=True), "train_loader is empty"),
        (iter(()), "no length"),
        ([torch.zeros(4, 1, 6, 6)], "pair of images"),
        ([(torch.zeros(4, 1, 6, 6), torch.zeros(4))], "integer labels"),
        ([(torch.zeros(4, 1, 6, 6), torch.zeros(3, dtype=torch.int64))], "pair of images"),
        ([(torch.zeros(4, 2, 6, 6), torch.zeros(4, dtype=torch.int64))], r"cannot be run .*\[4, 2, 6, 6\]"),
    ],
)
def test_bad_data_is_named_before_training(loader: Any, words: str) -> None:
    model = _model()
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=words):
        finetune(model, loader, epochs=1, progress=False)
    assert same(model, before)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"epochs": 0}, InputError, "epochs=0"),
        ({"epochs": 1.5}, ArgumentError, "epochs=1.5"),
        ({"lr": 0.0}, InputError, "lr=0.0"),
        ({"lr": float("nan")}, InputError, "lr=nan"),
        ({"lr": "fast"}, ArgumentError, "lr='fast'"),
        ({"momentum": 1.0}, InputError, "momentum=1.0"),
        ({"weight_decay": -1e-4}, InputError, "weight_decay"),
        ({"label_smoothing": 1.0}, InputError, "label_smoothing"),
        ({"distill_weight": 1.1}, InputError, "distill_weight"),
        ({"temperature": 0}, InputError, "temperature"),
        ({"mixed_precision": "fp61"}, InputError, "nearest: 'fp16'"),
        ({"resume": True}, ArgumentError, "checkpoint="),
        ({"val_loader": []}, InputError, "val_loader is empty"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        finetune(_model(), _loader(), **{"epochs": 1, "progress": False, **arguments})


def test_networks_that_cannot_be_trained() -> None:
    frozen = _model().requires_grad_(False)
    with pytest.raises(InputError, match="nothing to train"):
        finetune(frozen, _loader(), epochs=1, progress=False)
    with pytest.raises(InputError, match="only classifiers"):
        finetune(_model()[:3], _loader(), epochs=1, progress=False)
    model = _model()
    with pytest.raises(ArgumentError, match="the model itself"):
        finetune(model, _loader(), epochs=1, teacher=model, progress=False)
    with pytest.raises(InputError, match="the teacher has 4 classes and the model 3"):
        finetune(model, _loader(), epochs=1, teacher=_model(classes=4), progress=False)


def test_frozen_layers_stay(tmp_path: Path) -> None:
    model = _model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    finetune(model, _loader(), epochs=1, checkpoint=tmp_path / "s", progress=False)
    assert torch.equal(model[0].weight, before)


def test_missing_accelerate_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"pip install 'fec_fast\[train\]'"):
        finetune(_model(), _loader(), epochs=1)


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    finetune(_model(), _loader(), epochs=1)
    shown = capsys.readouterr()
    assert shown.out == "" and "epoch 1/1" in shown.err


def test_evaluate_counts_and_restores_modes() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3)

    model = Constant().train()
    assert evaluate(model, DataLoader(_data(), batch_size=7)) == pytest.approx(1 / 3)
    assert model.training
    with pytest.raises(InputError, match="empty"):
        evaluate(model, [])
