"""Lightning: a callback that prunes a network in rounds while Lightning's ``Trainer`` trains it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..pruning.allocation.budget import Budget
from ..pruning.during_training.schedule import PruningSchedule
from ..pruning.during_training.stored_state import narrow_as_stored
from ..pruning.during_training.training_pruner import TrainingPruner
from ..utils.errors import ArgumentError, CheckpointError, LayerError, missing_extra, nearest
from . import trainer_callback
from .tested_versions import warn_if_untested

_PACKAGES = {"lightning.pytorch": "lightning", "pytorch_lightning": "pytorch-lightning"}


def _callback_classes() -> tuple[Any, Any]:
    """``Callback`` and ``StochasticWeightAveraging`` of the package that the caller has imported, if one of the two."""
    failure: Exception | None = None
    for module, package in sorted(_PACKAGES.items(), key=lambda item: item[0] not in sys.modules):
        try:
            imported = importlib.import_module(module)
            kinds = imported.Callback, imported.callbacks.StochasticWeightAveraging
        except (ImportError, AttributeError) as error:
            failure = error
            continue
        warn_if_untested(package, "2.4", "2.6")
        return kinds
    raise missing_extra("lightning", "lightning", "fec_fast.integrations.lightning", failure) from failure


_Callback: Any
_StochasticAveraging: Any
_Callback, _StochasticAveraging = _callback_classes()


class PruningCallback(trainer_callback.TrainerCallback, _Callback):  # type: ignore[misc]
    """Prunes a network of a ``LightningModule`` in rounds, in place; see :class:`fec_fast.TrainingPruner`.

    ``trainer.fit(module, loader, ckpt_path=...)`` resumes: a new module at full width is narrowed before Lightning
    loads its weights. A second ``fit`` of the same module goes on with the rounds of the first. After the training,
    ``fec_fast.save(callback, folder)`` writes the network with its plan.

    Attributes:
        pruner: The ``TrainingPruner`` of the last training; ``None`` before the first.
        model: The network that is pruned; ``fec_fast.save(callback, folder)`` takes it from here.
        plan: All rounds so far as one plan against the original network; ``None`` before the first.
        rounds: The rounds that were made.
    """

    _started_by = "trainer.fit"

    def __init__(
        self,
        network: str,
        example_inputs: Any,
        *,
        budget: Budget,
        schedule: PruningSchedule,
        copies: Sequence[str] = (),
        images: Any = None,
        **options: Any,
    ) -> None:
        """Stores the arguments; they are checked when the training starts.

        Args:
            network: The name of the network in the ``LightningModule``, such as ``"net"`` for ``self.net``.
            example_inputs: What the network is called on, as for :func:`fec_fast.prune`, on its device.
            budget: The size after the last round.
            schedule: The rounds.
            copies: The names of averages of the network's weights in the ``LightningModule``. Those of Lightning's
                callbacks ``WeightAveraging`` and ``StochasticWeightAveraging`` are found.
            images: What every round is recovered on, if the schedule says so.
            **options: For :func:`fec_fast.prune`.
        """
        super().__init__()
        if not isinstance(network, str) or not network:
            raise ArgumentError(f"network={network!r:.80}: give its name in the LightningModule, such as 'net'")
        if isinstance(copies, str):
            raise ArgumentError(f"copies={copies!r:.80}: give a sequence of names, such as ({copies!r:.80},)")
        self._network, self._copies, self._example_inputs = network, tuple(copies), example_inputs
        self._options = {"budget": budget, "schedule": schedule, "images": images, **options}
        self._stored: Mapping[str, Any] | None = None
        self._hook: Any = None
        self._own_hook: Any = None  # what the module had in place of its class's method

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Sees to it that the network is narrowed before weights of a checkpoint are loaded.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            LayerError: The module has no network or copy of this name.
        """
        self._named(pl_module, self._network)
        self._stored = None
        given = pl_module.on_load_checkpoint

        # Lightning loads the weights before it calls callbacks, but after this hook of the module.
        def narrow_first(checkpoint: dict[str, Any]) -> Any:
            self._narrow(trainer, pl_module, checkpoint)
            return given(checkpoint)

        self._own_hook, self._hook = vars(pl_module).get("on_load_checkpoint"), narrow_first
        pl_module.on_load_checkpoint = narrow_first

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Takes the hook of :meth:`setup` off the module.

        Args:
            trainer: The trainer.
            pl_module: The module.
            stage: Not used.
        """
        self._take_hook_off(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Takes the hook off too: Lightning calls no ``teardown`` after an exception.

        Args:
            trainer: The trainer.
            pl_module: The module.
            exception: Not used.
        """
        self._take_hook_off(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the pruner: the optimizers exist, their states are not loaded yet.

        Args:
            trainer: The trainer.
            pl_module: The module.

        Raises:
            FecError: As :class:`fec_fast.TrainingPruner` says.
        """
        wrapper, network = trainer.strategy.model, self._named(pl_module, self._network)
        self.pruner = TrainingPruner(
            network,
            list(trainer.optimizers),
            self._example_inputs,
            copies=self._averages(trainer, pl_module),
            ddp=wrapper if isinstance(wrapper, DistributedDataParallel) else None,
            state=self._earlier_state(network) if self._stored is None else self._stored,
            **self._options,
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the optimizer's steps and makes a round if one is due.

        Args:
            trainer: The trainer.
            pl_module: The module.
            outputs: Not used.
            batch: Not used.
            batch_idx: Not used.
        """
        self._trained().step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Counts an epoch and makes a round if one is due.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
        self._trained().end_epoch()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Warns if rounds are left.

        Args:
            trainer: The trainer.
            pl_module: The module.
        """
        if trainer.is_global_zero:
            self._warn_of_missing_rounds()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning writes into its checkpoints."""
        return {} if self.pruner is None else self.pruner.state_dict()

    def _take_hook_off(self, pl_module: Any) -> None:
        if self._hook is None or vars(pl_module).get("on_load_checkpoint") is not self._hook:
            return
        del pl_module.on_load_checkpoint
        if self._own_hook is not None:
            pl_module.on_load_checkpoint = self._own_hook
        self._hook = None

    def _narrow(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """Narrows the network and its copies as a checkpoint says, before its weights are loaded."""
        stored = checkpoint.get("callbacks", {}).get(self.state_key)
        if stored:
            averages = self._averages(trainer, pl_module)
            narrow_as_stored(stored, self._named(pl_module, self._network), averages)
            self._stored = stored
            return
        weights, own = checkpoint["state_dict"], pl_module.state_dict()
        for name in own.keys() & weights.keys():
            if name.startswith(f"{self._network}.") and weights[name].shape != own[name].shape:
                raise CheckpointError(
                    f"the checkpoint has {name} of shape {list(weights[name].shape)}, the module "
                    f"{list(own[name].shape)}, and no state of the PruningCallback that would say how to narrow it: "
                    "write it with save_weights_only=False and with this callback"
                )

    def _averages(self, trainer: Any, pl_module: Any) -> list[nn.Module]:
        """The copies of the network: those named, and those that other callbacks keep of the whole module."""
        averages = [_average(self._named(pl_module, name)) for name in self._copies]
        for callback in trainer.callbacks:
            for value in vars(callback).values():
                # StochasticWeightAveraging keeps the copy of the module itself.
                held = value.module if isinstance(value, AveragedModel) else value
                is_average = held is not value or isinstance(callback, _StochasticAveraging)
                if is_average and isinstance(held, type(pl_module)):
                    averages.append(held.get_submodule(self._network))
        return averages

    def _named(self, pl_module: nn.Module, name: str) -> nn.Module:
        try:
            return pl_module.get_submodule(name)
        except AttributeError:
            children = [own for own, _ in pl_module.named_children()]
            raise LayerError(
                f"the {type(pl_module).__name__} has no network {name!r}; {nearest(name, children)}"
            ) from None


def _average(module: nn.Module) -> nn.Module:
    """The network inside an average that holds it as ``module``."""
    inner = getattr(module, "module", module)
    return inner if isinstance(inner, nn.Module) else module
