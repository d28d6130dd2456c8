"""Equivalence: the proof that a pruned network computes what the original computes without the removed channels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.arguments import check_number
from ..utils.critical_section import one_thread_at_a_time
from ..utils.errors import EquivalenceError, InputError, list_some
from ..utils.forward import describe_tensors, map_tensors
from ..utils.model_index import ModelIndex
from ..utils.public_call import interruptible
from ..utils.text import counted
from .kept_statistics import KeptStatistics
from .plan import Plan, check_plan
from .proof_run import Run, check_nan_of_masking, errors_of_unreached_parts, kept_filters, names_by_storage, run_network
from .proof_values import NetworkPair, check_values, drawn_inputs
from .shapes import weight_name

EXACT_TOLERANCE, TOLERANCE = 1e-9, 1e-5  # in float64, and where something is computed in float32
_DRAWS = 3  # at most, until every channel that is read was not zero somewhere
_OWN, _DRAWN, _TRAINING = "own weights", "drawn weights", "drawn weights in training mode"
_OVER_KEPT = 'the norms of the original ran over the kept channels alone, as norms="renormalise" allows'
_ROUNDINGS = 100  # how many times the change by disturbed inputs is still taken for rounding
_REPORT = "please report the model, and pass the layers concerned in ignore="


@dataclass(frozen=True)
class Proof:
    """What was compared of a pruned network and the original, and how far they agree.

    All tensors were compared bit for bit with those that the plan keeps. Then both networks were run.

    Attributes:
        difference: The largest difference of any output, or layer, divided by the largest absolute value there.
        tolerance: The largest that is allowed.
        runs: The runs: with the model's own weights, with drawn weights, and with drawn weights in training mode.
        outputs: The names of the outputs that were compared.
        layers: The number of layers whose results were compared.
        not_reached: Narrowed layers that no run reached.
        not_read: For each narrowed layer, the number of kept input channels that were zero in every run: whether it
            reads the right ones is not shown. Layers without such channels are left out.
        notes: What could not be compared, and why.
    """

    difference: float
    tolerance: float
    runs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: int
    not_reached: tuple[str, ...] = ()
    not_read: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line; ``str()`` says what was compared."""
        layers, runs = counted(self.layers, "layer"), counted(len(self.runs), "run")
        return f"<Proof: {layers} compared, differing by at most {self.difference:.1g}, in {runs}>"

    def __str__(self) -> str:
        """One line per kind of statement."""
        lines = [
            f"proof: {counted(len(self.outputs), 'output')} and {counted(self.layers, 'layer')} differ by at most "
            f"{self.difference:.1g} "
            f"(relative; {self.tolerance:g} allowed) with {', '.join(self.runs)}"
        ]
        if self.not_reached:
            lines.append(f"proof: not reached: {', '.join(self.not_reached)}")
        if self.not_read:
            first = ", ".join(f"{count} of {layer}" for layer, count in self.not_read[:3])
            more = f" and of {len(self.not_read) - 3} other layers" if len(self.not_read) > 3 else ""
            lines.append(f"proof: input channels that are zero in every run: {first}{more}")
        return "\n".join([*lines, *(f"proof: {note}" for note in self.notes)])


@interruptible
def verify_equivalence(
    original: nn.Module, pruned: nn.Module, plan: Plan, example_inputs: Any, *, tolerance: float | None = None
) -> float:
    """Compares a pruned network with the original whose removed channels are masked.

    First every tensor is compared with what the plan keeps of the original's, bit for bit. Then copies of both networks
    are run in float64, so that a difference is an error and not rounding: with the model's own weights on the example
    inputs; with drawn weights and images, so that every channel matters; and so in training mode, where the model can
    be run in it. Outputs are found in containers and attributes of any class. The results of the narrowed layers are
    compared too. A model that does not run in float64 is run in its own dtype; random numbers in its code are replaced
    by constants.

    Norms that the plan lists (``norms="renormalise"``) run over the kept channels alone in the original too.

    Args:
        original: The model before pruning; not changed.
        pruned: The model right after pruning, before training; not changed.
        plan: The plan that was applied.
        example_inputs: Inputs for both models: a tensor or list is the single argument, a tuple the positional
            arguments, a dictionary the keyword arguments. They are copied.
        tolerance: The largest relative difference allowed, 0 or more. ``None``: 1e-9, or 1e-5 where something is not
            computed in float64.

    Returns:
        The largest absolute difference of any output tensor or layer, divided by its largest absolute value.

    Raises:
        EquivalenceError: A tensor is not what the plan keeps, the difference is larger than the tolerance, the outputs
            differ in shape or are not finite, or there is nothing to compare.
        PlanError: The plan is for another model than ``original``.
        InputError: A model cannot be run on these inputs.
        ArgumentError: A tolerance that is negative or NaN.
    """
    return prove(ModelIndex.of(original), ModelIndex.of(pruned), plan, example_inputs, tolerance).difference


def prove(
    index: ModelIndex, pruned: ModelIndex, plan: Plan, example_inputs: Any, tolerance: float | None = None
) -> Proof:
    """Does what :func:`verify_equivalence` does, for models whose indexes are known.

    Args:
        index: The index of the model before pruning; the model is not changed.
        pruned: The index of the model after pruning; the model is not changed.
        plan: The plan that was applied.
        example_inputs: Inputs for both models.
        tolerance: The largest relative difference allowed; see :func:`verify_equivalence`.

    Returns:
        What was compared.

    Raises:
        FecError: As :func:`verify_equivalence` says.
    """
    if tolerance is not None:
        check_number("tolerance", tolerance, "a finite number of 0 or more, or None")
    check_plan(plan, index)
    with one_thread_at_a_time():  # what another thread's run has changed for its time must not be taken for the model's
        return _prove(index, pruned, plan, example_inputs, tolerance)


def _prove(index: ModelIndex, pruned: ModelIndex, plan: Plan, example_inputs: Any, tolerance: float | None) -> Proof:
    check_values(index, pruned, plan)
    comparison = _first_run(index, pruned, plan, example_inputs, tolerance)
    drawn = drawn_inputs(example_inputs, 0)
    for seed in range(_DRAWS):
        comparison.run_drawn(seed, (drawn, example_inputs), (False, True) if seed == 0 else (False,))
        if not comparison.not_read():
            break
    return comparison.proof()


def _first_run(
    index: ModelIndex, pruned: ModelIndex, plan: Plan, example_inputs: Any, tolerance: float | None
) -> _Comparison:
    """Runs both networks with their own weights, in float64 if they can be run so.

    Removed channels are zero in every parameter. Where a model divides by such a parameter, or takes its logarithm, the
    result is no number; then scales keep their values, or matrices that are divided by their norm. The pruned network
    does not depend on them.
    """
    error: Exception | None = None
    for double in (True, False):
        for left in ("", "scales", "matrices"):
            comparison = _Comparison(index, pruned, plan, tolerance, double=double, left=left)
            try:
                comparison.run_own(example_inputs)
                return comparison
            except EquivalenceError as differs:
                error = error or differs
            except InputError as failed:
                # These two are what torch raises where an operator has no float64 kernel or the code names a dtype.
                if not double or not isinstance(failed.__cause__, RuntimeError | TypeError):
                    raise
                break
        else:
            break
    assert error is not None
    raise error


class _Comparison:
    """Runs of a pair of networks, and how far they agree."""

    def __init__(
        self,
        index: ModelIndex,
        pruned: ModelIndex,
        plan: Plan,
        tolerance: float | None,
        *,
        double: bool,
        left: str,
    ) -> None:
        self._pair = NetworkPair(index, pruned, plan, double=double, left=left)
        self._layers = kept_filters(index.modules, plan)
        self._modules, self._plan, self._double, self._asked = index.modules, plan, double, tolerance
        self._read: dict[str, Tensor] = {}
        changed = plan.changed_norms
        self._norms = KeptStatistics(self._pair.full.modules, plan.norms) if changed else None
        notes = (f"{_OVER_KEPT}: {list_some(changed)}",) if changed else ()
        self._result = Proof(0.0, EXACT_TOLERANCE if tolerance is None else tolerance, (), (), 0, notes=notes)
        self._reached: set[str] = set()
        self._foreign = names_by_storage(index, pruned)

    def run_own(self, inputs: Any) -> None:
        """Compares the networks with their own weights; raises if they differ or cannot be run."""
        with self._pair.filled(self._pair.full, None):
            full = self._run(self._pair.full, inputs, training=False)
        with self._pair.filled(self._pair.small, None):
            small = self._run(self._pair.small, inputs, training=False)
        self._compare(full, small, _OWN, lambda: self._disturbed(None, inputs, training=False))

    def run_drawn(self, seed: int, choices: Sequence[Any], modes: Sequence[bool]) -> None:
        """Compares the networks with drawn weights, on the first inputs that the original can be run on with them.

        Args:
            seed: Of the weights.
            choices: Inputs.
            modes: Whether to run them in training mode, for each run.
        """
        with self._pair.filled(self._pair.full, seed):
            found = {training: self._first_finite(choices, training=training) for training in modes}
        runs = {training: run for training, run in found.items() if run is not None}
        with self._pair.filled(self._pair.small, seed), errors_of_unreached_parts():
            small = {training: self._run(self._pair.small, runs[training][0], training=training) for training in runs}
        for training, (inputs, full) in runs.items():
            disturbed = functools.partial(self._disturbed, seed, inputs, training=training)
            self._compare(full, small[training], _TRAINING if training else _DRAWN, disturbed)

    def _first_finite(self, choices: Sequence[Any], *, training: bool) -> tuple[Any, Run] | None:
        """The first inputs that the original can be run on with drawn weights, and the run; or a note that none are."""
        name, why = _TRAINING if training else _DRAWN, ""
        for inputs in choices:
            try:
                full = self._run(self._pair.full, inputs, training=training)
            except InputError as error:
                why = (str(error.__cause__ or error).strip().splitlines() or [""])[0][:160]
                continue
            if all(bool(torch.isfinite(tensor).all()) for tensor in full.outputs.values()):
                return inputs, full
            why = "an output is NaN or infinite with them"
        note = f"{name} were not compared: {why}"
        if note not in self._result.notes:
            self._result = replace(self._result, notes=(*self._result.notes, note))
        return None

    def not_read(self) -> tuple[tuple[str, int], ...]:
        """The narrowed layers with kept input channels that were zero in every run, and how many."""
        return tuple(
            (layer, int((~alive).sum()))
            for layer, alive in self._read.items()
            if self._reads_fewer(layer) and not bool(alive.all())
        )

    def _reads_fewer(self, layer: str) -> bool:
        axis = "0" if getattr(self._modules[layer], "transposed", False) else "1"
        return axis in self._plan.keep.get(weight_name(layer, self._plan.keep) or "", {})

    def proof(self) -> Proof:
        """What was compared."""
        narrowed = [layer for layer, kept in self._layers.items() if kept is not None]
        not_reached = tuple(layer for layer in narrowed if layer not in self._reached)
        return replace(self._result, layers=len(self._reached), not_reached=not_reached, not_read=self.not_read())

    def _run(self, network: ModelIndex, inputs: Any, *, training: bool) -> Run:
        norms = self._norms if network is self._pair.full else None
        options: dict[str, Any] = {"training": training, "double": self._double, "norms": norms}
        return run_network(network, inputs, self._layers, foreign=self._foreign, **options)

    def _disturbed(self, seed: int | None, inputs: Any, *, training: bool) -> Run:
        """What the original computes on inputs that differ by some roundings."""
        generator = torch.Generator().manual_seed(0)

        def disturb(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            exact = tensor.double() if self._double else tensor
            signs = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(exact) * 2 - 1
            return exact * (1 + 4 * torch.finfo(exact.dtype).eps * signs)

        with self._pair.filled(self._pair.full, seed):
            return self._run(self._pair.full, map_tensors(disturb, inputs), training=training)

    def _compare(self, full: Run, small: Run, name: str, disturbed: Callable[[], Run]) -> None:
        """Takes a run into the result; raises if the networks differ by more than rounding explains.

        A batch norm over two values that are nearly equal, say, makes a large number of the last digit. What is allowed
        for such a layer is told by the original alone: by how much it changes with the last digits of its inputs.
        """
        result = self._result
        if self._asked is None and not (full.exact and small.exact):
            result = replace(result, tolerance=TOLERANCE)
        pairs = _pairs(full, small)
        check_nan_of_masking(pairs)
        differences = {
            where: _relative_difference(left, right, where) for where, (left, right) in pairs.items() if left.numel()
        }
        if self._asked is None and any(value > result.tolerance for value in differences.values()):
            explained = _explained_by_rounding(differences, result.tolerance, _pairs(full, disturbed()))
            differences = {where: value for where, value in differences.items() if where not in explained}
            if explained:
                most = max(explained.values())
                note = (
                    f"{name}: rounding alone changes {list_some(list(explained))} by up to {most:.1g} (relative), so "
                    f"{_ROUNDINGS} times that was allowed there; larger images or batches may help"
                )
                result = replace(result, notes=(*result.notes, note))
        where, difference = max(differences.items(), key=lambda item: item[1], default=("", 0.0))
        if difference > result.tolerance:
            raise EquivalenceError(
                f"the pruned network differs from the masked original by {difference:.3g} (relative) in {where} with "
                f"{name}, more than {result.tolerance:g}; {_REPORT}"
            )
        self._reached |= {layer for layer in full.layers if _call_name(layer, 0) in pairs}
        for layer, alive in small.read.items():
            self._read[layer] = self._read[layer] | alive if layer in self._read else alive
        self._result = replace(
            result,
            difference=max(result.difference, difference),
            runs=(*result.runs, *((name,) if name not in result.runs else ())),
            outputs=tuple(dict.fromkeys((*result.outputs, *full.outputs))),
        )


def _explained_by_rounding(
    differences: Mapping[str, float], tolerance: float, pairs: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """What differs by more than the tolerance, but by less than rounding explains.

    Args:
        differences: Relative differences of outputs and layers, by name.
        tolerance: The tolerance.
        pairs: By the same names, results of the original, and with inputs that differ by some roundings.

    Returns:
        By name by how much the original changes.
    """
    explained = {}
    for where, value in differences.items():
        if value > tolerance and where in pairs:
            change = _relative_difference(*pairs[where], where)
            if value <= _ROUNDINGS * change:
                explained[where] = change
    return explained


def _pairs(full: Run, small: Run) -> dict[str, tuple[Tensor, Tensor]]:
    """What two runs computed, side by side: outputs, and the calls of layers whose shapes can be compared.

    Raises:
        EquivalenceError: The outputs differ in name or shape, the runs called other layers, or there is nothing to
            compare.
    """
    shapes = [{name: tensor.shape for name, tensor in run.outputs.items()} for run in (full, small)]
    if shapes[0] != shapes[1]:
        names = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)][:3]
        raise EquivalenceError(
            f"the pruned network returns {describe_tensors(list(small.outputs.values()))}, the masked original "
            f"{describe_tensors(list(full.outputs.values()))}; they differ in {', '.join(names)}; {_REPORT}"
        )
    calls = [{layer: len(results) for layer, results in run.layers.items()} for run in (full, small)]
    if calls[0] != calls[1]:
        names = [layer for layer in {**calls[0], **calls[1]} if calls[0].get(layer) != calls[1].get(layer)][:3]
        raise EquivalenceError(
            f"the pruned network takes another way through the model's code: it does not call {', '.join(names)} as "
            f"often as the masked original; {_REPORT}"
        )
    pairs = {name: (tensor, small.outputs[name]) for name, tensor in full.outputs.items()}
    for layer, results in full.layers.items():
        for number, (left, right) in enumerate(zip(results, small.layers[layer], strict=True)):
            if left.shape == right.shape:  # it is another where the weight is computed, and the plan does not name it
                pairs[_call_name(layer, number)] = left, right
    if not any(left.numel() for left, _ in pairs.values()):
        raise EquivalenceError(
            "the model returns no number on these inputs and no layer keeps its filters, so nothing can be compared; "
            "try other example inputs"
        )
    return pairs


def _call_name(layer: str, number: int) -> str:
    return f"layer {layer!r}" + (f", call {number + 1}" if number else "")


def _relative_difference(left: Tensor, right: Tensor, name: str) -> float:
    left, right = (torch.view_as_real(side).double() if side.is_complex() else side.double() for side in (left, right))
    if bool(left.isnan().any() or right.isnan().any()):
        raise EquivalenceError(f"{name} is NaN, so it cannot be compared; try other example inputs")
    infinite = left.isinf() | right.isinf()
    if bool((left[infinite] != right[infinite]).any()):
        raise EquivalenceError(f"{name} is infinite in one network and not in the other; try other example inputs")
    left, right = left.masked_fill(infinite, 0.0), right.masked_fill(infinite, 0.0)
    return float((left - right).abs().max()) / (float(left.abs().max()) or 1.0)
