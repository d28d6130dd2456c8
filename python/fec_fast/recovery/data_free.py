"""Data-free recovery: layers fitted on noise, in copies of the models whose batch norms are re-estimated on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..plan.plan import Plan
from ..plan.surgery import select_kept
from ..utils.compat import BatchNormBase, storage_id
from ..utils.copying import copied_model
from ..utils.errors import InputError, WeightError
from ..utils.forward import call_model, map_tensors, tensors_in, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.progress import progress_bar
from .batch_norm import recalibrate
from .layer_calls import LayerCall, LayerCallMode
from .layer_fits import LayerFits, write_tensors
from .noise import noise_batches

NOT_KNOWN = "no batch norm comes before it, so nothing is known of its inputs without images"
_STATISTICS = ("running_mean", "running_var")


def fit_on_noise(
    original: ModelIndex,
    pruned: ModelIndex,
    plan: Plan,
    example_inputs: Any,
    make_fits: Callable[[ModelIndex, ModelIndex], LayerFits],
    progress: bool,
) -> LayerFits:
    """Fits the layers of a pruned model that lie behind a batch norm, without images.

    Batch norms that are re-estimated on noise give every channel of the original the mean and the variance that it has
    on images, and how channels go together follows from the filters. So the layers are fitted on noise, in copies of
    both models with such batch norms. The new weights and biases are written to the pruned model, and the means of its
    own batch norms are shifted by as much as those of its copy.

    Args:
        original: The index of the model before pruning, which is left as it was.
        pruned: The index of the pruned model, which is changed in place, last of all.
        plan: The plan that it was pruned by.
        example_inputs: See :func:`fec_fast.recovery.noise.noise_batches`.
        make_fits: Makes the fits of two models.
        progress: Whether to show progress bars.

    Returns:
        The fits: how each layer was changed, and why others were left.

    Raises:
        InputError: A model cannot be run on noise of this form, or computes NaN or infinity on it.
        WeightError: A weight or statistic of the original is NaN or infinite. After any error the pruned model is as it
            was.
    """
    dense = copy_on_noise(original, example_inputs)
    small = ModelIndex.of(copied_model(pruned))
    with torch.no_grad():
        for name in _statistics_of(dense.index):
            small.tensors[name].copy_(select_kept(dense.index.tensors[name], plan.keep.get(name, {})))
    before = {name: tensor.clone() for name, tensor in small.tensors.items() if name.endswith("running_mean")}
    fits = make_fits(dense.index, small)
    with progress_bar("recovery: original network", len(dense.batches), shown=progress) as done:
        batches = list(fits.gather_targets(dense.batches, done))
    fits.leave(dense.unknown, NOT_KNOWN)
    with progress_bar("recovery: layers", fits.layers, shown=progress) as done:
        fits.fit(batches, done)
    values = {name: small.tensors[name] for name in fits.changed}
    for name in fits.changed:
        if name.rpartition(".")[2] == "running_mean":
            values[name] = pruned.tensors[name] + (small.tensors[name] - before[name])
    write_tensors(pruned, values)
    return fits


@dataclass(frozen=True, eq=False)
class CopyOnNoise:
    """A copy of a model that runs on noise as the model does on images.

    Attributes:
        index: The index of the copy.
        batches: The noise.
        unknown: The names of the weights in front of any batch norm. What they read on images is not known.
    """

    index: ModelIndex
    batches: list[Any]
    unknown: set[str]


def copy_on_noise(index: ModelIndex, example_inputs: Any, *, of_each_batch: bool = False) -> CopyOnNoise:
    """Copies a model, and gives the batch norms of the copy the statistics of noise.

    Args:
        index: The index of the model, which is left as it was.
        example_inputs: See :func:`fec_fast.recovery.noise.noise_batches`.
        of_each_batch: Whether the batch norms take the statistics of every batch, and keep none: the noise need not be
            run through the model before it is used. Else they are re-estimated.

    Returns:
        The copy.

    Raises:
        InputError: The model cannot be run on the example inputs, or on noise of their form.
        WeightError: A weight or statistic is NaN or infinite.
    """
    statistics = set(_statistics_of(index))
    for name, tensor in index.tensors.items():
        if not (isinstance(tensor, nn.Parameter) or name in statistics):
            continue  # masks of attention hold infinity
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            layer = name.rpartition(".")[0]
            raise WeightError(f"layer {layer!r}: {name} has NaN or infinite values: nothing to fit to", layer=layer)
    if any(tensor.is_meta for tensor in tensors_in(example_inputs)):
        raise InputError(
            "the example inputs have no values (device meta), so noise of their form cannot be run: give others"
        )
    front = _FrontMode(index)
    with undisturbed(index):
        device = next(iter(index.tensors.values())).device
        with front:
            call_model(index.model, map_tensors(lambda tensor: tensor.to(device, copy=True), example_inputs))
        copy = copied_model(index)  # not inside the mode, which would look into the memo of every tensor's copy
    if of_each_batch:
        _drop_statistics(copy)
    copied = ModelIndex.of(copy)
    batches = noise_batches(example_inputs, few=of_each_batch)
    if not of_each_batch and _statistics_of(copied):
        recalibrate(copied.model, [(batch,) for batch in batches])
    return CopyOnNoise(copied, batches, front.weights)


def _drop_statistics(model: nn.Module) -> None:
    """Makes the batch norms of a model take the statistics of each batch, and keep none."""
    for module in model.modules():
        if isinstance(module, BatchNormBase) and module.track_running_stats:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def _statistics_of(index: ModelIndex) -> list[str]:
    """The names of the means and variances that a model's batch norms keep."""
    return [
        name
        for prefix, module in index.modules.items()
        if isinstance(module, BatchNormBase) and module.track_running_stats
        for name in (f"{prefix}.{statistic}" if prefix else statistic for statistic in _STATISTICS)
        if name in index.tensors
    ]


class _FrontMode(LayerCallMode):
    """Notes the layers that have a call whose input no batch norm had a part in.

    Attributes:
        weights: The names of their weights.
    """

    def __init__(self, index: ModelIndex) -> None:
        super().__init__(index)
        self.weights: set[str] = set()
        self._behind: dict[int, Tensor] = {}  # results that a batch norm had a part in: by storage, and kept alive

    def before_layer(self, call: LayerCall) -> None:
        """Notes a layer."""
        if not self._is_behind(call.input):
            self.weights.add(call.name)

    def after_layer(self, call: LayerCall, output: Tensor) -> None:
        """Follows what a layer computes."""
        if self._is_behind(call.input):
            self._behind[storage_id(output)] = output

    def after_other(self, function: Callable[..., Any], arguments: Mapping[int | str, Any], result: Any) -> None:
        """Follows what another function computes."""
        given = list(tensors_in(list(arguments.values())))
        if function is functional.batch_norm or any(map(self._is_behind, given)):
            written = given[:1] if function is Tensor.__setitem__ else tensors_in(result)
            self._behind |= {storage_id(tensor): tensor for tensor in written}

    def _is_behind(self, tensor: Tensor) -> bool:
        return storage_id(tensor) in self._behind
