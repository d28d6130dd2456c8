"""Layer fits: the layers of a pruned model, fitted one after the other to what the original computes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..plan.plan import Plan
from ..utils.errors import InputError
from ..utils.forward import call_model, evaluation_mode, map_tensors, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.modules import device_of
from .calibration import count_images, image_seeds
from .layer_calls import LayerCall, LayerCallMode
from .least_squares import LeastSquares
from .lockstep import Pause, run_in_lock_step
from .rows import input_rows, output_rows, weight_from_matrices, weight_matrices
from .targets import CallTarget, LayerTarget, TargetMode, input_dims

# A layer that is nearer to its target than this (squared, relative) is right already.
_EXACT = 1e-10
_FEWEST_ROWS = 32


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
    """Fits the layers of a pruned model in place."""

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
        self._original, self._plan, self._ridge = original, plan, ridge
        self._rows, self._memory = rows, memory
        self._mode = TargetMode(original, plan, memory // 8)
        self._inputs: dict[str, list[Tensor]] = defaultdict(list)
        self._targets: dict[str, list[Tensor]] = defaultdict(list)
        self._addends: dict[str, list[Tensor | None]] = defaultdict(list)
        self._calls: dict[str, LayerCall] = {}
        self._finished: set[str] = set()
        self._undo: list[tuple[Tensor, Tensor]] = []

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
        with undisturbed(self._original), self._mode:
            while number < len(batches):
                inputs = batches[number]
                count = count_images(inputs)
                self._mode.begin(number, -(-rows * count // images), count / images, image_seeds(inputs))
                self._mode.end(call_model(self._original.model, _on(inputs, device)))
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
        self.left |= self._mode.behind_choice
        for name in self._plan.keep:
            tensor = self._original.tensors[name]
            first_name = self._original.first_names[id(tensor)]
            if tensor.dim() > 1 and first_name not in self._mode.seen:
                layer = name.rpartition(".")[0] or name
                self.left[layer] = "no convolution or linear operation was seen that uses its weight as it is"
        return batches

    def leave(self, layers: Container[str], reason: str) -> None:
        """Leaves some of the layers as they are.

        Args:
            layers: Their names; others among them do not matter.
            reason: Why.
        """
        for target in self._mode.targets.values():
            if target.layer in layers:
                self.left.setdefault(target.layer, reason)

    def fit(self, batches: Sequence[Any], done: Callable[[], None]) -> None:
        """Runs the pruned model and fits each layer when its inputs are there.

        Args:
            batches: What :meth:`gather_targets` returned.
            done: Is called after each layer.

        Raises:
            BaseException: Anything that went wrong; the model is as it was.
        """
        device = device_of(self.pruned.model)
        order = {name: target.order for name, target in self._mode.targets.items()}

        def run_of(batch: int) -> Callable[[Pause], None]:
            def run(pause: Pause) -> None:
                with torch.no_grad(), _ArrivalMode(self, batch, pause):
                    call_model(self.pruned.model, _on(batches[batch], device))

            return run

        def between(name: str) -> None:
            self._finished.add(name)
            if name not in self.left:
                self._solve(name)
            done()

        try:
            with evaluation_mode(self.pruned.model):
                run_in_lock_step([run_of(batch) for batch in range(len(batches))], between, order)
            for name, target in self._mode.targets.items():
                if name not in self._finished:
                    self.left.setdefault(
                        target.layer, "the run of the pruned model did not reach it as the original's did"
                    )
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Writes back what the pruned model had before."""
        with torch.no_grad():
            for tensor, value in reversed(self._undo):
                tensor.copy_(value)
        self._undo.clear()

    def addends_made_at(self, batch: int) -> set[int]:
        """Where in the run (see ``LayerCallMode.path``) tensors are made that are added to layers' outputs.

        Args:
            batch: The number of the batch.
        """
        readers = [call.reader for target in self._mode.targets.values() for call in target.calls[batch]]
        return {reader.addend_made_at for reader in readers if reader.addend_made_at is not None}

    def arrive(self, call: LayerCall, batch: int, number: int, made: Mapping[int, Tensor]) -> bool:
        """Takes the inputs of one call of a layer.

        Args:
            call: The call in the pruned model.
            batch: The number of the batch.
            number: How many calls of this layer came before in this batch.
            made: The results of :meth:`addends_made_at` that are there.

        Returns:
            Whether this was the last call of the layer in the batch, so that the run has to wait for the fit.
        """
        target = self._mode.targets.get(call.name)
        if target is None or call.name in self._finished or target.layer in self.left:
            return False
        calls = target.calls[batch]
        if number >= len(calls) or calls[number].input_dims != input_dims(call):
            self.left[target.layer] = "its inputs have another shape than in the original, so rows cannot be compared"
            self._inputs.pop(call.name, None)
            self._targets.pop(call.name, None)
            self._addends.pop(call.name, None)
            return False
        self._inputs[call.name].append(input_rows(call, calls[number].positions))
        self._targets[call.name].append(calls[number].rows)
        self._addends[call.name].append(_addend(call, calls[number], made))
        self._calls[call.name] = call
        return number == len(calls) - 1

    @torch.no_grad()
    def _solve(self, name: str) -> None:
        start = time.process_time()
        target, call = self._mode.targets[name], self._calls.pop(name)
        inputs, wanted = torch.cat(self._inputs.pop(name), 1), torch.cat(self._targets.pop(name))
        addends = self._addends.pop(name)
        known = [addend for addend in addends if addend is not None]
        rectifier = target.rectifier(len(wanted), torch.cat(known) if len(known) == len(addends) else None)
        if not bool(torch.isfinite(inputs).all()):
            raise InputError(
                f"layer {target.layer!r} of the pruned model reads NaN or infinity on the calibration images"
            )
        if len(wanted) < _FEWEST_ROWS:
            self.left[target.layer] = f"{len(wanted)} rows are too few to fit it, {_FEWEST_ROWS} are needed"
            return
        places = self._places_of_bias(name, target)
        target.calls.clear()  # their memory
        system = LeastSquares(inputs, wanted, centred=bool(places))
        ridge = self._ridge if self._ridge is not None else default_ridge(system.rows, system.unknowns)
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
        self._undo.append((tensor, tensor.detach().clone()))
        tensor.copy_(value)


class _ArrivalMode(LayerCallMode):
    """Stops the run of one batch at every layer that is to be fitted."""

    def __init__(self, fits: LayerFits, batch: int, pause: Pause) -> None:
        super().__init__(fits.pruned)
        self._fits, self._batch, self._pause = fits, batch, pause
        self._calls: dict[str, int] = defaultdict(int)
        self._wanted = fits.addends_made_at(batch)
        self._made: dict[int, Tensor] = {}

    def before_layer(self, call: LayerCall) -> None:
        """Waits until the layer was fitted on the inputs of all batches."""
        number = self._calls[call.name]
        self._calls[call.name] += 1
        if self._fits.arrive(call, self._batch, number, self._made):
            self._pause(call.name)

    def after_layer(self, call: LayerCall, output: Tensor) -> None:
        """Keeps the output if it is added to another layer's."""
        if self.path in self._wanted:
            self._made[self.path] = output

    def after_other(self, function: Callable[..., Any], arguments: Mapping[int | str, Any], result: Any) -> None:
        """Keeps a result that is added to a layer's output."""
        if self.path in self._wanted and isinstance(result, Tensor):
            self._made[self.path] = result


def _addend(call: LayerCall, target: CallTarget, made: Mapping[int, Tensor]) -> Tensor | None:
    """What the pruned model will add to a layer's output, at the target's positions, if that is there already."""
    made_at, (items, *places) = target.reader.addend_made_at, target.positions.shape
    tensor = None if made_at is None else made.get(made_at)
    shape = (items, *places, call.out_channels) if call.is_linear else (items, call.out_channels, *places)
    return None if tensor is None or tensor.shape != shape else output_rows(call, tensor, target.positions)


def default_ridge(rows: int, unknowns: int) -> float:
    """The ridge of a layer where the caller gives none: more where the rows do not tell the unknowns.

    Args:
        rows: The rows it is fitted on.
        unknowns: The weights of one output.
    """
    return 0.01 if rows >= 4 * unknowns else 1.0


def _on(inputs: Any, device: torch.device) -> Any:
    return map_tensors(lambda tensor: tensor.to(device), inputs)


def _first_batches(batches: Sequence[Any], images: int) -> Sequence[Any]:
    """The first batches that together have no more images than given; at least one batch."""
    number, total = 0, 0
    while number < len(batches) and (not number or total + count_images(batches[number]) <= images):
        total += count_images(batches[number])
        number += 1
    return batches[:number]
