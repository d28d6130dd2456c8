"""The Lightning callback in real trainings: rounds, checkpoints that resume to the same bits, averages, bad use."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.optional import skip_without

pytest.importorskip("lightning", reason="needs the extra 'lightning': pip install 'fec_fast[lightning]'")

import lightning.pytorch as pl  # noqa: E402
from lightning.pytorch import callbacks  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

import fec_fast  # noqa: E402
from fec_fast import Budget, PruningSchedule  # noqa: E402
from fec_fast.integrations import tested_versions  # noqa: E402
from fec_fast.integrations.lightning import PruningCallback  # noqa: E402
from helpers.states import assert_same_state, state  # noqa: E402
from helpers.training_loops import EXAMPLE, IMAGES, LABELS, network  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SCHEDULE = PruningSchedule.linear([3, 7, 10])


class Classifier(pl.LightningModule):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net = network(seed)

    def training_step(self, batch: Any, number: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def test_step(self, batch: Any, number: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3), "interval": "step"}]


def loader() -> DataLoader[Any]:
    """Four batches an epoch, always in one order."""
    return DataLoader(TensorDataset(IMAGES.flatten(0, 1)[:24], LABELS.flatten()[:24]), 6)


def callback(**options: Any) -> PruningCallback:
    return PruningCallback("net", EXAMPLE, **{"budget": Budget(macs=0.5), "schedule": SCHEDULE, **options})


def fit(module: Any, pruning: Any, *others: Any, ckpt_path: Any = None, package: Any = pl, **options: Any) -> Any:
    trainer = package.Trainer(
        **{"max_epochs": 4, "accelerator": "cpu", "logger": False, "enable_checkpointing": bool(others), **options},
        callbacks=[*others, pruning],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(), ckpt_path=ckpt_path)
    return trainer


def every_epoch(folder: Path) -> ModelCheckpoint:
    """Lightning does not skip the batches of an epoch that it resumes in the middle."""
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, save_on_train_epoch_end=True)


def test_it_trains_prunes_and_exports(tmp_path: Path) -> None:
    module, pruning = Classifier(), callback()
    trainer = fit(module, pruning)
    assert trainer.global_step == 16 and [made.steps for made in pruning.rounds] == [3, 7, 10]
    assert pruning.pruner.is_finished and pruning.rounds[-1].size_after <= pruning.rounds[0].size_before / 2
    fec_fast.save(pruning, tmp_path / "saved")
    again = fec_fast.load(network(5), tmp_path / "saved")
    assert_same_state(again, state(module.net))
    runtime = skip_without("onnxscript", "onnxruntime")
    again.eval()
    torch.onnx.export(again, (EXAMPLE,), str(tmp_path / "a.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "a.onnx"))
    (given,) = session.run(None, {session.get_inputs()[0].name: (EXAMPLE + 1).numpy()})
    torch.testing.assert_close(torch.from_numpy(given), again(EXAMPLE + 1).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "averaged"])
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path, averaged: bool) -> None:
    if averaged and not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this lightning has no EMAWeightAveraging")
    others = [callbacks.EMAWeightAveraging(decay=0.9)] if averaged else []
    whole = Classifier()
    pruning = callback()
    fit(whole, pruning, every_epoch(tmp_path), *others)
    for step in (4, 8, 12):
        resumed, again = Classifier(seed=5), callback()
        fresh = [callbacks.EMAWeightAveraging(decay=0.9)] if averaged else []
        fit(resumed, again, *fresh, ckpt_path=tmp_path / f"step={step}.ckpt", enable_checkpointing=False)
        assert again.plan == pruning.plan
        assert_same_state(resumed.net, state(whole.net))
    tested = Classifier(seed=6)
    trainer = pl.Trainer(logger=False, accelerator="cpu", callbacks=[callback()], enable_progress_bar=False)
    trainer.test(tested, loader(), ckpt_path=tmp_path / "step=8.ckpt", verbose=False)
    assert tested.net.stem.weight.shape == torch.load(tmp_path / "step=8.ckpt")["state_dict"]["net.stem.weight"].shape
    assert "on_load_checkpoint" not in vars(tested)


def test_epochs_and_accumulated_batches_are_counted_as_lightning_does() -> None:
    pruning = callback(schedule=PruningSchedule.one_shot(2, unit="epochs"))
    fit(Classifier(), pruning, max_epochs=3)
    assert [(made.epochs, made.steps) for made in pruning.rounds] == [(2, 8)]
    pruning = callback(schedule=PruningSchedule.one_shot(3))
    trainer = fit(Classifier(), pruning, accumulate_grad_batches=2, precision="bf16-mixed")
    assert trainer.global_step == 8 and [made.steps for made in pruning.rounds] == [3]


def test_a_second_training_goes_on(tmp_path: Path) -> None:
    module, pruning = Classifier(), callback(schedule=PruningSchedule.linear([3, 20]))
    trainer = fit(module, pruning)
    assert [made.steps for made in pruning.rounds] == [3]
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, loader())
    assert [made.steps for made in pruning.rounds] == [3, 20]
    fec_fast.save(pruning, tmp_path / "saved")
    assert_same_state(fec_fast.load(network(5), tmp_path / "saved"), state(module.net))
    other = Classifier(seed=1)
    fit(other, pruning, max_epochs=1)
    assert [made.steps for made in pruning.rounds] == [3] and pruning.model is other.net


def test_copies_in_the_module_are_narrowed_too(tmp_path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel

    class Averaging(Classifier):
        def __init__(self, seed: int = 0) -> None:
            super().__init__(seed)
            self.average = AveragedModel(self.net, use_buffers=True)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net.parameters(), lr=0.01)

        def on_train_batch_end(self, *args: Any) -> None:
            self.average.update_parameters(self.net)

    whole = Averaging()
    fit(whole, callback(copies=["average"]), every_epoch(tmp_path))
    resumed = Averaging(seed=5)
    fit(resumed, callback(copies=["average"]), ckpt_path=tmp_path / "step=4.ckpt")
    assert_same_state(resumed, state(whole))


def test_the_average_of_stochastic_weight_averaging_is_narrowed_too(tmp_path: Path) -> None:
    """After the last epoch the weights are the mean of those at the starts of all, of the channels that are left."""
    seen: list[tuple[int, dict[str, Tensor]]] = []

    class Averaged(Classifier):
        def on_train_epoch_start(self) -> None:
            weights = {name: each.detach().clone() for name, each in self.net.named_parameters()}
            seen.append((self.global_step, weights))

    def averaging() -> callbacks.Callback:
        return callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)

    module, pruning = Averaged(), callback()
    fit(module, pruning, averaging(), every_epoch(tmp_path))
    *starts, (_, averaged) = seen  # Lightning adds an epoch of its own, for the batch norms
    assert len(starts) == 4 and pruning.rounds[-1].steps > starts[2][0]
    for step, weights in starts:
        plans = [made.plan for made in pruning.rounds if made.steps > step]
        for plan, name in itertools.product(plans, weights):
            for axis, indices in plan.keep.get(name, {}).items():
                weights[name] = weights[name].index_select(int(axis), torch.tensor(indices))
    for name, average in averaged.items():
        torch.testing.assert_close(average, torch.stack([weights[name] for _, weights in starts]).mean(0))
    resumed, again = Averaged(seed=5), callback()
    fit(resumed, again, averaging(), ckpt_path=tmp_path / "step=8.ckpt", enable_checkpointing=False)
    assert again.plan == pruning.plan
    assert_same_state(resumed.net, state(module.net))


@pytest.mark.parametrize("own", [False, True], ids=["of the class", "of the module"])
def test_after_an_exception_the_module_is_as_it_was(own: bool) -> None:
    class Failing(Classifier):
        fails = True

        def training_step(self, batch: Any, number: int) -> Tensor:
            if self.fails:
                raise RuntimeError("a mistake of the user's")
            return super().training_step(batch, number)

    module, pruning = Failing(), callback()
    if own:
        module.on_load_checkpoint = print
    for fails in (True, False):
        module.fails = fails
        with pytest.raises(RuntimeError, match="a mistake of the user's") if fails else contextlib.nullcontext():
            fit(module, pruning)
        assert vars(module).get("on_load_checkpoint") is (print if own else None)


def test_a_training_that_ends_before_the_last_round_is_warned_of() -> None:
    pruning = callback(schedule=PruningSchedule.until_budget(3, 20, 0.2))
    with pytest.warns(fec_fast.FecWarning, match="the training ended .* 1 rounds made, the next one comes after 23 st"):
        fit(Classifier(), pruning)


def test_the_other_name_of_the_package_works_too(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Other(other.LightningModule):
        training_step, configure_optimizers = Classifier.training_step, Classifier.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net = network()

    pruning, module = callback(), Other()
    fit(module, pruning, package=other)
    reference = Classifier()
    fit(reference, callback())
    assert_same_state(module.net, state(reference.net))


def test_bad_use_is_named(tmp_path: Path) -> None:
    with pytest.raises(fec_fast.ArgumentError, match="network=None: give its name in the LightningModule"):
        PruningCallback(None, EXAMPLE, budget=Budget(macs=0.5), schedule=SCHEDULE)
    with pytest.raises(
        fec_fast.ArgumentError, match=re.escape("copies='ema': give a sequence of names, such as ('ema',)")
    ):
        callback(copies="ema")
    with pytest.raises(fec_fast.ArgumentError, match="no pruner yet: it is made by trainer.fit"):
        print(callback().plan)
    with pytest.raises(fec_fast.LayerError, match="the Classifier has no network 'nett'; nearest: 'net'"):
        fit(Classifier(), PruningCallback("nett", EXAMPLE, budget=Budget(macs=0.5), schedule=SCHEDULE))
    with pytest.raises(fec_fast.ArgumentError, match="schedule='now': give a fec_fast.PruningSchedule"):
        fit(Classifier(), callback(schedule="now"))
    weights_only = ModelCheckpoint(tmp_path, "last", every_n_train_steps=8, save_weights_only=True)
    fit(Classifier(), callback(), weights_only)
    with pytest.raises(fec_fast.CheckpointError, match="no state of the PruningCallback.*save_weights_only=False"):
        fit(Classifier(), callback(), ckpt_path=next(tmp_path.glob("last*.ckpt")))
    fit(Classifier(), callback(), every_epoch(tmp_path / "all"))
    with pytest.raises(fec_fast.CheckpointError, match="budget was 'macs=0.5' and is 'macs=0.4'"):
        fit(Classifier(), callback(budget=Budget(macs=0.4)), ckpt_path=tmp_path / "all" / "step=4.ckpt")


def test_versions_outside_the_tested_range_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, warned in (("2.3.3", True), ("2.4", False), ("2.6.9", False), ("2.7.0rc1", True), ("10.0", True)):
        monkeypatch.setattr(tested_versions, "version", lambda package, installed=installed: installed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tested_versions.warn_if_untested("lightning", "2.4", "2.6")
        assert bool(caught) == warned, installed
        assert not warned or f"lightning {installed} is installed, fec_fast was tested with 2.4 to 2.6" in str(
            caught[0].message
        )


def test_without_the_package_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fec_fast.integrations.lightning")
    with pytest.raises(fec_fast.MissingExtraError, match=re.escape("pip install 'fec_fast[lightning]'")):
        importlib.import_module("fec_fast.integrations.lightning")
