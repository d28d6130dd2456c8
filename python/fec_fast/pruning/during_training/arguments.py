"""Checks of the arguments of ``TrainingPruner``, made before anything is changed."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...plan.optimizer_state import check_optimizer, held_parameters, optimizers_in
from ...plan.plan import Plan
from ...plan.shapes import fingerprint
from ...recovery.batch_norm import reestimate
from ...recovery.calibration import DATA_FREE, calibration_batches, count_images
from ...recovery.compensation import FEWEST_IMAGES
from ...utils.copying import copied_model
from ...utils.critical_section import surely_left
from ...utils.errors import ArgumentError, FecWarning, InputError, WeightError, nearest
from ...utils.model_index import ModelIndex
from ...utils.modules import check_not_made_for_inference, check_not_sharded, modules_of, unwrap
from ...utils.random_state import restored_randomness
from ...utils.weights import check_weights
from ..allocation.allocate import AllocationRequest
from ..allocation.budget import Budget
from ..arguments import (
    calibration_needs,
    check_calibration,
    check_options_of_rounds,
    check_scoring_arguments,
    default_choice,
    images_suffice,
)
from ..measured_size import network_size
from ..pruner import prune
from .plain_forward import without_autocast
from .ranks import number_of_processes
from .schedule import BATCH_NORM, IMAGES, PruningSchedule

_MANAGED = ("model", "example_inputs", "budget", "recover")
_NEED_IMAGES = (IMAGES, BATCH_NORM)
_STRUCTURE = ("ignore", "min_channels", "round_to", "norms", "verify")  # what decides whether a budget can be met
_SCORING = ("criterion", "formula", "sides")


def checked_network(model: Any) -> nn.Module:
    """The network inside its wrappers, if it can be changed in place.

    Args:
        model: A module, possibly wrapped.

    Returns:
        The module inside.

    Raises:
        ArgumentError: Not a module.
        WeightError: It is sharded (FSDP, DTensor), or has weights that cannot be scored.
    """
    network = unwrap(model)
    check_not_sharded(modules_of(model))
    check_not_made_for_inference(modules_of(network))
    check_weights(ModelIndex.of(network))
    return network


def checked_optimizers(optimizer: Any, index: ModelIndex) -> tuple[Optimizer, ...]:
    """The optimizers that hold a model's parameters, those inside wrappers first.

    Args:
        optimizer: One, or a sequence of them; they may be wrapped.
        index: The index of the model.

    Returns:
        The optimizers, at least one; wrappers only where they have a state of their own.

    Raises:
        ArgumentError: Another object, or an optimizer that holds no parameter of the model.
    """
    given = (optimizer,) if isinstance(optimizer, Optimizer) or not isinstance(optimizer, Sequence) else optimizer
    for each in given:
        check_optimizer(each)
    found = tuple(inner for each in given for inner in optimizers_in(each))
    for inner in found:
        held_parameters(inner, index)
    if not found:
        raise ArgumentError("optimizer=(): give the optimizer that trains the model, or all of them")
    return found


def listed_copies(copies: Any) -> tuple[Any, ...]:
    """Averages of a model's weights, each once.

    Args:
        copies: One, or any number of them in a list, a set, a generator.
    """
    is_one = isinstance(copies, nn.Module | Tensor) or not isinstance(copies, Iterable)
    return (copies,) if is_one else tuple(copies)


def checked_copies(copies: Sequence[Any], network: nn.Module) -> tuple[nn.Module, ...]:
    """The networks in averages of a model's weights.

    Args:
        copies: For each average its network, or what holds it as ``module`` (torch's ``AveragedModel``, timm's
            ``ModelEmaV3``) or ``ema`` (Ultralytics).
        network: The model, without wrappers.

    Returns:
        The networks.

    Raises:
        ArgumentError: One is not a copy of the model.
    """
    own, wanted, found = {id(each) for each in network.parameters()}, fingerprint(ModelIndex.of(network)), []
    for number, given in enumerate(copies):
        held = [given, getattr(given, "module", None), getattr(given, "ema", None)]
        fitting = [
            inner
            for inner in (unwrap(each) for each in held if isinstance(each, nn.Module))
            if fingerprint(ModelIndex.of(inner)) == wanted
        ]
        if not fitting:
            raise ArgumentError(
                f"copies[{number}]: this {type(given).__name__} is no copy of the model, and holds none as .module or "
                ".ema: give an average of its weights, such as torch's AveragedModel(model)"
            )
        if any(id(each) in own for each in fitting[0].parameters()):
            raise ArgumentError(f"copies[{number}] is the model itself: give copies that have weights of their own")
        found.append(fitting[0])
    return tuple(found)


def checked_options(
    network: nn.Module, schedule: Any, budget: Any, images: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options for ``prune`` in every round, with what the criterion needs.

    Args:
        network: The model, without wrappers.
        schedule: A ``PruningSchedule``.
        budget: A ``Budget``.
        images: What to recover on, or ``None``.
        options: The caller's options.

    Returns:
        The options.

    Raises:
        ArgumentError: An argument of the wrong kind; images that are missing, not needed, or cannot be read twice.
        RatioError: A share to remove, or a calibration that is missing or not needed.
        InputError: Too few images, or none that the model can be run on.
        WeightError: Weights in half precision, which cannot be recovered.
    """
    if not isinstance(schedule, PruningSchedule):
        raise ArgumentError(
            f"schedule={schedule!r:.80}: give a fec_fast.PruningSchedule, such as "
            "PruningSchedule.cubic(range(500, 5001, 500))"
        )
    if not isinstance(budget, Budget):
        raise ArgumentError(f"budget={budget!r:.80}: give a fec_fast.Budget, such as Budget(macs=0.5)")
    known = [name for name in inspect.signature(prune).parameters if name not in _MANAGED]
    for name in options:
        if name not in known:
            hint = "say it in the schedule" if name == "recover" else nearest(name, known)
            raise ArgumentError(f"{name}=: no option of prune in a round; {hint}")
    check_options_of_rounds(options)
    AllocationRequest(ratios=options.get("ratios"), budget=budget)  # an unknown name raises here
    for name, data in (("images", images), ("calibration", options.get("calibration"))):
        if isinstance(data, Iterator):
            raise ArgumentError(f"{name}: a {type(data).__name__} can be read once only, and rounds are many: a list?")
        if number_of_processes() > 1 and type(data).__module__.startswith("accelerate"):
            raise ArgumentError(
                f"{name}: a loader that accelerate has prepared waits for all processes, but the first one alone reads "
                "it: give a plain DataLoader or a list of batches"
            )
    if images is None and schedule.recover in _NEED_IMAGES:
        raise ArgumentError(f"the schedule recovers by {schedule.recover!r}, which needs images=: a loader or a list")
    if images is not None and schedule.recover not in _NEED_IMAGES:
        raise ArgumentError(f"images=: the schedule does not need them (recover={schedule.recover!r}): leave them out")
    _check_recovery(network, schedule.recover, images)
    recover = images if schedule.recover == IMAGES else DATA_FREE if schedule.recover == DATA_FREE else None
    calibration, formula, sides = options.get("calibration"), options.get("formula"), options.get("sides", "both")
    scored: dict[str, Any] = {"formula": formula, "sides": sides, "calibration": calibration, "recover": recover}
    criterion, ratios = default_choice(
        network, options.get("criterion"), options.get("ratios"), budget=budget, **scored
    )
    check_scoring_arguments(criterion, formula, sides, options.get("ignore", ()))
    policy = AllocationRequest(ratios=ratios, budget=budget).policy
    if calibration is None and images_suffice(criterion, policy):
        calibration = DATA_FREE if recover is None and options.get("criterion") is None else recover
    check_calibration(criterion, policy, calibration)
    return dict(options)


def _check_recovery(network: nn.Module, recover: str | None, images: Any) -> None:
    """Raises where the first round could not be recovered."""
    if images is not None:
        with restored_randomness():
            batches = calibration_batches(images, FEWEST_IMAGES, network)
            number = sum(map(count_images, batches))
            if recover == BATCH_NORM:
                # Some models take no single image then: the variance of one value behind a pooling.
                with without_autocast([network]):
                    reestimate(copied_model(ModelIndex.of(network)), [(batch,) for batch in batches])
        if recover == IMAGES and number < FEWEST_IMAGES:
            raise InputError(f"images: {number} are too few: give at least {FEWEST_IMAGES}, better some hundreds")
    if recover in (IMAGES, DATA_FREE):
        for name, parameter in network.named_parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                layer, dtype = name.rpartition(".")[0], str(parameter.dtype).removeprefix("torch.")
                raise WeightError(
                    f"layer {layer!r}: {name} is {dtype}, which is too coarse for recover={recover!r}: keep the "
                    "weights in float32 and train under autocast",
                    layer=layer,
                )


def check_reachable(
    network: nn.Module, example_inputs: Any, budget: Budget, options: Mapping[str, Any]
) -> tuple[float, float, Plan]:
    """Plans the whole budget at once, so that one that cannot be met is refused before the training.

    Args:
        network: The model, without wrappers; not changed.
        example_inputs: What it is called on.
        budget: The budget.
        options: Options for ``prune``.

    Returns:
        The size of the network, the size that the budget leaves, and the plan.

    Raises:
        FecError: As :func:`fec_fast.prune` says.
    """
    names: tuple[str, ...] = _STRUCTURE
    scoring = {"criterion": "l1"}
    if options.get("criterion") is not None and not calibration_needs(options["criterion"], None):
        names, scoring = (*_STRUCTURE, *_SCORING), {}
    trial = {**{name: value for name, value in options.items() if name in names}, **scoring}
    with restored_randomness(), surely_left(warnings.catch_warnings()), without_autocast([network]):
        warnings.simplefilter("ignore", FecWarning)  # of a plan that is not used
        size = network_size(network, example_inputs, budget)
        result = prune(network, example_inputs, budget=budget, recover=None, **trial)
    target = budget.amount if budget.quantity == "latency_ms" else size * (1 - budget.share_of(size))
    return size, target, result.plan
