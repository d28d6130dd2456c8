"""Trial runs of pruned copies: widths that are written into the model's code are found, and kept in the next plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.recorded_run import can_run
from ..graph.trace import input_width
from ..plan.equivalence import Proof, prove
from ..plan.plan import Plan
from ..plan.surgery import pruned_copy
from ..utils.errors import EquivalenceError
from ..utils.model_index import ModelIndex
from .allocation.allocate import AllocationRequest, Measurements
from .context import PruningContext


@dataclass(frozen=True, eq=False)
class Trial:
    """A pruned copy that runs wherever the original does.

    Attributes:
        context: The traced and scored model, with what its code wants kept.
        counts: For each coupled set the number of units that are removed.
        plan: The plan.
        pruned: The index of the pruned copy.
        proof: What was compared with the original; ``None`` if nothing was.
    """

    context: PruningContext
    counts: Sequence[int]
    plan: Plan
    pruned: ModelIndex
    proof: Proof | None


def find_plan(context: PruningContext, request: AllocationRequest, *, verify: bool) -> Trial:
    """Plans, prunes a copy and runs it, until the copy runs in both modes.

    Training mode is traced only where it is needed: where the copy fails in it, or differs from the original. Each
    other turn but the last keeps a channel that could be removed before, or changes an attribute, so the loop ends.
    Where the proof fails in the end, channels that an operator divides are kept, and the loop goes on.

    Args:
        context: The traced and scored model.
        request: What is to be removed.
        verify: Whether to prove the copy.

    Returns:
        The copy that runs.

    Raises:
        FecError: What is asked for cannot be reached, or no channel can be held responsible for a run that fails.
    """
    measurements = Measurements()
    original_trains: bool | None = None  # not known yet
    if request.runs_pruned_networks:
        context = context.settled()
    while True:
        counts, notes = request.removal_counts(context, measurements)
        plan = context.plan(counts, notes)
        pruned = ModelIndex.of(pruned_copy(context.index, plan))
        finding = context.try_out(pruned, counts)
        if finding is None:
            is_traced = runs = context.trace.training_operators is not None
            if not is_traced:
                runs = can_run(pruned, context.example_inputs, training=True)
                if not runs and original_trains is None:
                    original_trains = can_run(context.index, context.example_inputs, training=True)
            elif context.trace.unseen_training is None:
                finding = context.try_out(pruned, counts, training=True)
            # The original may not run either: a detector without targets, a batch norm on a single value.
            if finding is None and (runs or not original_trains):
                try:
                    proof = prove(context.index, pruned, plan, context.example_inputs) if verify else None
                    return Trial(context, counts, plan, pruned, proof)
                except EquivalenceError as error:
                    if is_traced:
                        finding = context.doubts(pruned, counts, str(error).partition(";")[0])
                        if finding is None:
                            raise
            if finding is None:
                context = context.with_training_traced()
                continue
        context = context.with_finding(finding)


def unseen_parts(trial: Trial) -> list[str]:
    """What the runs of the original did not show, and what may follow from it, as warnings for the user.

    Args:
        trial: The result of :func:`find_plan`.

    Returns:
        Messages: about training mode, and about layers that were not reached and may read channels that are removed.
    """
    trace, messages = trial.context.trace, []
    if trace.unseen_training is not None:
        messages.append(
            f"training mode was not seen, because the model cannot be run in it on the example inputs "
            f"({trace.unseen_training}): what only training reaches keeps its width, and may not fit; give example "
            "inputs that training mode accepts, or train a step before you rely on the result"
        )
    narrowed = {
        len(labels)
        for use in trace.weight_uses.values()
        for axis, labels in ((use.in_axis, use.inputs), (use.out_axis, use.outputs))
        if str(axis) in trial.plan.keep.get(use.weight, {})
    }
    unfit = [layer for layer in trace.unreached if input_width(trial.context.index, layer) in narrowed]
    if unfit:
        messages.append(
            f"not reached by the example inputs, so left as they were: {', '.join(unfit)}; each reads as many channels "
            "as a layer had that is narrower now, and fails if it reads that one's: give example inputs that reach "
            "them, or name the layer that they read in ignore="
        )
    return messages
