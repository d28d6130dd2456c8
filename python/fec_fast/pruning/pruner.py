"""``prune``: traces, scores, allocates, removes and verifies, in that order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..graph.counts import Counts, comparison_table, counts_of
from ..graph.size_model import SizeModel
from ..plan.alignment import alignment_notes
from ..plan.equivalence import Proof
from ..plan.plan import Plan, check_plan
from ..plan.widths import layer_widths
from ..recovery.compensation import Compensation, compensate
from ..report.content import MeasuredSweep
from ..report.writer import write_report
from ..scoring.formula import Formula
from ..utils.arguments import check_file_to_write
from ..utils.errors import ArgumentError, FecError, InputError, WeightError
from ..utils.frameworks import check_framework
from ..utils.html import html_panel, share_bar
from ..utils.model_index import ModelIndex
from ..utils.precision import outside_autocast
from ..utils.public_call import interruptible
from ..utils.runtimes import TORCH
from ..utils.text import change, short_number
from ..utils.timing import Latency, compare_latency
from ..utils.user_warnings import warn_user
from .allocation.allocate import AllocationRequest, Ratios, removed_shares
from .allocation.budget import Budget
from .allocation.measured import Sensitivity
from .allocation.sensitivity import Calibration
from .cautions import layers_cut_to_the_bone, useless_rounding
from .context import build_context
from .criteria import Criterion
from .data_use import AUTO, BARE, REMEDY, DataUse, choose_data
from .plan_builder import kept_for_norms, layers_by_reason
from .reporting import report_content
from .trial import find_plan, unseen_parts


@dataclass(frozen=True)
class PruneResult:
    """A pruned network, and what was removed.

    Attributes:
        model: The pruned copy.
        plan: What was removed, and why.
        before: Parameters and multiply-accumulates of the original, in total and by layer.
        after: The same of the pruned copy.
        proof: What was compared with the masked original, in which runs, and what they did not reach; ``None`` with
            ``verify=False``.
        recovery: How the model was recovered after that; ``None`` if it was not.
    """

    model: nn.Module
    plan: Plan
    before: Counts
    after: Counts
    proof: Proof | None
    recovery: Compensation | None = None

    def __repr__(self) -> str:
        """One line; :meth:`summary` gives the table."""
        proof = "not proven" if self.proof is None else f"proven to {self.proof.difference:.1g}"
        recovered = ", recovered" if self.recovery is not None and self.recovery.layers else ""
        return f"<PruneResult: {self._sizes()}, {proof}{recovered}>"

    def _repr_html_(self) -> str:
        """For notebooks: sizes before and after, and the widths of the layers."""
        rows = []
        for layer in layer_widths(self.plan, self.before.by_layer):
            kept = "all"
            if layer.width is not None and layer.kept is not None:
                kept = share_bar(layer.kept / layer.width, f"{layer.kept} of {layer.width}")
            rows.append((layer.name, kept, layer.reason or ""))
        facts = [] if self.proof is None else [str(self.proof).partition("\n")[0]]
        facts += [] if self.recovery is None else [self.recovery.note]
        return html_panel(self._sizes(), facts, ("layer", "filters kept", "why none is removed"), rows, "lll")

    def _sizes(self) -> str:
        before, after = self.before, self.after
        parameters = f"{short_number(before.parameters)} to {short_number(after.parameters)} parameters"
        macs = f"{short_number(before.macs)} to {short_number(after.macs)} MACs"
        return (
            f"{parameters} ({change(before.parameters, after.parameters)}), {macs} ({change(before.macs, after.macs)})"
        )

    @property
    def difference(self) -> float | None:
        """The proof's largest relative difference, as :func:`fec_fast.verify_equivalence` returns it."""
        return None if self.proof is None else self.proof.difference

    def with_recovery(self, recovery: Compensation) -> PruneResult:
        """The same result after :func:`fec_fast.compensate` has changed its model.

        Args:
            recovery: What that returned; the plan notes it.

        Returns:
            Another result, with the same model.

        Raises:
            ArgumentError: ``recovery`` is something else.
        """
        if not isinstance(recovery, Compensation):
            raise ArgumentError(f"recovery: expected a fec_fast.Compensation, got a {type(recovery).__name__}")
        return replace(self, plan=self.plan.with_notes(recovery.note), recovery=recovery)

    @interruptible
    def latency(
        self, original: nn.Module, example_inputs: Any, *, min_run_time: float = 1.0, runtime: str = TORCH
    ) -> Latency:
        """Measures how long one call takes before and after pruning, in evaluation mode, with torch's threads.

        Args:
            original: The model that was pruned, because the result does not keep it; it is left as it was.
            example_inputs: What both models are called on: a tensor or list is the single argument, a tuple the
                positional arguments, a dictionary the keyword arguments. Use the batch size that you will use.
            min_run_time: How long to measure each model, in seconds.
            runtime: Where both run: ``"torch"`` (the default), ``"torch.compile"``, ``"onnxruntime"`` or
                ``"openvino"``. What a runtime computes is compared with torch first.

        Returns:
            Both medians in seconds, with the device and the threads; :meth:`summary` can show them.

        Raises:
            PlanError: ``original`` does not have the shapes that were pruned.
            ArgumentError: The models are on different devices, or ``min_run_time`` is not positive, or an unknown
                runtime.
            MissingExtraError: The runtime is not installed.
            InputError: A model cannot be run on the example inputs, or not in the runtime.
            FecError: The runtime computes other outputs than torch.
        """
        index = ModelIndex.of(original)
        check_plan(self.plan, index)
        return compare_latency(index.model, self.model, example_inputs, min_run_time, runtime)

    @interruptible
    def report(
        self,
        path: str | os.PathLike[str],
        original: nn.Module | None = None,
        example_inputs: Any = None,
        *,
        title: str | None = None,
        sensitivity: Sensitivity | None = None,
        sweep: MeasuredSweep | None = None,
        images: Sequence[Tensor] = (),
        filters: Sequence[tuple[str, int]] = (),
    ) -> Path:
        """Writes what was removed, from where and why, into one HTML file with charts. docs/report.md shows one.

        Args:
            path: The file; one of that name is replaced.
            original: The model that was pruned, because the result does not keep it: it adds pictures of its filters
                and how many of them are distinct. It is left as it was.
            example_inputs: What the original was pruned on; they add to the graph which layers read the channels.
            title: The heading; ``None`` is the name of the model's class.
            sensitivity: Curves of :func:`fec_fast.measure_sensitivity`, if they were measured.
            sweep: What :func:`fec_fast.sweep` returned: networks of other sizes, and those that no other beats.
            images: For detectors, float images ``[3, H, W]`` in [0, 1]: what is found in them before and after.
            filters: Layers and positions of filters, such as ``[("conv1", 3)]``, whose distances between channels are
                shown; by default the filters with the lowest and the highest score of every layer.

        Returns:
            The absolute path of the file.

        Raises:
            MissingExtraError: matplotlib is not installed.
            InputError: The path cannot be written to, the original cannot be run on the example inputs, or the images
                are not ones, or not for these models.
            PlanError: ``original`` does not have the shapes that were pruned.
            LayerError: A layer or a filter of ``filters`` does not exist.
            ArgumentError: An argument of the wrong kind, or one that needs the original.
        """
        check_file_to_write("path", path)
        facts = [] if self.proof is None else [str(self.proof).partition("\n")[0]]
        content = report_content(
            self.plan,
            type(ModelIndex.of(self.model).model).__name__ if title is None else title,
            pruned=self.model,
            original=original,
            example_inputs=example_inputs,
            before=self.before,
            after=self.after,
            facts=facts,
            sensitivity=sensitivity,
            sweep=sweep,
            images=images,
            filters=filters,
        )
        return write_report(path, content)

    def summary(self, latency: Latency | None = None) -> str:
        """A table of parameters and multiply-accumulates before and after, by layer, with what could not be pruned.

        A note names the layers whose new width may be slow on hardware: no longer a multiple of 8, or fewer than 8
        channels per group, where the original was better. ``prune(..., round_to=8)`` avoids them.

        Args:
            latency: What :meth:`latency` measured, to be shown as well; ``None`` shows none.

        Returns:
            Text of several lines.

        Raises:
            ArgumentError: ``latency`` is something else.
        """
        if not isinstance(latency, Latency | None):
            raise ArgumentError(f"latency: expected a fec_fast.Latency, got a {type(latency).__name__}")
        lines = [comparison_table(self.before, self.after)]
        if latency is not None:
            lines.append(str(latency))
        lines += [f"kept whole: {layers}: {reason}" for reason, layers in layers_by_reason(self.plan.pinned).items()]
        notes = [*self.plan.notes, *alignment_notes(ModelIndex.of(self.model), self.plan)]
        lines += [f"note: {note}" for note in notes]
        lines += [] if self.proof is None else [str(self.proof)]
        return "\n".join(lines)


@interruptible
@outside_autocast
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    remove: float | Mapping[str, float] | None = None,
    budget: Budget | None = None,
    ratios: Ratios | None = None,
    ratio: float | None = None,
    calibration: Calibration | None = None,
    criterion: str | Criterion | None = None,
    formula: Formula | None = None,
    sides: str = "both",
    ignore: Sequence[str] = (),
    min_channels: int = 1,
    round_to: int = 1,
    norms: str = "exact",
    verify: bool = True,
    recover: Any = AUTO,
) -> PruneResult:
    """Makes a physically smaller copy of a network.

    The model is run once on the example inputs to find which channels are coupled. Every coupled set loses the channels
    with the lowest scores. The model's outputs keep their width. The given model is not changed.

    Args:
        model: The network; DataParallel, DistributedDataParallel and torch.compile wrappers are looked through.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments. A small batch is enough.
        remove: The share of channels to remove from every coupled set, in [0, 1); or a mapping with the share for each
            named layer: layers that are not named (nor coupled to one) are kept whole. ``None``: 0.5 if ``budget`` is
            not given.
        budget: The size that the pruned network must reach; ``None`` if shares are given.
        ratios: With a budget: how removal is spread over the layers. ``None`` (the default): ``"reconstruction"`` if
            the network is recovered and the criterion is that too; ``"ablation"`` if it is not recovered and the
            criterion is that; else ``"entropy"``. ``"entropy"``: by how many filters of a layer are effectively
            distinct. ``"uniform"``: the same share everywhere. ``"global"``: by one ranking of all units' scores.
            ``"reconstruction"``: by the error that is left in the layers that read the channels, once their other
            inputs make up for it; ``"ablation"``: if nothing does. ``"sensitivity"``: by what is measured on the
            calibration, or a :class:`fec_fast.Sensitivity` that was measured before. A mapping: in these proportions.
            A policy object of :mod:`fec_fast.pruning.allocation.policies` has other constants than the named policies.
            Without a budget, a mapping is the same as ``remove``.
        ratio: An older spelling of ``remove`` with a number.
        calibration: What the criterion and the ratios are measured on; ``None`` if neither needs it, or ``recover`` has
            the images, or the defaults take noise. ``"reconstruction"`` and ``"ablation"`` take a loader, an iterable
            of batches or a tensor of images, without labels or with labels that are ignored, and use the first 1,024
            images; or ``"data-free"``, where noise stands in for images behind batch norms. The criteria ``"taylor"``
            and ``"fisher"`` take a loader of images and labels, and use as many. ``ratios="sensitivity"`` takes such a
            loader, or a function from a model to a number, higher being better; see
            :func:`fec_fast.measure_sensitivity`.
        criterion: ``None`` (the default): ``"reconstruction"`` where the network is recovered. Where it is not, for a
            budget that nothing else is said to spread: ``"ablation"``, if ``calibration`` has images, or the model has
            batch norms (on noise then). Else, with ``formula`` or ``sides="producer"``, and with a function as
            ``calibration``: ``"fec_l1"``. Without data: ``"fec_l1"``, the entropy times the L1 norm; ``"fec"``, the
            entropy alone; for comparison ``"l1"``, ``"l2"``, ``"fpgm"``, ``"bn_scale"`` (every coupled
            set needs a batch norm then) or ``"random"`` (by torch's global generator), see
            :mod:`fec_fast.pruning.criteria`; or a function from weights ``[filters, channels, *kernel]`` to one number
            per filter. On the calibration: ``"reconstruction"``, the error that other channels cannot make up for;
            ``"ablation"``, the error if nothing makes up for the channel, for networks that are not recovered (where
            much is lost, also what others could make up for); ``"taylor"`` and ``"fisher"``, from gradients of the loss
            (:mod:`fec_fast.pruning.gradient_scores`). The lowest are removed first.
        formula: Of the entropies when the criterion is ``"fec_l1"`` (the default with a formula) or ``"fec"``; ``None``
            is ``Formula()``.
        sides: ``"both"`` (the default) scores a channel by the filters that make it times the slices that read it
            (``"taylor"``, ``"fisher"``: plus); ``"producer"`` by the filters alone. It has no effect on
            ``"reconstruction"``, ``"ablation"``, ``"bn_scale"`` and ``"random"``.
        ignore: Names of layers, or of modules that hold layers, that keep their channels; by default none.
        min_channels: The number of output channels that every layer keeps, or all where it has fewer; 1 by default.
        round_to: Channels are removed in multiples of this, so that every width (also within a group) that was a
            multiple of it stays one; 1 by default.
        norms: What happens to channels that norms take statistics over. ``"exact"`` (the default): they are kept,
            except whole groups of a group norm, so that every kept channel is normalised as before. ``"renormalise"``:
            they may go, and the statistics run over the kept channels alone, as many in each group of a group norm. The
            network is then proven against the original whose norms do so too (docs/couplings.md).
        verify: Whether to prove the result with :func:`fec_fast.verify_equivalence`; true by default.
        recover: Images without labels (a loader, an iterable of batches, a tensor ``[N, ...]``), of which the first
            1,024 are used: the kept channels take over the work of the removed ones by :func:`fec_fast.compensate`,
            after the proof. ``"data-free"``: without images, where there are batch norms. ``"auto"`` (the default): on
            the images of ``calibration``, if it has some; else data-free, where there are batch norms; else, or if
            that cannot be done, not, and a warning says why. ``None``: the kept weights are those of the original.

    Returns:
        The pruned copy, its plan and its counts.

    Raises:
        RatioError: A share outside [0, 1), different shares for coupled layers, or arguments that contradict; a missing
            calibration, or one that nothing needs.
        BudgetError: A budget that cannot be met; the nearest that can be met is named.
        LayerError: An unknown name, or a model with nothing to prune.
        InputError: The model cannot be run on the example inputs or the calibration, or the calibration has no images.
        WeightError: Weights that cannot be scored, or are sharded (FSDP, DTensor).
        ArgumentError: An argument of the wrong kind.
        EquivalenceError: The pruned network is not the masked original; please report it.
    """
    check_framework(model)
    ratio, ratios = removed_shares(remove, ratio, ratios, budget)
    request = AllocationRequest(ratio, ratios, budget, calibration, min_channels, round_to)
    use = choose_data(model, criterion, request, recover, formula=formula, sides=sides)
    context, failure = None, ""
    try:
        data = use.request.calibration
        context = build_context(model, example_inputs, use.criterion, formula, sides, ignore, data, norms)
    except (InputError, WeightError) as error:
        if use.without_noise is None:
            raise
        failure = str(error)
    if context is None:
        instead = use.without_noise
        assert instead is not None
        reason = f"{use.criterion!r} cannot be measured on noise: {failure}"
        note = f"the criterion is {instead.criterion!r}, because {reason}"
        lost = f"nothing is recovered, so most of the accuracy may be lost: {REMEDY}"
        warn_user(f"{note}; {lost if use.recover is not None else 'give calibration=, images without labels'}")
        use = instead
        context = build_context(model, example_inputs, use.criterion, formula, sides, ignore, norms=norms)
        context = replace(context, notes=(*context.notes, note))
    trial = find_plan(context, use.request, verify=verify)
    context, counts, plan, pruned, proof = trial.context, trial.counts, trial.plan, trial.pruned, trial.proof
    macs = context.trace.macs_by_layer()
    hurt = layers_cut_to_the_bone(plan, [name for name in context.index.modules if macs.get(name)])
    rounding = useless_rounding(context.coupling, round_to)
    for message in [*unseen_parts(trial), *kept_for_norms(context.coupling), *hurt, *rounding]:
        warn_user(message)
    if not any(counts) and budget is None and (ratio is None or ratio > 0):
        message = "nothing was pruned: the shares to remove are too small for these widths and round_to"
        warn_user(message)
    before = counts_of(context.index, macs)
    sizes = SizeModel(context.index, context.trace, context.coupling)
    after = counts_of(pruned, sizes.macs_by_layer(counts))
    result = PruneResult(pruned.model, plan, before, after, proof)
    if not any(counts) and use.is_automatic:
        return result  # there is nothing to make up for
    return _recovered(result, context.model, use, example_inputs)


def _recovered(result: PruneResult, dense: nn.Module, use: DataUse, example_inputs: Any) -> PruneResult:
    """The result after its recovery; or as it is, with a warning, where automatic recovery cannot be done."""
    why_not = use.why_not
    if use.recover is not None:
        images = None if isinstance(use.recover, str) else use.recover
        try:
            return result.with_recovery(
                compensate(dense, result.model, result.plan, images, example_inputs=example_inputs)
            )
        except FecError as error:
            if not use.is_automatic:
                raise
            why_not = f"on noise, {error}; {REMEDY}" if images is None else f"{error}, or {BARE}"
    if why_not:
        warn_user(f"not recovered, so most of the accuracy may be lost: {why_not}")
    return result
