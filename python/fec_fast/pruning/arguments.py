"""Argument checks of ``prune``, ``measure_sensitivity`` and ``prune_iteratively``, made before a model is traced.

That ``model`` is a module, :func:`fec_fast.utils.modules.unwrap` checks; budgets, ratios and their combinations are
checked by :mod:`fec_fast.pruning.allocation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..graph.channel_statistics import NORMS
from ..recovery.calibration import DATA_FREE
from ..scoring.formula import Formula
from ..utils.compat import BatchNormBase, own_modules
from ..utils.errors import ArgumentError, RatioError
from .criteria import (
    ABLATION,
    DEFAULT_CRITERION,
    ENTROPY_CRITERIA,
    ERROR_CRITERIA,
    GRADIENT_CRITERIA,
    RECONSTRUCTION,
    Criterion,
    criterion_name,
)

_MOST_ROUNDS = 1000
_LABELLED = "a loader of images and labels"
_UNLABELLED = "a loader or a tensor of images (labels are ignored), or 'data-free'"


def check_scoring_arguments(
    criterion: str | Criterion, formula: Formula | None, sides: str, ignore: Sequence[str]
) -> tuple[str, Formula]:
    """Validates the arguments that say how channels are scored.

    Args:
        criterion: A name or a callable.
        formula: A formula, or ``None``.
        sides: ``"both"`` or ``"producer"``.
        ignore: A sequence of names.

    Returns:
        The criterion's name in a plan, and the formula (``Formula()`` for ``None``).

    Raises:
        ArgumentError: An argument of the wrong kind.
    """
    check_ignore(ignore)
    if sides not in ("both", "producer"):
        raise ArgumentError(f"sides={sides!r}: give 'both' or 'producer'")
    if formula is not None and not isinstance(formula, Formula):
        raise ArgumentError(f"formula: expected a fec_fast.Formula, got {type(formula).__name__}")
    if formula is not None and criterion not in ENTROPY_CRITERIA:
        raise ArgumentError(
            f"formula= belongs to criterion='fec_l1' or 'fec', not to criterion={criterion!r}: leave it out"
        )
    return criterion_name(criterion), formula or Formula()


def check_ignore(ignore: object) -> None:
    """Validates the names of layers that keep their channels.

    Args:
        ignore: A sequence of names.

    Raises:
        ArgumentError: Anything else.
    """
    if isinstance(ignore, str):
        raise ArgumentError(f"ignore={ignore!r:.80}: give a sequence of names, such as ({ignore!r:.80},)")
    names = list(ignore) if isinstance(ignore, Iterable) and not isinstance(ignore, bytes | Tensor) else [ignore]
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise ArgumentError(
            f"ignore: {wrong[0]!r:.80} is no name of a layer: give names, as model.named_modules() has them"
        )


def check_norms(norms: object) -> None:
    """Validates what happens to channels that norms take statistics over.

    Args:
        norms: ``"exact"`` or ``"renormalise"``.

    Raises:
        ArgumentError: Anything else.
    """
    if norms not in NORMS:
        raise ArgumentError(f"norms={norms!r}: give {' or '.join(map(repr, NORMS))}")


def default_choice(
    model: object,
    criterion: Any,
    ratios: Any,
    *,
    budget: object,
    formula: Formula | None = None,
    sides: str = "both",
    calibration: object = None,
    recover: object = None,
) -> tuple[Any, Any]:
    """The criterion and the policy where the caller names none: the best with the given data (docs/defaults.md).

    A network that is recovered loses the channels that others make up for. One that is not, and has a budget, loses
    those that the layers behind miss least: measured on images, or on noise where batch norms say how it is scaled.
    Else filters decide alone.

    Args:
        model: The model.
        criterion: The caller's, or ``None``.
        ratios: The caller's, or ``None``.
        budget: The caller's, or ``None``.
        formula: Of the entropies, or ``None``.
        sides: ``"both"`` or ``"producer"``, as the caller says.
        calibration: The calibration data of ``prune``, or ``None``.
        recover: What the pruned network is recovered on, or ``None`` for no recovery.

    Returns:
        The criterion: the caller's, else ``"reconstruction"``, ``"ablation"`` or ``"fec_l1"``. And the ratios: the
        caller's, else with a budget the name of the criterion if that is one of the first two and the data are there.
    """
    if criterion is None:
        criterion = DEFAULT_CRITERION
        on_errors = recover is not None or (budget is not None and ratios in (None, ABLATION))
        inputs = recover if calibration is None else calibration
        if on_errors and formula is None and sides == "both" and _inputs_are_known(model, inputs):
            criterion = ABLATION if recover is None else RECONSTRUCTION
    if ratios is None and budget is not None and criterion == (ABLATION if recover is None else RECONSTRUCTION):
        ratios = criterion
    return criterion, ratios


def _inputs_are_known(model: object, data: object) -> bool:
    """Whether data say what the layers read: images, or, with none, the batch norms of the model."""
    if isinstance(data, Iterable) and not isinstance(data, str):
        return True
    return data in (None, DATA_FREE) and has_batch_norms(model)


def has_batch_norms(model: object) -> bool:
    """Whether a module has a batch norm; false for what is no module."""
    if not isinstance(model, nn.Module):
        return False
    waiting, seen = [model], {id(model)}
    while waiting:  # up to the first: walks of all modules are for the model's index
        module = waiting.pop()
        if isinstance(module, BatchNormBase):
            return True
        children = [child for child in own_modules(module).values() if child is not None and id(child) not in seen]
        seen.update(map(id, children))
        waiting += children
    return False


def calibration_needs(criterion: str | Criterion | None, policy: str | None) -> dict[str, str]:
    """What needs calibration data, and in what form.

    Args:
        criterion: A name or a callable; ``None`` if :func:`default_choice` has chosen nothing.
        policy: The name of the policy for ratios, if there is one.

    Returns:
        By the argument, such as ``"ratios='sensitivity'"``, the form it needs.
    """
    needs = {}
    if criterion in GRADIENT_CRITERIA:
        needs[f"criterion={criterion!r}"] = _LABELLED
    if criterion in ERROR_CRITERIA:
        needs[f"criterion={criterion!r}"] = _UNLABELLED
    if policy == "sensitivity":
        needs[f"ratios={policy!r}"] = f"{_LABELLED}, or a function from a model to a number"
    if policy in ERROR_CRITERIA:
        needs[f"ratios={policy!r}"] = _UNLABELLED
    return needs


def images_suffice(criterion: str | Criterion, policy: str | None) -> bool:
    """Whether the criterion or the policy needs calibration data, and images without labels will do.

    Args:
        criterion: A name or a callable.
        policy: The name of the policy for ratios, if there is one.
    """
    needs = calibration_needs(criterion, policy)
    return bool(needs) and set(needs.values()) == {_UNLABELLED}


def check_calibration(criterion: str | Criterion, policy: str | None, calibration: object) -> None:
    """Checks that calibration data is given if, and only if, the criterion or the policy needs it.

    Args:
        criterion: A name or a callable.
        policy: The name of the policy for ratios, if there is one.
        calibration: The calibration data, or ``None``.

    Raises:
        RatioError: It is missing, or nothing needs it.
        ArgumentError: It is a function, and something needs images; or an unknown criterion.
    """
    criterion_name(criterion)
    needs = calibration_needs(criterion, policy)
    if calibration is None and needs:
        user, form = next(iter(needs.items()))
        raise RatioError(f"{user} needs calibration=, {form}")
    if calibration is not None and not needs:
        users = "ratios='sensitivity', 'reconstruction' or 'ablation' and criterion='taylor', 'fisher' or these two"
        raise RatioError(f"only {users} need calibration=, nothing else does: leave it out")
    if isinstance(calibration, str):
        for user, form in needs.items():
            if calibration != DATA_FREE or form != _UNLABELLED:
                raise ArgumentError(f"{user}: calibration={calibration!r}; give {form}")
    if calibration is not None and not isinstance(calibration, Iterable):
        for user, form in needs.items():
            if "function" not in form:
                kind = type(calibration).__name__
                raise ArgumentError(f"{user} needs images: calibration= is a {kind}; give {form}")


def check_round_arguments(rounds: int, train: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Validates the arguments of ``prune_iteratively`` that ``prune`` does not have.

    Args:
        rounds: The number of rounds.
        train: A function of a model and a round.
        options: The options for ``prune``.

    Raises:
        ArgumentError: ``rounds`` is not a whole number of at least 1, or ``train`` cannot be called.
        RatioError: ``remove`` or ``ratio`` is given, or ``ratios`` does not name a policy.
    """
    if check_positive_integer("rounds", rounds) > _MOST_ROUNDS:
        raise ArgumentError(f"rounds={rounds}: give at most {_MOST_ROUNDS}; each is to remove something")
    if not callable(train):
        raise ArgumentError(f"train: expected a function of a model and a round, got {type(train).__name__}")
    check_options_of_rounds(options)


def check_options_of_rounds(options: Mapping[str, Any]) -> None:
    """Checks that options for ``prune`` leave it to the budget how much each of several rounds removes.

    Args:
        options: The options.

    Raises:
        RatioError: ``remove`` or ``ratio`` is given, or ``ratios`` does not name a policy.
    """
    for name in ("ratio", "remove"):
        if options.get(name) is not None:
            raise RatioError(
                f"{name}=: give budget= alone; a share does not say how much each of several rounds removes"
            )
    if not isinstance(options.get("ratios"), str | None):
        raise RatioError("ratios=: name a policy; ratios by layer and measured sensitivities hold for one round only")


def check_positive_integer(argument: str, number: object) -> int:
    """Validates a number of channels or rounds.

    Args:
        argument: The name of the argument, for the message.
        number: The number.

    Returns:
        The number.

    Raises:
        ArgumentError: Not a whole number of at least 1, or one of more than 53 bits.
    """
    if type(number) is not int or not 1 <= number <= 1 << 53:
        bound = ", and at most 2**53" if type(number) is int and number > 1 else ""
        raise ArgumentError(f"{argument}={number!r:.80}: give a whole number of at least 1{bound}")
    return number
