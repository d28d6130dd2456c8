"""The callback for transformers' Trainer in real trainings, and pruned models with their config."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="needs the extra 'transformers': pip install 'fec_fast[transformers]'")
pytest.importorskip("accelerate")

from transformers import (  # noqa: E402
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import fec_fast  # noqa: E402
from fec_fast import Budget, PruningSchedule  # noqa: E402
from fec_fast.integrations.transformers import PruningCallback, from_pretrained, save_pretrained  # noqa: E402
from helpers.states import assert_same_state, state  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLE = {"pixel_values": torch.zeros(2, 3, 16, 16)}
_DRAWN = torch.Generator().manual_seed(3)
IMAGES = torch.randn(24, 3, 16, 16, generator=_DRAWN)
LABELS = torch.randint(0, 5, (24,), generator=_DRAWN).tolist()
DATA = [{"pixel_values": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]


def resnet(seed: int = 0) -> Any:
    """A small ResNet with random weights; nothing is downloaded."""
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    return ResNetForImageClassification(config)


def callback(**options: Any) -> PruningCallback:
    options = {"budget": Budget(macs=0.5), "schedule": PruningSchedule.linear([3, 5, 8]), **options}
    return PruningCallback(options.pop("example_inputs", EXAMPLE), **options)


def trainer_of(model: Any, pruning: PruningCallback, out: Path, **options: Any) -> Trainer:
    settings = {
        **{"per_device_train_batch_size": 6, "num_train_epochs": 3, "learning_rate": 0.01, "use_cpu": True},
        **{"save_strategy": "steps", "save_steps": 1, "report_to": [], "disable_tqdm": True, "seed": 3},
        **{"warmup_steps": 2, "lr_scheduler_type": "cosine", "logging_strategy": "no", **options},
    }
    return Trainer(model, TrainingArguments(str(out), **settings), train_dataset=DATA, callbacks=[pruning])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PruningCallback, Path]:
    """A model after twelve steps with three rounds, and all its checkpoints."""
    out = tmp_path_factory.mktemp("trainer")
    model, pruning = resnet(), callback()
    trainer_of(model, pruning, out).train()
    return model, pruning, out


def test_it_trains_and_prunes_at_the_steps_of_the_schedule(trained) -> None:
    model, pruning, _ = trained
    assert [made.steps for made in pruning.rounds] == [3, 5, 8] and pruning.pruner.is_finished
    assert pruning.rounds[-1].size_after <= pruning.rounds[0].size_before / 2
    assert not model._load_state_dict_pre_hooks


@pytest.mark.parametrize("step", [2, 3, 6, True])
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(trained, tmp_path: Path, step: int) -> None:
    whole, pruning, out = trained
    checkpoint = True if step is True else out / f"checkpoint-{step}"
    model, again = resnet(seed=5), callback(resume_from_checkpoint=checkpoint)
    trainer = trainer_of(model, again, out if step is True else tmp_path, save_strategy="no")
    trainer.train(resume_from_checkpoint=checkpoint if step is True else str(checkpoint))
    assert again.plan == pruning.plan
    assert_same_state(model, state(whole))


class CtrlC(TrainerCallback):
    """Ends a training after a step, once, before its checkpoint is written."""

    def __init__(self, step: int) -> None:
        self.step: int | None = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = None
            raise KeyboardInterrupt


def interrupted(step: int, out: Path) -> tuple[Trainer, PruningCallback]:
    pruning = callback()
    trainer = trainer_of(resnet(), pruning, out)
    trainer.add_callback(CtrlC(step))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer, pruning


def test_the_same_trainer_goes_on_from_the_checkpoint_not_from_what_is_in_memory(trained, tmp_path: Path) -> None:
    whole, reference, out = trained
    trainer, pruning = interrupted(7, tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert [made.steps for made in pruning.rounds] == [3, 5, 8] and pruning.plan == reference.plan
    assert_same_state(trainer.model, state(whole))
    assert not trainer.model._load_state_dict_pre_hooks
    shutil.copytree(out / "checkpoint-9", tmp_path / "elsewhere")
    with pytest.raises(fec_fast.CheckpointError, match=r"starts at step 9, and .* has no checkpoint-9: the same Trai"):
        shutil.rmtree(tmp_path / "checkpoint-9")
        trainer.train(resume_from_checkpoint=str(tmp_path / "elsewhere"))


def test_a_model_that_was_narrowed_after_the_checkpoint_is_not_loaded_into(tmp_path: Path) -> None:
    trainer, _ = interrupted(5, tmp_path)
    before = state(trainer.model)
    with pytest.raises(fec_fast.CheckpointError, match="another round of pruning. To resume from it, make a new model"):
        trainer.train(resume_from_checkpoint=True)
    assert_same_state(trainer.model, before)


def test_a_training_that_ends_before_the_last_round_is_warned_of(tmp_path: Path) -> None:
    pruning = callback()
    trainer = trainer_of(resnet(), pruning, tmp_path, save_strategy="no", max_steps=4)
    with pytest.warns(fec_fast.FecWarning, match="1 of 3 rounds made, missing those after 5 steps, 8 steps; train lon"):
        trainer.train()
    with pytest.warns(fec_fast.FecWarning, match="saved before the last round of pruning: macs .* after 4 steps"):
        save_pretrained(pruning.pruner, tmp_path / "pruned")


def test_a_model_is_saved_with_its_config_and_loaded_by_its_plan(trained, tmp_path: Path) -> None:
    model, pruning, _ = trained
    folder = save_pretrained(pruning, tmp_path / "pruned-resnet")
    assert save_pretrained(pruning, folder) == folder  # replaces it
    for kind in (ResNetForImageClassification, AutoModelForImageClassification):
        again = from_pretrained(kind, folder)
        assert_same_state(again, state(model))
        assert again.config.hidden_sizes == [8, 16] and again.config.id2label == model.config.id2label
        assert not again.training and again.config.architectures == ["ResNetForImageClassification"]
    with pytest.raises(fec_fast.ArgumentError, match="model_class=5: give a class of models, such as .*ResNetForImage"):
        from_pretrained(5, folder)
    with pytest.raises(fec_fast.CheckpointError, match="has no config.json or no folder 'pruned'"):
        from_pretrained(ResNetForImageClassification, tmp_path)
    with pytest.raises(fec_fast.CheckpointError, match="something other than a pruned model"):
        save_pretrained(pruning, tmp_path)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(fec_fast.CheckpointError, match="not a folder but a symbolic link; give the folder .*-resnet"):
        save_pretrained(pruning, tmp_path / "link")
    with pytest.raises(fec_fast.ArgumentError, match="expected a PreTrainedModel, got a Sequential"):
        save_pretrained(
            fec_fast.prune(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)), IMAGES[:1], recover=None), folder
        )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"auto_map": {"AutoConfig": "code.Config"}}, "has 'auto_map', which names code"),
        ({"text": [{"trust_remote_code": True}]}, "has 'trust_remote_code', which names code"),
        ({"_attn_implementation_internal": "owner/name"}, "has '_attn_implementation_internal', which names code"),
        ({"backbone": "resnet18", "use_pretrained_backbone": True}, "which downloads weights"),
        ({"hidden_sizes": [60_000, 60_000]}, "needs far more than the one that was pruned"),
        ({"depths": [1, 100_000]}, "needs far more than the one that was pruned"),
        ({"model_type": "none"}, "no network can be built from it"),
        ({"embedding_size": None}, "no network can be built from it"),
    ],
)
def test_a_config_of_a_stranger_neither_runs_code_nor_fills_the_memory(trained, tmp_path, edit, message) -> None:
    folder = save_pretrained(trained[1], tmp_path / "pruned-resnet")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | edit))
    with pytest.raises(fec_fast.CheckpointError, match=message):
        from_pretrained(AutoModelForImageClassification, folder)


def test_stock_code_says_that_sizes_differ(trained) -> None:
    """What a user meets who loads a checkpoint of the Trainer without the plan."""
    with pytest.raises(RuntimeError, match="size"):
        ResNetForImageClassification.from_pretrained(trained[2] / "checkpoint-12")


def test_accumulated_batches_and_epochs_are_counted_as_the_trainer_does(tmp_path: Path) -> None:
    pruning = callback(schedule=PruningSchedule.one_shot(2, unit="epochs"))
    trainer = trainer_of(resnet(), pruning, tmp_path, save_strategy="no", gradient_accumulation_steps=2, bf16=True)
    trainer.train()
    assert trainer.state.global_step == 6
    assert [(made.epochs, made.steps) for made in pruning.rounds] == [(2, 4)]


def test_a_second_training_goes_on(tmp_path: Path) -> None:
    pruning = callback(schedule=PruningSchedule.linear([3, 15]))
    trainer = trainer_of(resnet(), pruning, tmp_path, save_strategy="no")
    trainer.train()
    assert [made.steps for made in pruning.rounds] == [3]
    trainer.train()
    assert [made.steps for made in pruning.rounds] == [3, 15]


def test_bad_use_is_named(trained, tmp_path: Path) -> None:
    _, _, out = trained
    pruned = str(out / "checkpoint-6")
    with pytest.raises(fec_fast.ArgumentError, match="resume_from_checkpoint=5: give a path"):
        callback(resume_from_checkpoint=5)
    with pytest.raises(fec_fast.ArgumentError, match="no pruner yet: it is made by trainer.train"):
        print(callback().plan)
    with pytest.raises(fec_fast.CheckpointError, match="of another round of pruning. To resume from it, "):
        trainer_of(resnet(), callback(), tmp_path).train(resume_from_checkpoint=pruned)
    with pytest.raises(fec_fast.CheckpointError, match="starts at step 0, the pruning at step 6: give the same"):
        trainer_of(resnet(), callback(resume_from_checkpoint=pruned), tmp_path).train()
    with pytest.raises(fec_fast.CheckpointError, match="resume_from_checkpoint=True: there is no checkpoint in"):
        trainer_of(resnet(), callback(resume_from_checkpoint=True), tmp_path)
    with pytest.raises(fec_fast.CheckpointError, match="has no fec_fast_pruning.json: give a checkpoint of a training"):
        trainer_of(resnet(), callback(resume_from_checkpoint=tmp_path), tmp_path)
    with pytest.raises(fec_fast.CheckpointError, match="budget was 'macs=0.5' and is 'macs=0.4'"):
        again = callback(resume_from_checkpoint=pruned, budget=Budget(macs=0.4))
        trainer_of(resnet(), again, tmp_path).train(resume_from_checkpoint=pruned)
    (tmp_path / "fec_fast_pruning.json").write_text(json.dumps({"pruner": {}}))
    with pytest.raises(fec_fast.CheckpointError, match="was edited or damaged"):
        trainer_of(resnet(), callback(resume_from_checkpoint=tmp_path), tmp_path)
    with pytest.raises(fec_fast.InputError, match="example inputs"):
        trainer_of(resnet(), callback(example_inputs=torch.zeros(1, 4, 16, 16)), tmp_path).train()


def test_a_model_of_model_init_is_pruned_anew_in_every_training(tmp_path: Path) -> None:
    pruning = callback(schedule=PruningSchedule.one_shot(2))
    settings = TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, report_to=[], save_strategy="no")
    trainer = Trainer(model_init=lambda: resnet(), args=settings, train_dataset=DATA, callbacks=[pruning])
    for _ in range(2):
        trainer.train()
        assert [made.steps for made in pruning.rounds] == [2] and pruning.model is trainer.model


def test_without_the_package_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "fec_fast.integrations.transformers")
    with pytest.raises(fec_fast.MissingExtraError, match=re.escape("pip install 'fec_fast[transformers]'")):
        importlib.import_module("fec_fast.integrations.transformers")
