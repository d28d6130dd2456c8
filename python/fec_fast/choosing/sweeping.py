"""``sweep``: prunes a network to several sizes in several ways, and measures what each is worth."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..graph.counts import count
from ..pruning.allocation.budget import Budget
from ..pruning.criteria import Criterion, criterion_name
from ..pruning.pruner import PruneResult
from ..recovery.calibration import DATA_FREE, calibration_batches
from ..recovery.compensation import IMAGES
from ..scoring.formula import Formula
from ..utils.arguments import check_network, check_path
from ..utils.copying import copied_model
from ..utils.critical_section import put_back_by, surely_closed
from ..utils.distributed import launched_processes
from ..utils.errors import ArgumentError, FecError, InputError
from ..utils.evaluation import is_at_chance
from ..utils.forward import describe_tensors
from ..utils.model_index import ModelIndex
from ..utils.modules import in_evaluation
from ..utils.progress import progress_bar
from ..utils.public_call import interruptible
from ..utils.random_state import generators_of, restored_randomness, restorer_of, seed_all
from ..utils.timing import time_model, warn_if_busy
from ..utils.user_warnings import warn_user
from ..utils.weights import state_digest
from .combinations import Combination, combinations_of
from .metric import Metric, SweepMetric, checked_metric
from .networks import NetworkMaker
from .points import Beside, DenseNetwork, PointFolder, SweepPoint
from .result import Sweep

DEFAULT_BUDGETS = tuple(Budget(macs=share) for share in (0.2, 0.35, 0.5, 0.65, 0.8))
# Two measurements of one network with one metric may differ by this share: GPUs do not add in one order.
_SAME_VALUE = 0.002


@interruptible
def sweep(
    model: nn.Module,
    example_inputs: Any,
    loader: Any,
    *,
    metric: Metric | None = None,
    val_loader: Iterable[Any] | None = None,
    budgets: Sequence[Budget | str] = DEFAULT_BUDGETS,
    policies: Sequence[str | None] = (None,),
    criteria: Sequence[str | Criterion | None] = (None,),
    tune: Callable[[nn.Module], Any] | None = None,
    latency: bool = False,
    results: str | Path | None = None,
    formula: Formula | None = None,
    sides: str = "both",
    ignore: Sequence[str] = (),
    min_channels: int = 1,
    round_to: int = 1,
    norms: str = "exact",
    progress: bool = True,
) -> Sweep:
    """Prunes copies of a network to several sizes in several ways and measures each. The model is not changed.

    Every combination of a budget, a policy and a criterion gives one network. It is pruned and recovered as
    :func:`fec_fast.prune` does it, on the same images. Under ``accelerate launch`` the processes share the networks;
    with ``tune`` they work on each network together, so that a distributed training can be called there.

    Args:
        model: The network; DataParallel, DistributedDataParallel and torch.compile wrappers are looked through. It is
            measured on the device it is on.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments. Latency is that of this batch size.
        loader: Images for the recovery, as ``recover=`` of :func:`fec_fast.prune` takes them: a loader, an iterable of
            batches or a tensor, of which the first 1,024 are used, without labels; ``"data-free"``; or ``None`` for no
            recovery. Criteria and policies that measure use it too; some need its labels.
        metric: ``None``: accuracy. Or a function from a model (a copy, in evaluation mode) to a number, higher being
            better. Or a task such as :class:`fec_fast.training.tasks.detection.Detection`, whose main metric it is.
        val_loader: Held-out data for accuracy or the task's metric. ``None``: ``loader`` is used, and a warning says
            that the recovery has seen these images.
        budgets: Budgets, or texts such as ``"macs=0.5"``. Default: 20, 35, 50, 65 and 80 % of the multiply-accumulates
            removed.
        policies: What spreads a budget over the layers: names as for ``ratios=`` of :func:`fec_fast.prune`. ``None`` in
            it (the default) is what ``prune`` would take.
        criteria: What decides which channels are removed, as for :func:`fec_fast.prune`. ``None`` in it (the default)
            is what ``prune`` would take.
        tune: A function that trains a network in place, such as ``lambda network: fec_fast.finetune(network, train,
            epochs=2)``; each network is then measured again. ``None``: nothing is trained.
        latency: Whether to measure the time of one call, when all else is done, in one process.
        results: A folder. Every network's figures and plan are written there as soon as they are measured, one JSON
            file each, and are not measured again: an interrupted sweep continues where it stopped. They are kept apart
            by weights, example inputs and all arguments; functions by name only. ``None``: nothing is written.
        formula: As for :func:`fec_fast.prune`, of the criteria ``"fec_l1"`` and ``"fec"``.
        sides: As for :func:`fec_fast.prune`.
        ignore: As for :func:`fec_fast.prune`.
        min_channels: As for :func:`fec_fast.prune`.
        round_to: As for :func:`fec_fast.prune`.
        norms: As for :func:`fec_fast.prune`.
        progress: Whether to show a progress bar on the standard error.

    Returns:
        The measured networks. A combination that cannot be pruned (a budget that cannot be met, say) is listed in
        ``failed`` and reported in a warning.

    Raises:
        ArgumentError: An argument of the wrong kind, before anything is pruned.
        BudgetError: A budget out of its range.
        InputError: Data that cannot be used, a metric that fails, or ``results`` of another metric or other data.
        FecError: No combination could be pruned: the first reason.
    """
    index = ModelIndex.of(model)
    check_network("model", index.model)
    checked = checked_metric(index, metric, loader, val_loader)
    if tune is not None and not callable(tune):
        raise ArgumentError(f"tune: expected a function that trains a network, got {type(tune).__name__}")
    images = _recovery_images(index, loader)
    options = {
        "formula": formula,
        "sides": sides,
        "ignore": tuple(ignore) if isinstance(ignore, Iterable) and not isinstance(ignore, str) else ignore,
        "min_channels": min_channels,
        "round_to": round_to,
        "norms": norms,
    }
    conditions = {
        "weights": state_digest(index.model),
        "example_inputs": describe_tensors(example_inputs),
        "recovery": images if images is None or isinstance(images, str) else "images",
        "metric": checked.name,
        "tune": None if tune is None else getattr(tune, "__qualname__", type(tune).__name__),
        **{name: str(value) for name, value in options.items()},
    }
    jobs = combinations_of(index, budgets, policies, criteria, formula, loader, conditions, options)
    folder = None if results is None else PointFolder(check_path("results", results))
    counts = count(index.model, example_inputs)
    dense_value = checked.measure(in_evaluation(copied_model(index)), "the dense network")
    _warn_about_data(checked, dense_value)
    dense = DenseNetwork(dense_value, counts.parameters, counts.macs)

    team = launched_processes()
    maker = NetworkMaker(index, example_inputs, loader, images, tune, options, progress)
    beside: Beside = {"dense": dense_value}
    stored = team.merge_results(lambda: _stored_points(folder, jobs, beside) if team.rank == 0 else {})
    if team.world_size > 1 and any(job.budget.quantity == "latency_ms" for job in jobs):
        raise ArgumentError(
            "budgets in latency_ms are measured, and processes disturb one another: sweep in one process"
        )
    # Here, because processes measure sensitivity together, and networks apart.
    missing = [job for job in jobs if job.key not in stored]
    maker.measure_sensitivities([job.criterion for job in missing if job.policy == "sensitivity"])
    missing_here = missing if tune is not None else missing[team.rank :: team.world_size]
    told: dict[str, dict[str, str]] = {}
    failures: dict[str, FecError] = {}

    def measure_jobs() -> dict[str, SweepPoint | str]:
        found: dict[str, SweepPoint | str] = {}
        with progress_bar("networks", len(missing_here), shown=progress and team.rank == 0) as done:
            for job in missing_here:
                with _collected_warnings(told, job.name):
                    try:
                        result = maker.pruned(job.budget, job.policy, job.criterion)
                    except ArgumentError:
                        raise
                    except FecError as error:
                        failures[job.name] = error
                        found[job.key] = str(error)
                        done()
                        continue
                    point = _measured(job, result, checked, maker)
                if folder is not None and (tune is None or team.rank == 0):
                    folder.write(job.key, point, beside)
                found[job.key] = point
                done()
        return found

    everything = stored | team.merge_results(measure_jobs)
    _warn_once(told, len(jobs))
    points = {key: point for key, point in everything.items() if isinstance(point, SweepPoint)}
    failed = {job.name: str(everything[job.key]) for job in jobs if job.key not in points}
    if not points:
        name, reason = next(iter(failed.items()))
        raise failures.get(name) or InputError(f"{name}: {reason}")
    if failed:
        name, reason = next(iter(failed.items()))
        warn_user(f"{len(failed)} of {len(jobs)} networks failed, such as {name}: {reason}")
    if latency:

        def measure_latencies() -> dict[str, Any]:
            return _latencies(index, example_inputs, points, maker, progress) if team.rank == 0 else {}

        timed = team.merge_results(measure_latencies)
        first, last = timed.pop("")
        warn_if_busy("the dense network", [first, last])
        dense = replace(dense, latency_ms=1e3 * min(first, last))
        points = {key: replace(point, latency_ms=1e3 * timed[key]) for key, point in points.items()}
    ordered = tuple(points[job.key] for job in jobs if job.key in points)
    _warn_about_chance(checked, dense, ordered)
    return Sweep(checked.name, dense, ordered, failed, maker.again)


def _recovery_images(index: ModelIndex, loader: Any) -> Any:
    """The images that all networks are recovered on, read once; the same in every call with the same data."""
    if loader is None:
        return None
    if isinstance(loader, str):
        if loader != DATA_FREE:
            raise ArgumentError(f"loader={loader!r}: give images (a loader, a tensor), {DATA_FREE!r} or None")
        return loader
    generators = generators_of(loader)
    restore = [restorer_of(generator) for generator in generators]

    def put_back() -> None:
        for call in restore:
            if call is not None:
                call()

    with restored_randomness(), put_back_by(put_back):
        seed_all(0)
        for generator in generators:
            generator.manual_seed(0)
        return [(batch,) for batch in calibration_batches(loader, IMAGES, index)]


def _stored_points(folder: PointFolder | None, jobs: Sequence[Combination], beside: Beside) -> dict[str, Any]:
    """The points that were measured before, by key."""
    points: dict[str, Any] = {}
    for job in jobs if folder is not None else ():
        entry = folder.read(job.key) if folder is not None else None
        if entry is None:
            continue
        points[job.key], there = entry
        old, new = there["dense"], beside["dense"]
        if abs(old - new) > _SAME_VALUE * max(abs(old), abs(new)):
            raise InputError(
                f"results: the networks there were measured with another metric or other data: the dense network had "
                f"{old:.4f} then and has {new:.4f} now; name another folder"
            )
    return points


def _measured(job: Combination, result: PruneResult, metric: SweepMetric, maker: NetworkMaker) -> SweepPoint:
    """Measures one network, before and after its training."""
    pruned = metric.measure(in_evaluation(result.model), job.name)
    tuned = None
    if maker.tune is not None:
        maker.trained(result.model)
        tuned = metric.measure(in_evaluation(result.model), f"{job.name}, tuned")
    sizes = (result.after.parameters, result.after.macs)
    return SweepPoint(
        str(job.budget), job.policy, criterion_name(job.criterion), pruned, tuned, *sizes, None, result.plan
    )


def _latencies(
    index: ModelIndex, example_inputs: Any, points: Mapping[str, SweepPoint], maker: NetworkMaker, progress: bool
) -> dict[str, Any]:
    """The seconds that every network takes, by key, and under ``""`` those of the dense one, at the start and the end.

    All are measured at one time, because they are compared with one another.
    """
    times: dict[str, Any] = {}
    with progress_bar("latency", 2 + len(points), shown=progress) as done:

        def seconds(network: nn.Module | ModelIndex) -> float:
            timing = time_model(network, example_inputs, _LATENCY_PRECISION, _LATENCY_SECONDS)
            done()
            return timing.seconds

        first = seconds(index)
        for key, point in points.items():
            assert point.plan is not None  # it was measured, or read with its plan
            times[key] = seconds(maker.cut(point.plan))
        times[""] = (first, seconds(index))
    return times


# The interval of a median: 1 % either way, or what two seconds give.
_LATENCY_PRECISION, _LATENCY_SECONDS = 0.01, 2.0


@surely_closed
def _collected_warnings(told: dict[str, dict[str, str]], name: str) -> Iterator[None]:
    """Keeps the warnings of one network, by what they are about, to give each of them once at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message)
        told.setdefault(re.sub(r"[\d.,]+", "", text.partition(":")[0]), {}).setdefault(name, text)


def _warn_once(told: dict[str, dict[str, str]], total: int) -> None:
    for texts in told.values():
        name, text = next(iter(texts.items()))
        warn_user(f"{len(texts)} of {total} networks, such as {name}: {text}")


def _warn_about_data(metric: SweepMetric, dense: float) -> None:
    if metric.measured_on_recovery:
        warn_user(
            f"{metric.name} is measured on the images that the networks are recovered on: give held-out data as "
            "val_loader="
        )
    if metric.classes is not None and is_at_chance(dense, metric.classes):
        warn_user(
            f"the dense network's accuracy of {dense:.4f} is about that of guessing among {metric.classes} classes: "
            "load its weights, and check how images are normalised"
        )


def _warn_about_chance(metric: SweepMetric, dense: DenseNetwork, points: Sequence[SweepPoint]) -> None:
    if metric.classes is None or is_at_chance(dense.value, metric.classes):
        return
    lost = [point for point in points if is_at_chance(point.value, metric.classes)]
    if lost:
        warn_user(
            f"{len(lost)} of {len(points)} networks are no better than guessing among {metric.classes} classes, such "
            f"as {lost[0].name} with {lost[0].value:.4f}: remove less, recover on images, or train with tune="
        )
