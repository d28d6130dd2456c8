"""Commands that help to choose: ``sweep`` and ``sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from ..choosing.sweeping import DEFAULT_BUDGETS, sweep
from ..plan import checkpoint
from ..pruning.allocation.budget import Budget
from ..pruning.allocation.sensitivity import measure_sensitivity
from ..pruning.criteria import DEFAULT_CRITERION
from ..training.finetuning import finetune
from ..utils.distributed import launched_processes
from ..utils.errors import InputError
from ..utils.modules import in_evaluation
from .amounts import BudgetText, Keep, Remove, amounts_of
from .options import (
    DATA_HELP,
    Force,
    InputShape,
    Layers,
    ModelName,
    Weights,
    build_model,
    check_out,
    example_input,
    load_data,
)
from .output import Json, check_new_file, say, write_json
from .program import if_interrupted
from .results import sensitivity_headline
from .written_paths import PathCheckingCommand

_Data = Annotated[str, typer.Option("--data", help=f"{DATA_HELP}. Accuracy is measured on its held-out part.")]


def sweep_command(
    model: ModelName,
    data_name: _Data,
    weights: Weights = None,
    remove: Remove = None,
    keep: Keep = None,
    budget: BudgetText = None,
    policies: Annotated[
        list[str] | None, typer.Option("--ratios", help="A policy as for prune. May be repeated. Default: prune's.")
    ] = None,
    criteria: Annotated[
        list[str] | None,
        typer.Option("--criterion", help="A criterion as for prune. May be repeated. Default: prune's."),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning for every network; 0 for none.")] = 0,
    latency: Annotated[bool, typer.Option("--latency", help="Also measures the time of one call.")] = False,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder for the results. The same command goes on there after an interruption."),
    ] = None,
    within: Annotated[
        float, typer.Option(help="Points of accuracy that the smallest network may lose, for the last line and --out.")
    ] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Folder for the checkpoint of that network.")] = None,
    force: Force = False,
    plot: Annotated[Path | None, typer.Option(help="File for a picture, such as sweep.svg.")] = None,
    json: Json = None,
    input_shape: InputShape = None,
) -> None:
    """Prune to several sizes in several ways, recover each on the training images, and measure accuracy and size.

    --remove and --keep may be repeated. Without them: 20, 35, 50, 65 and 80 % of the multiply-accumulates removed.
    """
    amounts = amounts_of(remove, keep, budget)
    budgets = [amount for amount in amounts if isinstance(amount, Budget)]
    if len(budgets) < len(amounts):
        raise InputError("filters=SHARE: a sweep compares networks by size: give params=, macs=, memory= or latency=")
    if out is not None:
        checkpoint.check_destination(out)
        check_out(out, force)
    if plot is not None:
        check_new_file("--plot", plot)
    if epochs < 0:
        raise InputError(f"--epochs {epochs}: give 0 or a positive number")
    network = in_evaluation(build_model(model, weights))
    train, held_out = load_data(data_name, model, input_shape)

    def tune(pruned: nn.Module) -> None:
        finetune(pruned, train, epochs=epochs, progress=False)

    tune.__qualname__ = f"finetune for {epochs} epochs on {data_name}"  # points are kept apart by it
    with if_interrupted(_kept(results, "--results")):
        found = sweep(
            network,
            example_input(model, input_shape),
            train,
            val_loader=held_out,
            budgets=budgets or DEFAULT_BUDGETS,
            policies=policies or (None,),
            criteria=criteria or (None,),
            tune=tune if epochs else None,
            latency=latency,
            results=results,
        )
    main = launched_processes().rank == 0
    if main:
        say(found)
        write_json(json, found.to_json())
        if plot is not None:
            found.plot(plot)
    point = found.smallest(within)
    if main:
        say(f"the smallest within {within:g} points: {point.name}: {point.value:.4f} with {point.macs:,} MACs")
    if out is not None:
        made = found.make(point)
        if main:
            say(f"saved in {checkpoint.save(made, out)}")


def sensitivity_command(
    model: ModelName,
    data_name: _Data,
    weights: Weights = None,
    criterion: Annotated[str, typer.Option(help="Decides which channels are removed.")] = DEFAULT_CRITERION,
    layers: Layers = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the values. The same command goes on there after an interruption.")
    ] = None,
    json: Json = None,
    input_shape: InputShape = None,
) -> None:
    """Measure how much accuracy each coupled set of layers costs alone, on the held-out data."""
    network = in_evaluation(build_model(model, weights))
    _, held_out = load_data(data_name, model, input_shape)
    example = example_input(model, input_shape)
    with if_interrupted(_kept(cache, "--cache")):
        measured = measure_sensitivity(network, example, held_out, criterion=criterion, cache=cache)
    if launched_processes().rank == 0:
        say(measured if layers else sensitivity_headline(measured))
        write_json(json, measured.to_json())


def _kept(folder: Path | None, option: str) -> str:
    """What is left of a measurement that was interrupted, and how to go on."""
    if folder is None:
        return f"nothing that was measured is kept: {option} FOLDER keeps it from the first value on"
    return f"what was measured is in {folder}: the same command goes on there"


def register(app: typer.Typer) -> None:
    """Adds these commands to the program.

    Args:
        app: The program.
    """
    app.command("sweep", cls=PathCheckingCommand)(sweep_command)
    app.command("sensitivity", cls=PathCheckingCommand)(sensitivity_command)
