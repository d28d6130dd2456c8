"""Layer fits: the layers of a pruned model, fitted one after the other to what the original computes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..plan.plan import Plan
from ..utils.compat import ConvolutionBase, version_of
from ..utils.computed_weights import computation_of, layer_with, owner_of, weight_parts
from ..utils.copying import copied_model
from ..utils.errors import InputError
from ..utils.forward import call_model, evaluation_mode, map_tensors, tensors_in, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.modules import device_of
from ..utils.random_state import restored_torch_randomness
from ..utils.undo import all_or_nothing
from .arrivals import Arrival, ArrivalMode, addend_rows, check_rows
from .calibration import count_images, image_seeds
from .independent_runs import check_runs_apart
from .layer_calls import LayerCall
from .least_squares import LeastSquares
from .lockstep import Pause, run_in_lock_step
from .lost_inputs import weights_with_lost_inputs
from .rows import input_rows, weight_from_matrices, weight_matrices
from .targets import LayerTarget, TargetMode, input_dims

# A layer that is nearer to its target than this (squared, relative) is right already.
_EXACT = 1e-10
_FEWEST_ROWS = 32
# Rows of one image are alike: with fewer images than this, a weight is held more strongly.
MANY_IMAGES = 512


@dataclass(frozen=True)
class LayerRecovery:
    """How one layer was changed.

    Attributes:
        layer: The name of the layer.
        rows: How many output positions it was fitted on; 0 without images.
        unknowns: How many weights each of its outputs has.
        ridge: The ridge, relative to the mean variance of the inputs.
        error_before: Squared error of its outputs before, relative to the variance of the original's; behind the
            activation, where that is constant in parts.
        error: The same after.
        seconds: CPU seconds of the fit.
    """

    layer: str
    rows: int
    unknowns: int
    ridge: float
    error_before: float
    error: float
    seconds: float


class LayerFits:
    """Fits the layers of a pruned model in place: of a copy, which takes whatever the runs do to it.

    A layer that is called several times in a run is fitted on all its calls, in a run in which no other layer is; then
    the runs begin anew, so that every other layer is fitted on what the new weight gives.

    Attributes:
        records: How layers were changed, in the order of the run.
        left: For each layer that was left as it was, the reason.
        pruned: The index of the pruned model.
        changed: The names of the tensors that were written to.
    """

    def __init__(
        self, original: ModelIndex, pruned: ModelIndex, plan: Plan, ridge: float | None, rows: int, memory: int
    ) -> None:
        """Starts with nothing fitted.

        Args:
            original: The index of the original.
            pruned: The index of the pruned model.
            plan: What was removed.
            ridge: The ridge of every layer; ``None``: by its rows and unknowns.
            rows: How many output positions each layer is fitted on at most.
            memory: About how many bytes may be used beside the models.
        """
        self.records: list[LayerRecovery] = []
        self.left: dict[str, str] = {}
        self.pruned = pruned
        self.changed: set[str] = set()
        self._original, self._plan, self._ridge = original, plan, ridge
        self._rows, self._memory = rows, memory
        self._mode = TargetMode(original, plan, memory // 8)
        self._arrived: dict[str, dict[tuple[int, int], Arrival]] = defaultdict(dict)
        self._finished: set[str] = set()
        self._several: set[str] = set()
        self._open: str | None = None
        self._writes_inputs = False
        self._images = 0

    @property
    def layers(self) -> int:
        """The number of layers to be fitted; known after :meth:`gather_targets`."""
        return len(self._mode.targets)

    def gather_targets(self, batches: Sequence[Any], done: Callable[[], None]) -> Sequence[Any]:
        """Runs the original and keeps what its layers compute at sampled positions.

        Args:
            batches: Its inputs.
            done: Is called after each batch.

        Returns:
            The batches that fit into the memory: all, or the first of them.

        Raises:
            InputError: The model cannot be run on a batch, or a layer's outputs are not finite.
        """
        images, device, rows = sum(map(count_images, batches)), device_of(self._original.model), self._rows
        number = 0
        with undisturbed(self._original):
            while number < len(batches):
                inputs = batches[number]
                count = count_images(inputs)
                self._mode.begin(number, -(-rows * count // images), count / images, image_seeds(inputs))
                given = _on(inputs, device, copied=not number or self._writes_inputs)
                versions = [version_of(tensor) for tensor in tensors_in(given)]
                with self._mode:
                    self._mode.end(call_model(self._original.model, given, "the images"))
                self._writes_inputs |= versions != [version_of(tensor) for tensor in tensors_in(given)]
                number += 1
                if number == 1:
                    # A quarter for the targets, a half for what the runs hold while they wait.
                    fitting = int(self._memory / 2 / (self._mode.bytes_in_use / count))
                    if fitting < images:
                        batches = _first_batches(batches, fitting)
                        images = sum(map(count_images, batches))
                    needed = self._mode.target_bytes() * images / count
                    if needed > self._memory / 4:
                        rows, number = max(1, int(rows * self._memory / 4 / needed)), 0
                        self._mode.forget()
                        continue
                done()
        for target in self._mode.targets.values():
            if not all(bool(torch.isfinite(call.rows).all()) for calls in target.calls.values() for call in calls):
                raise InputError(
                    f"layer {target.layer!r} of the original computes NaN or infinity on the calibration images: check "
                    "the weights and how the images are normalised"
                )
        self._images = images
        self.left |= self._mode.unfit
        self._leave_unseen(_on(batches[0], device, copied=True))
        return batches

    def _leave_unseen(self, inputs: Any) -> None:
        """Leaves the weights that lost inputs and that no layer was seen to use."""
        unseen = []
        for name in self._plan.keep:
            tensor = self._original.tensors[name]
            # One number per channel is a scale or a mask, except of a layer with one output.
            is_layer = isinstance(self._original.modules.get(owner_of(name)), ConvolutionBase | nn.Linear)
            is_weight = tensor.dim() > 1 and (is_layer or sum(size > 1 for size in tensor.shape) > 1)
            if is_weight and self._original.first_names[id(tensor)] not in self._mode.seen:
                unseen.append(name)
        losing = weights_with_lost_inputs(self._original, self._plan, inputs, unseen) if unseen else set()
        for name in (name for name in unseen if name in losing):
            layer, kind, remedy = computation_of(self._original.modules, name)
            module = self._original.modules[layer]
            if isinstance(module, ConvolutionBase | nn.Linear) and "weight" not in weight_parts(module):
                self.left[layer] = f"its weight is computed, by {kind}: {remedy}"
            else:
                why = "no convolution or linear operation was seen that uses its weight as it is"
                self.left[layer_with(name)] = why

    def leave(self, weights: Container[str], reason: str) -> None:
        """Leaves some of the layers as they are.

        Args:
            weights: The names of their weights; others among them do not matter.
            reason: Why.
        """
        for name, target in self._mode.targets.items():
            if name in weights:
                self.left.setdefault(target.layer, reason)

    def fit(self, batches: Sequence[Any], done: Callable[[], None]) -> None:
        """Runs the pruned model and fits each layer when its inputs are there.

        Args:
            batches: What :meth:`gather_targets` returned.
            done: Is called after each layer.

        Raises:
            BaseException: Anything that went wrong. Some layers are changed then.
        """
        device, first = device_of(self.pruned.model), list[Any]()
        order = {name: target.order for name, target in self._mode.targets.items()}
        self._several = {
            name for name, target in self._mode.targets.items() if max(map(len, target.calls.values())) > 1
        }

        def run_of(batch: int) -> Callable[[Pause], None]:
            def run(pause: Pause) -> None:
                made_at = self._addends_made_at(batch)
                run_alone = made_ready(batch)
                with torch.no_grad(), ArrivalMode(self.pruned, made_at, partial(self._arrive, batch), pause):
                    output = run_alone()
                if batch == 0:
                    first[:] = [output]

            return run

        def made_ready(batch: int) -> Callable[[], Any]:
            # A copy for each run, with the same tensors: a model may keep activations in attributes, or a hook in a
            # variable.
            shared = {id(tensor): tensor for tensor in self.pruned.tensors.values()}
            model = copied_model(self.pruned, shared, keeps_apart=True)
            given = _on(batches[batch], device, copied=self._writes_inputs)
            return lambda: call_model(model, given, "the images")

        def between(name: str) -> None:
            self._finish(name)
            done()
            if name in self._several:
                raise _BeginAnew

        with restored_torch_randomness(), evaluation_mode(self.pruned.model):
            while True:
                self._arrived.clear()
                self._open = None
                try:
                    run_in_lock_step([run_of(batch) for batch in range(len(batches))], between, order)
                except _BeginAnew:
                    continue
                if self._open is None or self._open in self._finished:
                    if len(batches) > 1:
                        check_runs_apart(self.pruned, first[0], lambda: made_ready(0)())
                    break
                self._finish(self._open)  # the last of its calls was not reached
        for name, target in self._mode.targets.items():
            if name not in self._finished:
                self.left.setdefault(target.layer, "the run of the pruned model did not reach it as the original's did")

    def _finish(self, name: str) -> None:
        """Fits a layer, unless it is to be left."""
        self._finished.add(name)
        target, arrived = self._mode.targets[name], self._arrived.pop(name, {})
        if len(arrived) < sum(map(len, target.calls.values())):
            self.left.setdefault(target.layer, "the run of the pruned model did not reach it as the original's did")
        if target.layer not in self.left:
            self._solve(name, [arrived[key] for key in sorted(arrived)])

    def _addends_made_at(self, batch: int) -> set[int]:
        """Where in the run (see ``LayerCallMode.path``) tensors are made that are added to layers' outputs.

        Args:
            batch: The number of the batch.
        """
        readers = [call.reader for target in self._mode.targets.values() for call in target.calls[batch]]
        return {reader.addend_made_at for reader in readers if reader.addend_made_at is not None}

    def _arrive(self, batch: int, call: LayerCall, number: int, made: Mapping[int, Tensor]) -> bool:
        """Takes the inputs of one call of a layer.

        Args:
            batch: The number of the batch.
            call: The call in the pruned model.
            number: How many calls of this layer came before in this batch.
            made: The results of :meth:`_addends_made_at` that are there.

        Returns:
            Whether this was the last call of the layer in the batch, so that the run has to wait for the fit.
        """
        target = self._mode.targets.get(call.name)
        if target is None or call.name in self._finished or target.layer in self.left:
            return False
        if self._open not in (None, call.name):
            return False  # its turn comes in another run
        if call.name in self._several:
            self._open = call.name
        calls = target.calls[batch]
        if number >= len(calls) or calls[number].input_dims != input_dims(call):
            self.left[target.layer] = "its inputs have another shape than in the original, so rows cannot be compared"
            self._arrived.pop(call.name, None)
            return False
        rows, addend = input_rows(call, calls[number].positions), addend_rows(call, calls[number], made)
        self._arrived[call.name][batch, number] = Arrival(call, rows, calls[number].rows, addend)
        return number == len(calls) - 1

    @torch.no_grad()
    def _solve(self, name: str, arrived: list[Arrival]) -> None:
        start = time.process_time()
        target, call = self._mode.targets[name], arrived[-1].call
        inputs, wanted = torch.cat([one.inputs for one in arrived], 1), torch.cat([one.wanted for one in arrived])
        wanted = wanted.to(inputs.dtype)
        known = [one.addend for one in arrived if one.addend is not None]
        arrived.clear()  # their memory
        present_addend = torch.cat(known) if sum(map(len, known)) == len(wanted) else None
        rectifier = target.rectifier(len(wanted), present_addend, inputs.dtype)
        check_rows(inputs, target.layer)
        if len(wanted) < _FEWEST_ROWS:
            self.left[target.layer] = f"{len(wanted)} rows are too few to fit it, {_FEWEST_ROWS} are needed"
            return
        places = self._places_of_bias(name, target)
        target.calls.clear()  # their memory
        system = LeastSquares(inputs, wanted, centred=bool(places))
        ridge = self._ridge if self._ridge is not None else default_ridge(system.rows, system.unknowns, self._images)
        present = weight_matrices(call, call.weight.detach())
        bias = wanted.new_zeros(wanted.shape[1]).double() if call.bias is None else call.bias.double()
        fit = system.fit(present, bias, ridge, rectifier)
        if fit.error_before < _EXACT:
            return
        if fit.error >= fit.error_before:
            self.left[target.layer] = "no weight within the ridge comes nearer to the original than the present one"
            return
        self._write(call.weight, weight_from_matrices(call, fit.weight))
        if fit.bias is not None:
            for tensor, sign in places:
                self._write(tensor, fit.bias if sign > 0 else tensor.double() - fit.bias)
        seconds = time.process_time() - start
        self.records.append(
            LayerRecovery(target.layer, system.rows, system.unknowns, ridge, fit.error_before, fit.error, seconds)
        )

    def _places_of_bias(self, name: str, target: LayerTarget) -> list[tuple[Tensor, int]]:
        """Where a layer's bias can be written: the tensors, and 1, or -1 for a mean that is subtracted; or nothing."""
        if target.bias is not None:
            alone = self._mode.layers_of_bias[target.bias] == {name}
            return [(self.pruned.tensors[target.bias], 1)] if alone else []
        norms = target.norms()
        if not norms or any(self._mode.readers.layers_of_norm[norm] != {name} for norm in norms):
            return []
        return [(self.pruned.tensors[norm], -1) for norm in norms]

    def _write(self, tensor: Tensor, value: Tensor) -> None:
        self.changed.add(self.pruned.first_names[id(tensor)])
        tensor.copy_(value)


def write_tensors(index: ModelIndex, values: Mapping[str, Tensor]) -> None:
    """Writes to tensors of a model: to all, or to none if anything goes wrong.

    Args:
        index: The index of the model.
        values: The new values, by name.
    """
    with all_or_nothing() as undo, torch.no_grad():
        for name, value in values.items():
            undo.values(index.tensors[name])
            index.tensors[name].copy_(value)


class _BeginAnew(Exception):
    """Ends the runs, which are to begin anew."""


def default_ridge(rows: int, unknowns: int, images: int) -> float:
    """The ridge of a layer where the caller gives none: more where rows or images do not tell the unknowns.

    Args:
        rows: The rows it is fitted on.
        unknowns: The weights of one output.
        images: How many images the rows are from.
    """
    if rows < 4 * unknowns:
        return 1.0
    return 0.01 if images >= MANY_IMAGES else 0.1


def _on(inputs: Any, device: torch.device, *, copied: bool) -> Any:
    return map_tensors(lambda tensor: tensor.clone().to(device) if copied else tensor.to(device), inputs)


def _first_batches(batches: Sequence[Any], images: int) -> Sequence[Any]:
    """The first batches that together have no more images than given; at least one batch."""
    number, total = 0, 0
    while number < len(batches) and (not number or total + count_images(batches[number]) <= images):
        total += count_images(batches[number])
        number += 1
    return batches[:number]
