"""Command line: ``fec-fast score | prune | explain | report | finetune | run | demo``; other files have the rest."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..plan import checkpoint
from ..plan.plan import Plan
from ..pruning.allocation.budget import Budget
from ..pruning.arguments import calibration_needs, check_positive_integer, default_choice
from ..pruning.criteria import CRITERIA
from ..pruning.data_use import AUTO
from ..pruning.explanation import explain
from ..pruning.pruner import prune
from ..recovery.calibration import DATA_FREE
from ..recovery.compensation import IMAGES, compensate
from ..scoring.formula import Formula
from ..scoring.model_scores import score_model
from ..training.finetuning import finetune
from ..utils.distributed import launched_processes
from ..utils.errors import InputError, LayerError, PlanError
from ..utils.modules import in_evaluation
from ..utils.progress import is_quiet
from ..utils.reading import MOST_JSON_BYTES, read_bytes
from ..utils.text import counted
from ..vision import data, zoo
from ..vision.weights import load_weights
from . import choosing, deploying, doctor
from .amounts import BudgetText, Keep, Remove, amounts_of
from .demo import run_demo
from .file_scores import scores_of_file
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
    example_shape,
    load_data,
    plan_for,
)
from .output import Json, say, write_json
from .program import EXIT_CODES, OneLineErrors, before_the_command, if_interrupted
from .recipe import read_recipe
from .recipe_run import run_recipe
from .report import ReportRequest, write_report_of_folder
from .results import explanation_json, headline, result_json, scores_headline, training_json
from .written_paths import PathCheckingCommand

_NOT_RECOVERED = (
    "not recovered: most of the accuracy may be lost; --calibrate DATA (images) or fec-fast finetune brings it back"
)
_BARE = "none"

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes cut long words off where the terminal is narrow
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Channel-similarity entropy pruning of convolutional networks.",
    epilog=EXIT_CODES,
)
app.callback()(before_the_command)

_Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help=DATA_HELP,
    ),
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value of the recipe, such as finetune.epochs=1."),
]


@app.command("score", cls=PathCheckingCommand)
def score_command(
    model: ModelName,
    weights: Weights = None,
    layers: Layers = False,
    json: Json = None,
    compress: Annotated[str | None, typer.Option(help="rms, absmean, mean or none")] = None,
    axis: Annotated[str | None, typer.Option(help="channels, filters or both")] = None,
    entropy: Annotated[str | None, typer.Option(help="similarity, softmax or distance")] = None,
) -> None:
    """Print the entropy of every convolution's filters, in nats."""
    fields = {"compress": compress, "axis": axis, "entropy": entropy}
    formula = Formula.from_dict({field: value for field, value in fields.items() if value is not None})
    if weights is None:
        scores = score_model(build_model(model, None), formula=formula)
    else:
        scores = scores_of_file(model, weights, formula)
    say(scores if layers else scores_headline(scores))
    write_json(json, scores.to_json())


@app.command("prune", cls=PathCheckingCommand)
def prune_command(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    force: Force = False,
    layers: Layers = False,
    json: Json = None,
    remove: Remove = None,
    keep: Keep = None,
    budget: BudgetText = None,
    ratio: Annotated[float | None, typer.Option(help="An older spelling of --remove filters=SHARE.")] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Policy that spreads a budget over the layers: entropy, uniform, global, sensitivity, reconstruction "
            "or ablation. Default: reconstruction where the network is recovered; else ablation where there are batch "
            "norms; else entropy."
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data as for finetune, such as imagefolder:PATH. On its training images the kept channels take over "
            "the work of the removed ones, without labels; criteria and policies that measure (taylor, fisher, "
            "reconstruction, ablation, sensitivity) use them too. data-free: recovery without images, the default "
            "where there are batch norms. none: no recovery.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Most images that the recovery of --calibrate uses.")] = IMAGES,
    min_channels: Annotated[int, typer.Option(help="Smallest number of channels that every layer keeps.")] = 1,
    weights: Weights = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(CRITERIA)}. Default: reconstruction where the network is recovered; else ablation "
            "for a budget where there are batch norms; else fec_l1."
        ),
    ] = None,
    sides: Annotated[str, typer.Option(help="both or producer")] = "both",
    input_shape: InputShape = None,
    round_to: Annotated[int, typer.Option(help="Keeps widths at multiples of this number.")] = 1,
    norms: Annotated[
        str,
        typer.Option(
            help="exact: channels that norms take statistics over are kept. renormalise: they may go; the statistics "
            "run over the kept channels alone."
        ),
    ] = "exact",
    ignore: Annotated[
        list[str] | None, typer.Option(help="Layer, or module with layers, that keeps its channels. May be repeated.")
    ] = None,
) -> None:
    """Remove filters, verify the result against the masked original, and save it."""
    checkpoint.check_destination(out)
    has_images = calibrate not in (None, _BARE, DATA_FREE)
    if images != IMAGES and not has_images:
        raise InputError(f"--images {images}: it belongs to --calibrate DATA, which is not given")
    check_positive_integer("--images", images)
    amounts = [*amounts_of(remove, keep, budget), *([] if ratio is None else [ratio])]
    if len(amounts) > 1:
        raise InputError(f"{len(amounts)} amounts are given by --remove, --keep, --budget and --ratio: give one")
    target = amounts[0] if amounts and isinstance(amounts[0], Budget) else None
    share = amounts[0] if amounts and not isinstance(amounts[0], Budget) else None
    check_out(out, force)
    example = example_input(model, input_shape)
    network = in_evaluation(build_model(model, weights))
    loader = load_data(str(calibrate), model, input_shape)[0] if has_images else None
    recover = DATA_FREE if calibrate == DATA_FREE else loader
    if recover is not None:
        criterion, ratios = default_choice(network, criterion, ratios, budget=target, sides=sides, recover=recover)
    result = prune(
        network,
        example,
        remove=share,
        ratios=ratios,
        budget=target,
        calibration=recover if calibration_needs(criterion, ratios) else None,
        criterion=criterion,
        sides=sides,
        min_channels=min_channels,
        round_to=round_to,
        norms=norms,
        ignore=ignore or (),
        recover=AUTO if calibrate is None else None,
    )
    if recover is not None:
        options: dict[str, Any] = {"example_inputs": example, "images": images}
        result = result.with_recovery(compensate(network, result.model, result.plan, loader, **options))
    folder = checkpoint.save(result, out)
    say(headline(result))
    if calibrate == _BARE:  # where the library left it out, a warning said why
        say(_NOT_RECOVERED)
    if layers:
        say("\n".join([*([] if result.recovery is None else [str(result.recovery)]), result.summary()]))
    say(f"saved in {folder}")
    write_json(json, result_json(result, folder))


@app.command("explain", cls=PathCheckingCommand)
def explain_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json or the folder of a checkpoint.")],
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="Layer of the model before pruning.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model before pruning; adds the nearest neighbours of each filter."),
    ] = None,
    weights: Weights = None,
    index: Annotated[int | None, typer.Option("--filter", help="Shows this filter only.")] = None,
    removed: Annotated[bool, typer.Option("--removed", help="Shows removed filters only.")] = False,
    json: Json = None,
) -> None:
    """Explain why each filter of a layer was removed or kept: score, rank and coupled layers."""
    if weights is not None and model is None:
        raise InputError(f"--weights {weights}: give the model they belong to with --model")
    network = None if model is None else build_model(model, weights)
    stored = _read_plan(plan)
    with plan_for(str(model), plan):
        explanation = explain(stored, layer, network)
    count = len(explanation.filters)
    if index is not None and index not in range(count):
        raise LayerError(f"--filter {index}: {layer} has {count} filters in the plan, counted from 0")
    rows = [row for row in explanation.filters if index in (None, row.index) and (row.removed or not removed)]
    say("\n".join([explanation.heading(), *map(str, rows)]))
    write_json(json, explanation_json(layer, rows))


@app.command("report", cls=PathCheckingCommand)
def report_command(
    result: Annotated[
        Path, typer.Argument(metavar="RESULT", help="Folder of prune or finetune; of run: OUT/checkpoint.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The HTML file.")] = Path("report.html"),
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model before pruning; adds sizes, and which layers read which channels."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights before pruning, for --model; adds pictures of filters.")
    ] = None,
    input_shape: InputShape = None,
    sensitivity: Annotated[
        str | None,
        typer.Option(
            metavar="DATA|FILE",
            help="What each set costs alone: measured on the held-out part of this data, or the file that 'fec-fast "
            "sensitivity --json FILE.json' wrote.",
        ),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Networks of other sizes: what 'fec-fast sweep --json FILE' wrote."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="For detectors: shows what is found in held-out images of this data."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="LAYER:NUMBER", help="Heat map of this filter. May be repeated."),
    ] = None,
    force: Force = False,
) -> None:
    """Write a page with charts on a pruned model: sizes, every layer with the reasons, scores, coupled layers."""
    check_out(out, force)
    request = ReportRequest(result, out, model, weights, sensitivity, sweep, images, tuple(filters or ()))
    shape = None if model is None else example_shape(model, input_shape)
    say(f"report written to {write_report_of_folder(request, shape)}")


@app.command("finetune", cls=PathCheckingCommand)
def finetune_command(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="torchvision:NAME, zoo:NAME or path/to/file.py:factory")
    ] = None,
    *,
    checkpoint_folder: Annotated[Path, typer.Option("--checkpoint", help="Folder that 'fec-fast prune' wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    config: Annotated[Path | None, typer.Option(help="Recipe with the values that the options do not give.")] = None,
    data_name: _Data = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    overrides: _Set = None,
    force: Force = False,
    json: Json = None,
    state: Annotated[Path | None, typer.Option(help="Folder for the training state, for --resume.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resumes from --state.")] = False,
    log: Annotated[Path | None, typer.Option(help="Folder for metrics.csv.")] = None,
) -> None:
    """Fine-tune a pruned model, evaluate it on the held-out data, and save it."""
    checkpoint.check_destination(out)
    check_out(out, force)
    options_given = {"model": model, "data.name": data_name, "finetune.epochs": epochs}
    recipe = read_recipe(config, overrides or (), options_given)
    plan = checkpoint.read_plan(checkpoint_folder)
    options = recipe.content.get("model_options", {})
    network = zoo.build(recipe.model, **options)
    with plan_for(recipe.model, checkpoint_folder):
        checkpoint.load(network, checkpoint_folder)
    teacher = None
    if recipe.content.get("teacher", False):
        if recipe.weights is None:
            raise InputError("teacher: true needs the weights before pruning: --set weights=FILE")
        teacher = load_weights(zoo.build(recipe.model, **options), recipe.weights)
    train, held_out = data.load(**recipe.data)
    task = recipe.task
    before = task.evaluate(network, held_out)[task.main_metric]
    result = finetune(
        network,
        train,
        settings=recipe.training,
        val_loader=held_out,
        teacher=teacher,
        task=task,
        checkpoint=state,
        resume=resume,
        log_dir=log,
    )
    after = task.evaluate(network, held_out)[task.main_metric]
    say(f"held-out {task.main_metric}: {before:.4f} before, {after:.4f} after {counted(len(result.history), 'epoch')}")
    if launched_processes().rank == 0:
        say(f"saved in {checkpoint.save(network, plan, out)}")
        write_json(json, training_json(task.main_metric, before, after, result))


@app.command("run", cls=PathCheckingCommand)
def run_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe in YAML, such as those in recipes/.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, results.json and the training states.")],
    data_name: _Data = None,
    weights: Weights = None,
    overrides: _Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resumes an unfinished run in --out.")] = False,
    json: Json = None,
) -> None:
    """Run a recipe: measure, prune, fine-tune (the dense network too, on request), save, and write the figures."""
    options_given = {"data.name": data_name, "weights": None if weights is None else str(weights)}
    whole = read_recipe(recipe, overrides or (), options_given)
    console = Console(quiet=True) if is_quiet() else None
    advice = f"finished epochs are kept in {out}: the same command with --resume goes on there"
    with if_interrupted(advice, training=True):
        results = run_recipe(whole, out, resume=resume, console=console)
    if launched_processes().rank == 0:
        write_json(json, json_module.dumps(results, indent=1) + "\n")


@app.command("demo", cls=PathCheckingCommand)
def demo_command(
    json: Annotated[Path, typer.Option("--json", help="File for the figures.")] = Path("fec-fast-demo.json"),
    report: Annotated[Path, typer.Option("--report", help="File for the report.")] = Path("fec-fast-demo.html"),
    force: Annotated[bool, typer.Option("--force", help="Replaces these files.")] = False,
) -> None:
    """Show accuracy against size: a small network on real digits, pruned in three ways, in less than a minute."""
    check_out(json, force, "--json")
    check_out(report, force, "--report")
    with if_interrupted("the demo keeps nothing of an unfinished run: start it again"):
        run_demo(json, report)


def _read_plan(path: Path) -> Plan:
    return checkpoint.read_plan(path) if path.is_dir() else Plan.from_json(read_bytes(path, MOST_JSON_BYTES, PlanError))


choosing.register(app)
deploying.register(app)
doctor.register(app)
