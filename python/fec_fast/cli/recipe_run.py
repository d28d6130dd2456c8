"""Run of a recipe: from the dense network to the fine-tuned checkpoint, with figures for every stage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ..plan import checkpoint
from ..pruning.allocation.budget import Budget
from ..pruning.arguments import calibration_needs, default_choice
from ..pruning.pruner import PruneResult, prune
from ..recovery.batch_norm import recalibrate
from ..recovery.compensation import compensate
from ..scoring.formula import Formula
from ..training.accelerator import training_device
from ..training.finetuning import finetune
from ..training.history import FinetuneResult
from ..training.tasks.detection import Detection
from ..utils.copying import copied_model
from ..utils.distributed import launched_processes
from ..utils.errors import CheckpointError, InputError
from ..utils.evaluation import warn_if_at_chance
from ..utils.files import write_text
from ..utils.machine import describe_machine
from ..utils.model_index import ModelIndex
from ..utils.modules import in_evaluation
from ..utils.random_state import restored_randomness
from ..utils.reading import read_json
from ..utils.text import folded
from ..utils.user_warnings import warn_user
from ..vision import data, zoo
from ..vision.weights import load_weights
from .amounts import amount_of
from .recipe import Recipe

_RECOVER = 1024  # images; the recipe can give another number
# The ridge that gives the best start for training, which follows (docs/recovery.md).
_RIDGE = 0.3
_RECIPE, _RESULTS, _CHECKPOINT, _STATES = "recipe.json", "results.json", "checkpoint", "training"


def run_recipe(
    recipe: Recipe, out: str | Path, *, resume: bool = False, progress: bool = True, console: Console | None = None
) -> dict[str, Any]:
    """Prunes a network, fine-tunes it, and measures every stage on held-out data.

    The folder receives ``recipe.json``; ``training/`` with the states of unfinished trainings; ``checkpoint/`` with the
    fine-tuned network for :func:`fec_fast.load`; and at the end ``results.json``. Under ``accelerate launch`` rank 0
    writes.

    Args:
        recipe: The validated recipe.
        out: A folder that does not exist or is empty. To resume: the folder of an unfinished run of this recipe.
        resume: Continue that run: trainings continue after their last epoch, the other stages are repeated.
        progress: Show progress bars of the trainings on standard error.
        console: Console for the figures of each stage; ``None`` is standard output of rank 0.

    Returns:
        The figures, equal to the content of ``results.json``.

    Raises:
        InputError: Data, model or folder cannot be used; raised before any work.
        CheckpointError: The folder holds a run of another recipe, or the weights do not fit the model.
        FecError: Pruning or training failed.
    """
    folder, group = Path(out), launched_processes()
    main = group.rank == 0
    console = console or Console(quiet=not main)

    def check() -> dict[Any, Any]:
        if main:
            _check_folder(folder, recipe, resume)
        return {}

    group.merge_results(check)  # no rank may look at the folder after rank 0 began to write
    settings = recipe.training
    with restored_randomness():
        torch.manual_seed(settings.seed)  # random weights must be equal on all ranks
        model = in_evaluation(zoo.build(recipe.model, **recipe.content.get("model_options", {})))
    # Convolutions train faster so: MobileNetV2 and ResNet-56 on a CPU 1.5 and 1.1 times.
    model.to(memory_format=torch.channels_last)
    if recipe.weights is not None:
        load_weights(model, recipe.weights)
    else:
        warn_user("the recipe names no weights (--weights): the network starts from random weights")
    train, held_out = data.load(**recipe.data)
    shape = _shape(recipe)
    example: Any = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    task = recipe.task
    if isinstance(task, Detection):
        example = list(example.sigmoid())
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _RECIPE, json.dumps(recipe.content, indent=1) + "\n")
    metrics: dict[str, dict[str, float]] = {}

    def measure(stage: str, network: nn.Module) -> None:
        network.to(device)  # as a statement here and below: a model's own to() may return nothing
        metrics[stage] = task.evaluate(network, held_out)
        network.cpu()
        values = ", ".join(f"{name} {value:.4f}" for name, value in metrics[stage].items())
        console.print(folded(f"{stage:<14} {values}"), soft_wrap=True)
        # Right after the cut, what recovers the network may be still to come.
        if main and "accuracy" in metrics[stage] and (stage != "pruned" or not recovers):
            warn_if_at_chance(network, example, metrics[stage]["accuracy"], stage)

    images, recalibrated = _images(recipe), recipe.content.get("recalibrate")
    recovers = bool(images or recalibrated)
    start = time.perf_counter()
    device = training_device()
    with restored_randomness():
        torch.manual_seed(settings.seed)  # for criterion "random"
        measure("before", model)
        result = _pruned(model, example, recipe, train)
        latency = result.latency(model, example, min_run_time=0.5)
        console.print(folded(result.summary(latency)), soft_wrap=True)
        measure("pruned", result.model)
        if images:
            model.to(device)
            result.model.to(device)
            recovery = compensate(
                model, result.model, result.plan, train, ridge=_RIDGE, images=images, progress=progress
            )
            result = result.with_recovery(recovery)
            console.print(folded(str(recovery)), soft_wrap=True)
            model.cpu()
            measure("recovered", result.model)
        elif recalibrated:
            result.model.to(device)
            recalibrate(result.model, _first(train, recalibrated))
            measure("recalibrated", result.model)

        def tune(network: nn.Module, stage: str, teacher: nn.Module | None) -> FinetuneResult:
            state = folder / _STATES / stage
            tuned = finetune(
                network,
                train,
                settings=settings,
                val_loader=held_out,
                teacher=teacher,
                task=task,
                checkpoint=state,
                resume=resume and state.is_dir(),
                log_dir=state.with_name(f"{stage}-log"),
                progress=progress,
            )
            measure(stage, network)
            return tuned

        teacher = copied_model(ModelIndex.of(model)) if recipe.content.get("teacher", False) else None
        trainings = {}
        if recipe.content.get("dense", False):
            trainings["dense_tuned"] = tune(copied_model(ModelIndex.of(model)), "dense_tuned", teacher)
        trainings["pruned_tuned"] = tune(result.model, "pruned_tuned", teacher)
    results = {
        "format": "fec_fast run",
        "version": 1,
        "machine": describe_machine(),
        "processes": group.world_size,
        "recipe": dict(recipe.content),
        "images": {"train": _count(train), "held_out": _count(held_out)},
        "metrics": metrics,
        "size": {
            "before": {"parameters": result.before.parameters, "macs": result.before.macs},
            "after": {"parameters": result.after.parameters, "macs": result.after.macs},
            "removed": {
                "parameters": 1 - result.after.parameters / result.before.parameters,
                "macs": 1 - result.after.macs / result.before.macs,
            },
        },
        "latency_ms": {"before": 1000 * latency.before, "after": 1000 * latency.after, "shape": list(shape)},
        "training": {
            stage: {
                "stopped": tuned.stopped,
                "best_epoch": tuned.best_epoch,
                "epochs": [asdict(e) for e in tuned.history],
            }
            for stage, tuned in trainings.items()
        },
        "seconds": round(time.perf_counter() - start, 1),
    }
    if main:
        checkpoint.save(result, folder / _CHECKPOINT)
        write_text(folder / _RESULTS, json.dumps(results, indent=1) + "\n")
    console.print(folded(f"written: {folder / _CHECKPOINT}, {folder / _RESULTS}"), soft_wrap=True)
    return results


def _count(loader: Any) -> int | None:
    """Number of images of a loader; ``None`` if its data set has no length."""
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Checks that a run may use a folder."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; name a folder")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and not (folder / _RECIPE).is_file():
        raise InputError(f"--out {folder} holds files that are not of a run, and is left alone; name another folder")
    if occupied and not resume:
        raise InputError(f"--out {folder} holds a run: continue it with --resume, or name another folder")
    if occupied:
        stored = read_json(folder / _RECIPE, dict[str, Any], CheckpointError)
        own = json.loads(json.dumps(recipe.content))
        changed = [key for key in sorted({*stored, *own}) if stored.get(key) != own.get(key)]
        if changed:
            key = changed[0]
            raise CheckpointError(
                f"--out {folder} holds a run of another recipe: {key:.80} was {stored.get(key)!r:.200} and is "
                f"{own.get(key)!r:.200}"
            )


def _shape(recipe: Recipe) -> tuple[int, ...]:
    """Shape of the example input."""
    shape = recipe.content.get("input_shape")
    return tuple(shape) if shape else zoo.input_shape(recipe.model)


def _first(loader: Iterable[Any], images: int) -> Iterator[Any]:
    """Yields batches until they hold at least this number of images."""
    seen = 0
    for batch in loader:
        yield batch
        seen += len(batch[0])
        if seen >= images:
            return


def _pruned(model: nn.Module, example: Any, recipe: Recipe, train: Any) -> PruneResult:
    """Prunes a network with the options of the recipe."""
    options = recipe.prune
    budget, share = _amount(options)
    fields = options.pop("formula", None)
    formula = None if fields is None else Formula.from_dict(fields)
    recover = train if _images(recipe) else None
    criterion, ratios = options.pop("criterion", None), options.pop("ratios", None)
    if recover is not None:
        sides = options.get("sides", "both")
        criterion, ratios = default_choice(
            model, criterion, ratios, budget=budget, formula=formula, sides=sides, recover=recover
        )
    policy = ratios if isinstance(ratios, str) else None
    return prune(
        model,
        example,
        budget=budget,
        remove=share,
        formula=formula,
        calibration=train if calibration_needs(criterion, policy) else None,
        criterion=criterion,
        ratios=ratios,
        recover=None,  # a stage of its own, after the first accuracy
        **options,
    )


def _amount(options: dict[str, Any]) -> tuple[Budget | None, float | None]:
    """The budget, or the share of every layer's filters to remove; its keys are taken out of the options."""
    given = {
        key: value for key in ("remove", "keep", "budget", "ratio") if (value := options.pop(key, None)) is not None
    }
    if len(given) > 1:
        raise InputError(f"prune.{', prune.'.join(given)}: give one of them")
    for key, value in given.items():
        if key == "ratio":
            return None, value
        amount = Budget(**value) if key == "budget" else amount_of(key, value, f"prune.{key}: {value}")
        return (amount, None) if isinstance(amount, Budget) else (None, amount)
    return None, None


def _images(recipe: Recipe) -> int:
    """How many images the pruned network is recovered on; 0 for none."""
    recover, recalibrated = recipe.content.get("recover"), recipe.content.get("recalibrate")
    return recover or (_RECOVER if recover is None and recalibrated is None else 0)
