"""What a checkpoint holds of a pruning during training, and how a model is narrowed by it."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
from torch import nn

from ...plan.plan import Plan, check_plan
from ...plan.shapes import fingerprint
from ...plan.surgery import prune_in_place
from ...utils.errors import CheckpointError, PlanError
from ...utils.model_index import ModelIndex
from ...utils.modules import unwrap_for_surgery
from ...utils.undo import UndoLog, all_or_nothing
from ..allocation.budget import Budget
from ..allocation.measured import Sensitivity
from ..pruner import prune
from .schedule import PruningSchedule

_FORMAT = "fec_fast.training_pruner"
_VERSION = 1
_NOT_DESCRIBED = ("calibration", "verify")  # data, and what has no effect on the result
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Size = Annotated[float, msgspec.Meta(ge=0, le=1e300)]


@dataclass(frozen=True)
class PruningRound:
    """One round that was made.

    Attributes:
        number: The round, from 1. Rounds that were due at the same time are made as one, with the last number.
        steps: The steps of the optimizer until then.
        epochs: The epochs until then.
        size_before: The size before it, in the quantity of the budget.
        size_after: The size after it.
        plan: The plan of this round alone, for the model as it was before it; ``None`` where nothing had to be removed
            any more, and for rounds before a training was resumed.
    """

    number: int
    steps: int
    epochs: int
    size_before: float
    size_after: float
    plan: Plan | None = None


@dataclass(frozen=True)
class Progress:
    """How far a pruning is.

    Attributes:
        original: The fingerprint of the model before the first round.
        size_before: Its size.
        target: The size that the budget leaves.
        steps: The steps of the optimizer so far.
        epochs: The epochs so far.
        rounds: The rounds that were made.
        plan: All rounds as one plan against the original; ``None`` before the first.
        seen: Up to which count of the watched optimizer the steps are counted; not stored.
    """

    original: str
    size_before: float
    target: float
    steps: int = 0
    epochs: int = 0
    rounds: tuple[PruningRound, ...] = ()
    plan: Plan | None = None
    seen: int = 0

    @property
    def done(self) -> int:
        """The number of the last round."""
        return self.rounds[-1].number if self.rounds else 0

    @property
    def size(self) -> float:
        """The size after the last round."""
        return self.rounds[-1].size_after if self.rounds else self.size_before


class _Round(TypedDict):
    number: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    steps: _Count
    epochs: _Count
    size_before: _Size
    size_after: _Size


class _State(TypedDict):
    format: str
    version: int
    schedule: dict[str, Any]
    budget: str
    options: NotRequired[dict[str, str]]
    original: str
    size_before: _Size
    target: _Size
    steps: _Count
    epochs: _Count
    rounds: list[_Round]
    plan: str | None


def settings_of(schedule: PruningSchedule, budget: Budget, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a pruning, of which text, numbers, lists and dictionaries can be stored.

    Args:
        schedule: The schedule.
        budget: The budget.
        options: The options for ``prune``. Those that have their defaults are left out, and data. Of functions and of
            objects that are no dataclasses the name is stored alone.
    """
    defaults = {name: each.default for name, each in inspect.signature(prune).parameters.items()}
    described = {
        name: _described(value)
        for name, value in sorted(options.items())
        if name not in _NOT_DESCRIBED and _described(value) != _described(defaults[name])
    }
    return {"schedule": {**asdict(schedule), "at": list(schedule.at)}, "budget": str(budget), "options": described}


def _described(value: Any) -> str:
    """A text that is the same for equal options, in every process."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{key!r}: {_described(each)}" for key, each in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_described, value)) + "]"
    if isinstance(value, set | frozenset):
        return "[" + ", ".join(sorted(map(_described, value))) + "]"
    if isinstance(value, str | int | float | None):
        return repr(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    contents = ""
    if is_dataclass(value) and not isinstance(value, Sensitivity):  # which may have been measured anew
        contents = _described({each.name: getattr(value, each.name) for each in fields(value)})
    return f"{named.__module__}.{named.__qualname__}{contents}"


def to_state(progress: Progress, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored: text, numbers, lists and dictionaries alone, which every format of checkpoints can hold.

    Args:
        progress: How far the pruning is.
        settings: What :func:`settings_of` returned.
    """
    rounds = [{name: value for name, value in vars(each).items() if name != "plan"} for each in progress.rounds]
    return {
        "format": _FORMAT,
        "version": _VERSION,
        **settings,
        "original": progress.original,
        "size_before": progress.size_before,
        "target": progress.target,
        "steps": progress.steps,
        "epochs": progress.epochs,
        "rounds": rounds,
        "plan": None if progress.plan is None else progress.plan.to_json(),
    }


def progress_of(state: Any) -> Progress:
    """Reads how far a stored pruning is.

    Args:
        state: What :func:`to_state` returned.

    Returns:
        The progress.

    Raises:
        CheckpointError: It is something else, or of another version.
        PlanError: Its plan is damaged.
    """
    checked = _checked(state)
    plan = None if checked["plan"] is None else Plan.from_json(checked["plan"])
    if plan is not None and plan.fingerprint != checked["original"]:
        raise CheckpointError("state: its plan is for another model than it says; it was edited or damaged")
    counts = [(row["number"], row["steps"], row["epochs"]) for row in checked["rounds"]]
    # Every round is after the one before, and none after now.
    in_order = all(
        a[0] < b[0] and a[1] <= b[1] and a[2] <= b[2]
        for a, b in itertools.pairwise([*counts, (math.inf, checked["steps"], checked["epochs"])])
    )
    sizes = [checked["size_before"], checked["target"]]
    sizes += [size for row in checked["rounds"] for size in (row["size_before"], row["size_after"])]
    if not in_order or not all(map(math.isfinite, sizes)):
        raise CheckpointError("state: its rounds are not in order, or its sizes not numbers; it was edited or damaged")
    return Progress(
        checked["original"],
        checked["size_before"],
        checked["target"],
        checked["steps"],
        checked["epochs"],
        tuple(PruningRound(**row) for row in checked["rounds"]),
        plan,
    )


def check_same_settings(state: Any, settings: Mapping[str, Any]) -> None:
    """Checks that a stored pruning has the schedule, the budget and the options of the one that is to go on.

    Args:
        state: What :func:`to_state` returned.
        settings: What :func:`settings_of` returns for the one that is to go on.

    Raises:
        CheckpointError: They differ; the message says in what.
    """
    checked = _checked(state)
    stored = {**checked["schedule"], "budget": checked["budget"]}
    current = {**settings["schedule"], "budget": settings["budget"]}
    differing = [
        f"{name} was {stored.get(name)!r:.80} and is {current.get(name)!r:.80}"
        for name in current
        if stored.get(name) != current[name]
    ]
    options, now = checked.get("options", settings["options"]), settings["options"]
    differing += [
        f"{name} was {options.get(name, 'not given'):.80} and is {now.get(name, 'not given'):.80}"
        for name in sorted({*options, *now})
        if options.get(name) != now.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"state: the pruning cannot go on with other settings ({'; '.join(differing)}): give the old ones"
        )


def stored_plan_for(index: ModelIndex, progress: Progress, what: str) -> Plan | None:
    """The plan by which a model has to be narrowed to go on.

    Args:
        index: The index of the model.
        progress: The stored progress.
        what: What the model is, for the message.

    Returns:
        The plan; ``None`` for a model that has its shapes already.

    Raises:
        PlanError: The model is neither the original nor what the plan leaves of it.
    """
    own, plan = fingerprint(index), progress.plan
    if own == (progress.original if plan is None else plan.pruned_fingerprint):
        return None
    if plan is None or own != plan.fingerprint:
        difference = "the names or shapes of its parameters differ"
        if plan is not None:
            try:
                check_plan(plan, index)
            except PlanError as error:
                difference = str(error)
        raise PlanError(f"{what} is not the one whose training was stored: build it as then; {difference}")
    check_plan(plan, index)
    return plan


def narrow_as_stored(state: Mapping[str, Any], model: nn.Module, copies: Sequence[nn.Module] = ()) -> None:
    """Narrows a model by the plan of a stored pruning, before its weights are loaded and optimizers are made.

    Args:
        state: What ``TrainingPruner.state_dict`` returned.
        model: The original model, or one that has the shapes after pruning and is left as it is. Changed in place.
        copies: Averages of its weights, likewise.

    Raises:
        CheckpointError: The state is something else.
        PlanError: A model is another one. After any error all models are as they were.
    """
    progress = progress_of(state)
    plans = []
    for module in (model, *copies):
        index = ModelIndex.of(unwrap_for_surgery(module))
        plans.append((index, stored_plan_for(index, progress, "the model")))
    with all_or_nothing() as undo:
        narrow(plans, undo)


def narrow(plans: Sequence[tuple[ModelIndex, Plan | None]], undo: UndoLog) -> None:
    """Narrows models by plans that are known to fit.

    Args:
        plans: The indices of the models, each with its plan, or ``None`` to leave it as it is.
        undo: Where each change is announced.
    """
    for index, plan in plans:
        if plan is not None:
            prune_in_place(index, plan, undo)


def _checked(state: Any) -> _State:
    remedy = "give what TrainingPruner.state_dict() returned"
    if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
        raise CheckpointError(f"state: it is no state of a TrainingPruner: {remedy}")
    if state.get("version") != _VERSION:
        raise CheckpointError(
            f"state: it has version {state.get('version')!r:.80}; this version of fec_fast reads {_VERSION}"
        )
    try:
        return msgspec.convert(dict(state), _State)
    except (msgspec.ValidationError, RecursionError) as error:
        raise CheckpointError(f"state: it was edited or damaged: {error}: {remedy}") from error
