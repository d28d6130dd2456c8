"""How much accuracy (or any number of the user's) each coupled set costs, measured on copies that lose its channels."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ...graph.groups import CoupledChannels
from ...plan.shapes import fingerprint
from ...recovery.batch_norm import recalibrate
from ...scoring.formula import Formula
from ...utils.batches import check_labels, images_and_labels
from ...utils.distributed import launched_processes
from ...utils.errors import ArgumentError, InputError, LayerError, PlanError, RatioError
from ...utils.evaluation import evaluate
from ...utils.forward import call_model, undisturbed
from ...utils.modules import device_of
from ..context import Problem, pose
from ..criteria import DEFAULT_CRITERION, ENTROPY_CRITERIA, Criterion
from .ratios import check_ratio

Calibration = Callable[[nn.Module], float] | Iterable[Any]
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Sensitivity:
    """What a model comes to when one coupled set loses channels.

    Attributes:
        fingerprint: Of the model, as a plan has it.
        whole: The value with nothing removed.
        units: The units of each set, by its name.
        values: For each set, the value by the number of units that are gone.
    """

    fingerprint: str
    whole: float
    units: dict[str, int]
    values: dict[str, dict[int, float]]

    def __str__(self) -> str:
        """A table: a row a set, the value at each share that was measured."""
        width = max(map(len, self.values), default=3)
        lines = [f"{'set'.ljust(width)}  units  value by share removed (nothing removed: {self.whole:.4g})"]
        for name, found in self.values.items():
            units = self.units[name]
            shares = "  ".join(f"{n / units:.2f}: {value:.4g}" for n, value in sorted(found.items()))
            lines.append(f"{name.ljust(width)}  {units:5}  {shares}")
        return "\n".join(lines)


def measure_sensitivity(
    model: nn.Module,
    example_inputs: Any,
    calibration: Calibration,
    *,
    at: Sequence[float] = RATIOS,
    criterion: str | Criterion = DEFAULT_CRITERION,
    formula: Formula | None = None,
    sides: str = "both",
    ignore: Sequence[str] = (),
    cache: str | Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Measures what a model comes to when one coupled set at a time loses channels. The model is not changed.

    Every measurement is made on a pruned copy. Under ``accelerate launch`` the processes share the work; the model is
    measured on the device it is on.

    Args:
        model: The network.
        example_inputs: See :func:`fec_fast.prune`, as are criterion, formula, sides and ignore.
        calibration: A loader of images and labels: the value is the accuracy on it, after batch norm was re-estimated
            on its images; it is gone through once or twice for every measurement, so a few hundred images will do. Or
            a function from a model (a copy, in evaluation mode) to a number, higher being better.
        at: The shares at which each set is measured.
        criterion: Which channels go.
        formula: Of the entropies.
        sides: ``"both"`` or ``"producer"``.
        ignore: Layers that keep their channels.
        cache: A folder. Every value is written there as soon as it is known, and not measured again: a run that was
            interrupted goes on where it stopped. Values are kept apart by weights, criterion, formula and sides; the
            calibration is not looked at, so give another one another folder.
        progress: Show a bar on the standard error.

    Returns:
        The values, for ``prune(..., budget=..., ratios=...)``.

    Raises:
        InputError: The loader is empty or its labels are none of the model's classes, or the function raises or
            returns NaN or infinity.
        ArgumentError: The loader can be gone through only once, the function returns no number, or another argument
            of the wrong kind.
        RatioError: A share outside (0, 1).
    """
    return measure(pose(model, example_inputs, criterion, formula, sides, ignore), calibration, at, cache, progress)


def measure(
    problem: Problem,
    calibration: Calibration,
    at: Sequence[float] = RATIOS,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """See :func:`measure_sensitivity`.

    Args:
        problem: The traced and scored model.
        calibration: See there, as the others.
        at: See there.
        cache: See there.
        progress: See there.

    Returns:
        The values.

    Raises:
        FecError: See there.
    """
    for share in at:
        if not check_ratio("at", share) > 0:
            raise RatioError(f"at={share!r}: give shares between 0 and 1")
    value_of = _value_of(problem, calibration)
    sets = problem.coupling.sets
    names = _names(sets)
    jobs: list[tuple[str, int]] = [("", 0)]
    for name, one in zip(names, sets, strict=True):
        units = len(one.units)
        jobs += [(name, n) for n in sorted({min(units - 1, max(1, round(share * units))) for share in at}) if n]
    position = {name: number for number, name in enumerate(names)}

    def value(name: str, number: int) -> float:
        counts = [0] * len(sets)
        if name:
            counts[position[name]] = number
        return value_of(problem.pruned(counts).eval(), f"{number} units less in {name}" if name else "nothing removed")

    store = _Store(None if cache is None else Path(cache), _key(problem))
    place = launched_processes()
    mine = jobs[place.rank :: place.world_size]

    def work() -> dict[tuple[str, int], float]:
        found = dict(store.known)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not progress or place.rank > 0) as bar:
            for job in bar.track([job for job in mine if job not in found], description="sensitivity"):
                found[job] = value(*job)
                store.keep(job, found[job], place.rank)
        return {job: found[job] for job in mine}

    known = place.merge_results(work)
    return Sensitivity(
        fingerprint(problem.index),
        known["", 0],
        {name: len(one.units) for name, one in zip(names, sets, strict=True)},
        {name: {n: known[job, n] for job, n in jobs if job == name} for name in names},
    )


def knapsack(sensitivity: Sensitivity, problem: Problem, prices: np.ndarray) -> list[np.ndarray]:
    """The order in which a knapsack takes units: by the value lost for each unit's share of what a budget counts.

    A set's losses become their lower convex hull, as in the linear relaxation of the multiple-choice knapsack, and are
    taken as linear between the points. A calibration set of hundreds of images cannot tell small losses apart, so one
    hundredth of the value, growing with the square of the share that is removed, is added to every set's loss: where
    nothing else tells, removal is spread evenly.

    Args:
        sensitivity: What was measured.
        problem: The traced model.
        prices: For each set, what one unit less saves.

    Returns:
        For each set ``[units]``, see :mod:`fec_fast.pruning.allocation.policies`.

    Raises:
        PlanError: The values were measured on another model.
        LayerError: A set was not measured.
    """
    if sensitivity.fingerprint != fingerprint(problem.index):
        raise PlanError("ratios: the sensitivity was measured on a model of other names or shapes; measure this one")
    floor = 0.01 * (abs(sensitivity.whole) or 1.0)
    losses = [sensitivity.whole - value for found in sensitivity.values.values() for value in found.values()]
    worst = 2 * max(floor, *losses)  # what losing a whole set counts as
    rows = []
    sets = problem.coupling.sets
    for name, one, price in zip(_names(sets), sets, prices.tolist(), strict=True):
        if name not in sensitivity.values:
            raise LayerError(f"ratios: the sensitivity of {name!r} was not measured; ignore it, or measure it")
        units = len(one.units)
        points = sorted(sensitivity.values[name].items())
        removed = np.array([0, *(n for n, _ in points), units], dtype=np.float64)
        lost = np.maximum.accumulate([0.0, *(max(0.0, sensitivity.whole - value) for _, value in points), worst])
        corners = _hull(removed, lost)
        line = np.interp(np.arange(units + 1), removed[corners], lost[corners])
        line += floor * (np.arange(units + 1) / units) ** 2
        rows.append(np.diff(line) / price)
    return rows


def _names(sets: Sequence[CoupledChannels]) -> list[str]:
    """A name for each set; of several that begin with the same layer, the later ones are numbered."""
    seen: Counter[str] = Counter()
    names = []
    for one in sets:
        seen[one.name] += 1
        names.append(one.name if seen[one.name] == 1 else f"{one.name} ({seen[one.name]})")
    return names


def _hull(x: np.ndarray, y: np.ndarray) -> list[int]:
    """The corners of the lower convex hull of points by rising ``x``."""
    corners: list[int] = []
    for point in range(len(x)):
        while len(corners) > 1:
            last, before = corners[-1], corners[-2]
            if (y[last] - y[before]) * (x[point] - x[before]) < (y[point] - y[before]) * (x[last] - x[before]):
                break
            corners.pop()
        corners.append(point)
    return corners


def _value_of(problem: Problem, calibration: Calibration) -> Callable[[nn.Module, str], float]:
    """The function that is measured, with its mistakes told."""
    function: Callable[[nn.Module], Any]
    if isinstance(calibration, Iterable):
        function = functools.partial(_accuracy, loader=_checked(problem.model, calibration))
    elif callable(calibration):
        function = calibration
    else:
        kind = type(calibration).__name__
        raise ArgumentError(f"calibration: expected a loader or a function from a model to a number, got {kind}")

    def value_of(model: nn.Module, where: str) -> float:
        try:
            value = function(model)
        except Exception as error:
            words = f"the calibration raised {type(error).__name__} with {where}: {error}"
            raise InputError(f"{words}; what was measured before is in the cache, if you gave one") from error
        if isinstance(value, Tensor | np.generic) and value.ndim == 0:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArgumentError(f"the calibration returned a {type(value).__name__} with {where}: return a number")
        if not math.isfinite(value):
            raise InputError(f"the calibration returned {value} with {where}: return a finite number")
        return float(value)

    return value_of


def _accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """On labelled images, after batch norm was re-estimated on them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has no batch norm")
        recalibrate(model, loader)
    return evaluate(model, loader)


def _checked(model: nn.Module, loader: Iterable[Any]) -> Iterable[Any]:
    """The loader, looked through once."""
    if isinstance(loader, Iterator):
        raise ArgumentError("calibration: an iterator can be gone through only once; give a DataLoader or a list")
    classes = total = 0
    for images, labels in map(images_and_labels, loader):
        if not total:
            with undisturbed(model):
                logits = call_model(model, images[:1].to(device_of(model)))
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise InputError("calibration: the model returns no logits [B, classes]; give a function instead")
            classes = logits.shape[1]
        check_labels(labels, classes, "the calibration data")
        total += len(labels)
    if not total:
        raise InputError("the calibration data is empty")
    return loader


def _key(problem: Problem) -> str:
    """A digest of all that a value depends on but the calibration."""
    digest = hashlib.sha256()
    for name, tensor in problem.model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    formula = problem.formula if problem.name in ENTROPY_CRITERIA else None
    digest.update(f"{problem.name} {formula} {problem.sides}".encode())
    digest.update(repr([(one.name, one.units) for one in problem.coupling.sets]).encode())
    return digest.hexdigest()


class _Store:
    """Values on disk: a line each, appended and brought to the disk at once, in a file for each process."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder, self._key = folder, key
        self.known: dict[tuple[str, int], float] = {}
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise InputError(f"cache={str(folder)!r} is a file; name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.glob("sensitivity-*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:  # the last line of a run that was killed while it wrote
                    continue
                if row["key"] == key:
                    self.known[row["set"], row["removed"]] = row["value"]

    def keep(self, job: tuple[str, int], value: float, rank: int) -> None:
        """Writes a value down."""
        if self._folder is None:
            return
        row = {"key": self._key, "set": job[0], "removed": job[1], "value": value}
        with (self._folder / f"sensitivity-{rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write("\n" * (file.tell() > 0 and not _ends_well(file.name)) + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _ends_well(name: str) -> bool:
    """Whether a file ends with a whole line."""
    with open(name, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
