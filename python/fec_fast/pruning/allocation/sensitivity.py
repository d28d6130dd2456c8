"""Sensitivity: how much accuracy (or another value) each coupled set costs, measured on pruned copies of the model."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...graph.groups import CoupledChannels
from ...plan.shapes import fingerprint
from ...recovery.batch_norm import reestimate
from ...scoring.formula import Formula
from ...utils.arguments import batches_of, check_path
from ...utils.batches import check_labels, images_and_labels
from ...utils.distributed import launched_processes
from ...utils.errors import ArgumentError, InputError, LayerError, PlanError, RatioError
from ...utils.evaluation import evaluate, measured_number
from ...utils.forward import call_model, undisturbed
from ...utils.model_index import ModelIndex
from ...utils.modules import device_of, in_evaluation
from ...utils.progress import progress_bar
from ...utils.public_call import interruptible
from ...utils.user_warnings import warn_user
from ..arguments import check_calibration
from ..context import PruningContext, build_context
from ..criteria import DEFAULT_CRITERION, Criterion
from .measured import Sensitivity
from .ratios import check_ratio
from .sensitivity_cache import SensitivityCache, cache_key

Calibration = Callable[[nn.Module], float] | Iterable[Any]
_WHOLE = "nothing removed"
# A loss of the dense network from re-estimation alone, from which on a warning is given: a point.
_COSTLY = 0.01
DEFAULT_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


@interruptible
def measure_sensitivity(
    model: nn.Module,
    example_inputs: Any,
    calibration: Calibration,
    *,
    at: Sequence[float] = DEFAULT_SHARES,
    criterion: str | Criterion = DEFAULT_CRITERION,
    formula: Formula | None = None,
    sides: str = "both",
    ignore: Sequence[str] = (),
    norms: str = "exact",
    cache: str | Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Measures the value of a model when one coupled set at a time loses channels. The model is not changed.

    Every value is measured on a pruned copy. Under ``accelerate launch`` the processes share the work. The model is
    measured on the device it is on.

    Args:
        model: The network; DataParallel, DistributedDataParallel and torch.compile wrappers are looked through.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments. A small batch is enough.
        calibration: A loader of images and labels: the value is the accuracy on it, in [0, 1], after batch norm was
            re-estimated on its images. It is iterated once or twice per value, so a few hundred images are enough. Or
            a function from a model (a copy, in evaluation mode) to a number, higher being better.
        at: The shares of each set's units that are removed, in (0, 1); by default 0.1, 0.3, 0.5, 0.7 and 0.9.
        criterion: Decides which units are removed, those with the lowest scores: a name such as ``"fec_l1"`` (the
            default) or a function, as for :func:`fec_fast.prune`.
        formula: Of the entropies when the criterion is ``"fec_l1"`` or ``"fec"``; ``None`` is ``Formula()``.
        sides: ``"both"`` (the default) or ``"producer"``, as for :func:`fec_fast.prune`.
        ignore: Names of layers, or of modules that hold layers, that keep their channels; by default none.
        norms: ``"exact"`` (the default) or ``"renormalise"``, as for :func:`fec_fast.prune`.
        cache: A folder. Every value is written there as soon as it is measured, and is not measured again: an
            interrupted run continues where it stopped. Values are kept apart by weights, criterion, formula, sides and
            norms. The calibration is not compared, so use another folder for another one. ``None``: nothing is written.
        progress: Whether to show a progress bar on the standard error.

    Returns:
        The values, for ``prune(..., budget=..., ratios=...)``.

    Raises:
        InputError: The loader is empty or has a label that is none of the model's classes, or the function raises or
            returns NaN or infinity.
        ArgumentError: The loader can be iterated only once, the function does not return a number, or another argument
            is of the wrong kind.
        RatioError: A share outside (0, 1).
    """
    check_calibration(criterion, "sensitivity", calibration)
    context = build_context(model, example_inputs, criterion, formula, sides, ignore, calibration, norms)
    return SensitivityMeter(calibration).measure(context.settled(), at, cache, progress)


class SensitivityMeter:
    """Measures the sensitivity of one model, and remembers the value of every pruned copy it has measured.

    When :func:`fec_fast.prune` has to plan again, most coupled sets are the same as before: their values are taken from
    memory. A copy is identified by the labels of the units it has lost, which a changed set has in common with the set
    it was before.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Starts with nothing measured.

        Args:
            calibration: A loader of images and labels, or a function from a model to a number, as for
                :func:`measure_sensitivity`.
        """
        self._calibration = calibration
        self._value_of: Callable[[nn.Module, str], float] | None = None  # the checked calibration
        self._values: dict[tuple[int, ...], float] = {}  # by the labels of the removed units, rising

    def measure(
        self,
        context: PruningContext,
        at: Sequence[float] = DEFAULT_SHARES,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> Sensitivity:
        """Measures the values that are not known yet.

        Args:
            context: The traced and scored model; the same model in every call.
            at: The shares of each set's units that are removed, in (0, 1).
            cache: A folder for the values, or ``None``.
            progress: Whether to show a progress bar on the standard error.

        Returns:
            The values of all coupled sets of the context.

        Raises:
            FecError: As :func:`measure_sensitivity` says.
        """
        folder = None if cache is None else check_path("cache", cache)
        if isinstance(at, str | bytes) or not isinstance(at, Sequence) or not len(at):
            raise ArgumentError(f"at={at!r:.80}: give at least one share, such as (0.1, 0.5)")
        for share in at:
            if not check_ratio("at", share) > 0:
                raise RatioError(f"at={share!r}: give shares between 0 and 1")
        if self._value_of is None:
            self._value_of = _checked_calibration(context, self._calibration)
        value_of = self._value_of
        sets = context.coupling.sets
        names = _unique_names(sets)
        # A job is a set and how many of its units are removed; ("", 0) is the model itself.
        jobs: list[tuple[str, int]] = [("", 0)]
        for name, coupled in zip(names, sets, strict=True):
            units = len(coupled.units)
            counts = sorted({min(units - 1, max(1, round(share * units))) for share in at})
            jobs += [(name, count) for count in counts if count]

        def counts_of(job: tuple[str, int]) -> list[int]:
            return [job[1] if name == job[0] else 0 for name in names]

        labels_of_job = {job: context.removed_labels(counts_of(job)) for job in jobs}
        store = None if folder is None else SensitivityCache(folder, cache_key(context))
        if store is not None:
            self._values |= {labels_of_job[job]: value for job, value in store.values.items() if job in labels_of_job}
        team = launched_processes()
        jobs_here = jobs[team.rank :: team.world_size]

        def measure_jobs() -> dict[tuple[int, ...], float]:
            missing = [job for job in jobs_here if labels_of_job[job] not in self._values]
            with progress_bar("sensitivity", len(missing), shown=progress and team.rank == 0) as done:
                for job in missing:
                    name, removed = job
                    description = f"{removed} units less in {name}" if name else _WHOLE
                    value = value_of(in_evaluation(context.pruned_copy(counts_of(job))), description)
                    self._values[labels_of_job[job]] = value
                    if store is not None:
                        store.append(name, removed, value, team.rank)
                    done()
            return {labels_of_job[job]: self._values[labels_of_job[job]] for job in jobs_here}

        self._values |= team.merge_results(measure_jobs)
        values: dict[str, dict[int, float]] = {name: {} for name in names}
        for (name, removed), labels in labels_of_job.items():
            if name:
                values[name][removed] = self._values[labels]
        units_of = {name: len(coupled.units) for name, coupled in zip(names, sets, strict=True)}
        return Sensitivity(fingerprint(context.index), self._values[()], units_of, values)


def knapsack_thresholds(sensitivity: Sensitivity, context: PruningContext, prices: np.ndarray) -> list[np.ndarray]:
    """The policy ``"sensitivity"``: units are removed by the value lost per unit of what the budget counts.

    This is the greedy solution of the linear relaxation of the multiple-choice knapsack (Kellerer, Pferschy & Pisinger,
    Knapsack Problems, 2004, chapter 11): the losses of each set are replaced by their lower convex hull, on which the
    loss per unit rises, so that the cheapest next unit of all sets is always the right one to take.

    Args:
        sensitivity: The measured values.
        context: The traced model.
        prices: Float64 ``[sets]``, positive: what removing one unit of each set saves, relative to the average set.

    Returns:
        For each set float64 ``[units]``, rising, see :mod:`fec_fast.pruning.allocation.policies`.

    Raises:
        PlanError: The values were measured on a model of other names or shapes.
        LayerError: A set was not measured.
    """
    if sensitivity.fingerprint != fingerprint(context.index):
        raise PlanError("ratios: the sensitivity was measured on a model of other names or shapes; measure this one")
    # A calibration set of hundreds of images cannot tell small losses apart: most measured losses near zero are noise.
    # One hundredth of the value, growing with the square of the removed share, is added to the loss of every set, so
    # that removal is spread evenly wherever the measurement says nothing else.
    smallest_loss = 0.01 * (abs(sensitivity.whole) or 1.0)
    losses = [sensitivity.whole - value for values in sensitivity.values.values() for value in values.values()]
    # The loss when all units of a set are removed, which cannot be measured: worse than everything that was.
    loss_of_a_set = 2 * max(smallest_loss, *losses)
    rows = []
    sets = context.coupling.sets
    for name, coupled, price in zip(_unique_names(sets), sets, prices.tolist(), strict=True):
        if name not in sensitivity.values:
            raise LayerError(f"ratios: the sensitivity of {name!r} was not measured; ignore it, or measure it")
        units = len(coupled.units)
        points = sorted(sensitivity.values[name].items())
        removed = np.array([0, *(number for number, _ in points), units], dtype=np.float64)
        # Removing more cannot gain anything: where a measurement says so, it is noise, and counts as no further loss.
        lost = np.maximum.accumulate(
            [0.0, *(max(0.0, sensitivity.whole - value) for _, value in points), loss_of_a_set]
        )
        corners = lower_hull(removed, lost)
        loss_at = np.interp(np.arange(units + 1), removed[corners], lost[corners])
        loss_at += smallest_loss * (np.arange(units + 1) / units) ** 2
        rows.append(np.diff(loss_at) / price)
    return rows


def _unique_names(sets: Sequence[CoupledChannels]) -> list[str]:
    """A name for each set; where several sets begin with the same layer, the later ones are numbered."""
    seen: Counter[str] = Counter()
    names = []
    for coupled in sets:
        seen[coupled.name] += 1
        names.append(coupled.name if seen[coupled.name] == 1 else f"{coupled.name} ({seen[coupled.name]})")
    return names


def lower_hull(x: np.ndarray, y: np.ndarray) -> list[int]:
    """The corners of the lower convex hull of some points (Andrew's monotone chain).

    Args:
        x: ``[points]``, rising.
        y: ``[points]``.

    Returns:
        The positions of the corners, rising; the first and the last point are corners.
    """
    corners: list[int] = []
    for point in range(len(x)):
        while len(corners) > 1:
            last, before = corners[-1], corners[-2]
            # The last corner stays one if the line to the new point is steeper behind it than before it.
            if (y[last] - y[before]) * (x[point] - x[before]) < (y[point] - y[before]) * (x[last] - x[before]):
                break
            corners.pop()
        corners.append(point)
    return corners


def _checked_calibration(context: PruningContext, calibration: Calibration) -> Callable[[nn.Module, str], float]:
    """The function that is measured. Its second argument says what was removed, for its error messages."""
    function: Callable[[nn.Module], Any]
    if isinstance(calibration, Iterable):
        check_labelled_loader(context.index, calibration, "calibration")
        function = functools.partial(_accuracy, loader=calibration)
    elif callable(calibration):
        function = calibration
    else:
        kind = type(calibration).__name__
        raise ArgumentError(f"calibration: expected a loader or a function from a model to a number, got {kind}")

    advice = "what was measured before is in the cache, if you gave one"

    def value_of(model: nn.Module, description: str) -> float:
        of_dense = isinstance(calibration, Iterable) and description == _WHOLE
        before = evaluate(model, calibration) if of_dense else 0.0  # type: ignore[arg-type]
        value = measured_number(function, model, "the calibration", f"with {description}", advice)
        if of_dense and before - value > _COSTLY:
            warn_user(
                f"re-estimating batch norm on the calibration costs the dense network {100 * (before - value):.1f} "
                f"points of accuracy ({before:.4f} before, {value:.4f} after), so every value is too low: give more "
                "images, batches of at least 32, mixed classes, and the preprocessing of the training"
            )
        return value

    return value_of


def _accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """The accuracy on labelled images, after batch norm was re-estimated on them."""
    reestimate(model, loader)
    return evaluate(model, loader)


def check_labelled_loader(index: ModelIndex, loader: Iterable[Any], argument: str) -> int:
    """Checks all labels against the model's classes, before hours of measurements.

    Args:
        index: The index of the model.
        loader: The images and labels.
        argument: The name of the argument, for messages.

    Returns:
        The number of classes.

    Raises:
        ArgumentError: The loader can be iterated only once.
        InputError: It is empty or has a label that is none of the model's classes, or the model returns no logits.
    """
    if isinstance(loader, Iterator):
        raise ArgumentError(f"{argument}: an iterator can be iterated only once; give a DataLoader or a list")
    classes = total = 0
    for images, labels in map(images_and_labels, batches_of(loader, argument)):
        if not total:
            with undisturbed(index):
                logits = call_model(index.model, images[:1].to(device_of(index.model), copy=True))
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise InputError(f"{argument}: the model returns no logits [B, classes]; give a function instead")
            classes = logits.shape[1]
        check_labels(labels, classes, f"the {argument} data")
        total += len(labels)
    if not total:
        raise InputError(f"the {argument} data is empty")
    return classes
