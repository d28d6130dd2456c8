"""Command line: ``fec-fast score | prune | explain | finetune | run | demo | info``."""

from __future__ import annotations

import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from ..plan import checkpoint
from ..plan.plan import Plan
from ..pruning.allocation.budget import Budget
from ..pruning.arguments import calibration_needs, check_positive_integer, default_criterion, default_policy
from ..pruning.criteria import CRITERIA
from ..pruning.explanation import explain
from ..pruning.pruner import prune
from ..recovery.calibration import DATA_FREE
from ..recovery.compensation import IMAGES, compensate
from ..scoring.backends.registry import backends
from ..scoring.formula import Formula
from ..scoring.model_scores import score_model
from ..training.finetuning import finetune
from ..utils.distributed import launched_processes
from ..utils.errors import FecError, InputError, LayerError, PlanError, TrainingInterrupted
from ..utils.files import write_text
from ..utils.reading import MOST_JSON_BYTES, read_bytes
from ..vision import data, zoo
from ..vision.weights import load_weights
from .demo import run_demo
from .recipe import read_recipe
from .recipe_run import run_recipe


class _OneLineErrors(TyperGroup):
    """Reports an error in one line and exits with 2. A traceback is for faults of the program, not of its input."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TrainingInterrupted as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(130) from error
        except (FecError, OSError) as error:
            typer.echo("error: " + " ".join(str(error).split()), err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Channel-similarity entropy pruning of convolutional networks.",
)

_MOST_ELEMENTS = 1 << 30  # of the example input, 4 GB

_ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="torchvision:NAME, zoo:NAME or path/to/file.py:factory")
]
_Weights = Annotated[
    Path | None,
    typer.Option(help="Weights: safetensors, or a .pth (read with weights_only). Default: random."),
]
_Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="imagefolder:PATH (a folder or a zip), torchvision:cifar10:PATH, sklearn:digits, voc:PATH or "
        "file.py:factory",
    ),
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a value of the recipe, such as finetune.epochs=1."),
]
_Json = Annotated[Path | None, typer.Option("--json", help="Also writes the result to this file.")]


@app.command("score")
def score_command(
    model: _ModelName,
    weights: _Weights = None,
    json: _Json = None,
    compress: Annotated[str | None, typer.Option(help="rms, absmean, mean or none")] = None,
    axis: Annotated[str | None, typer.Option(help="channels, filters or both")] = None,
    entropy: Annotated[str | None, typer.Option(help="similarity, softmax or distance")] = None,
) -> None:
    """Print the entropy of every convolution's filters, in nats."""
    fields = {"compress": compress, "axis": axis, "entropy": entropy}
    formula = Formula.from_dict({field: value for field, value in fields.items() if value is not None})
    scores = score_model(_build(model, weights), formula=formula)
    typer.echo(str(scores))
    if json is not None:
        write_text(json, scores.to_json())


@app.command("prune")
def prune_command(
    model: _ModelName,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    ratio: Annotated[
        float | None,
        typer.Option(help="Share of filters to remove from every layer, in [0, 1). Default without a budget: 0.5."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="Target for the whole network. params=0.7, macs=0.5 and memory=0.5 name the share to remove; "
            "latency_ms=5 names milliseconds per call.",
        ),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Policy that spreads a budget over the layers: entropy, uniform, global, sensitivity or "
            "reconstruction. Default: reconstruction with the images of --calibrate, else entropy."
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data as for finetune, such as imagefolder:PATH. On its training images the kept channels take over "
            "the work of the removed ones, without labels; criteria and policies that measure (taylor, fisher, "
            "reconstruction, sensitivity) use them too. data-free: recovery without images.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Most images that the recovery of --calibrate uses.")] = IMAGES,
    min_channels: Annotated[int, typer.Option(help="Smallest number of channels that every layer keeps.")] = 1,
    weights: _Weights = None,
    criterion: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(CRITERIA)}. Default: reconstruction with --calibrate, else fec_l1."),
    ] = None,
    sides: Annotated[str, typer.Option(help="both or producer")] = "both",
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W",
            help="Shape of the example input. Default: 1,1,8,8 for the zoo's digits networks, 1,3,32,32 for the rest "
            "of the zoo, 1,3,224,224 for all others.",
        ),
    ] = None,
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
    if images != IMAGES and calibrate is None:
        raise InputError(f"--images {images}: it belongs to --calibrate, which is not given")
    check_positive_integer("--images", images)
    example = torch.randn(_shape(model, input_shape), generator=torch.Generator().manual_seed(0))
    network = _build(model, weights).eval()
    loader = None if calibrate in (None, DATA_FREE) else data.load(calibrate)[0]
    recover = calibrate if loader is None else loader
    if criterion is None:
        criterion = default_criterion(network, None, None, recover)
    ratios = default_policy(ratios, budget, criterion, recover)
    result = prune(
        network,
        example,
        ratio=ratio,
        ratios=ratios,
        budget=None if budget is None else Budget.parse(budget),
        calibration=recover if calibration_needs(criterion, ratios) else None,
        criterion=criterion,
        sides=sides,
        min_channels=min_channels,
        round_to=round_to,
        norms=norms,
        ignore=ignore or (),
    )
    if calibrate is not None:
        recovery = compensate(network, result.model, result.plan, loader, example_inputs=example, images=images)
        result = result.with_recovery(recovery)
        typer.echo(str(result.recovery))
    typer.echo(result.summary())
    typer.echo(f"saved in {checkpoint.save(result, out)}")


@app.command("explain")
def explain_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json or the folder of a checkpoint.")],
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="Layer of the model before pruning.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model before pruning; adds the nearest neighbours of each filter."),
    ] = None,
    weights: _Weights = None,
    index: Annotated[int | None, typer.Option("--filter", help="Shows this filter only.")] = None,
    removed: Annotated[bool, typer.Option("--removed", help="Shows removed filters only.")] = False,
) -> None:
    """Explain why each filter of a layer was removed or kept: score, rank and coupled layers."""
    if weights is not None and model is None:
        raise InputError(f"--weights {weights}: give the model they belong to with --model")
    network = None if model is None else _build(model, weights)
    explanation = explain(_read_plan(plan), layer, network)
    count = len(explanation.filters)
    if index is not None and index not in range(count):
        raise LayerError(f"--filter {index}: {layer} has {count} filters in the plan, counted from 0")
    rows = [row for row in explanation.filters if index in (None, row.index) and (row.removed or not removed)]
    typer.echo("\n".join([explanation.heading(), *map(str, rows)]))


@app.command("finetune")
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
    state: Annotated[Path | None, typer.Option(help="Folder for the training state, for --resume.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resumes from --state.")] = False,
    log: Annotated[Path | None, typer.Option(help="Folder for metrics.csv.")] = None,
) -> None:
    """Fine-tune a pruned model, evaluate it on the held-out data, and save it."""
    checkpoint.check_destination(out)
    options_given = {"model": model, "data.name": data_name, "finetune.epochs": epochs}
    recipe = read_recipe(config, overrides or (), options_given)
    plan = checkpoint.read_plan(checkpoint_folder)
    options = recipe.content.get("model_options", {})
    network = checkpoint.load(zoo.build(recipe.model, **options), checkpoint_folder)
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
    typer.echo(f"held-out {task.main_metric}: {before:.4f} before, {after:.4f} after {len(result.history)} epochs")
    if launched_processes().rank == 0:
        typer.echo(f"saved in {checkpoint.save(network, plan, out)}")


@app.command("run")
def run_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe in YAML, such as those in recipes/.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, results.json and the training states.")],
    data_name: _Data = None,
    weights: _Weights = None,
    overrides: _Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resumes an unfinished run in --out.")] = False,
) -> None:
    """Run a recipe: measure, prune, fine-tune (the dense network too, on request), save, and write the figures."""
    options_given = {"data.name": data_name, "weights": None if weights is None else str(weights)}
    run_recipe(read_recipe(recipe, overrides or (), options_given), out, resume=resume)


@app.command("demo")
def demo_command(
    json: Annotated[Path, typer.Option("--json", help="File for the figures.")] = Path("fec-fast-demo.json"),
) -> None:
    """Train, prune, fine-tune, save, load and evaluate two small networks on real digits, in minutes on a CPU."""
    run_demo(json)


@app.command("info")
def info_command() -> None:
    """Print the version and the backends: which are built and usable, and why the others are not."""
    typer.echo(f"fec-fast {version('fec-fast')}, torch {torch.__version__}, Python {platform.python_version()}")
    typer.echo(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    for name, backend in backends().items():
        state = "usable" if backend.usable else "built, not usable" if backend.built else "not built"
        typer.echo(f"{name}: {state}" + (f" ({backend.reason})" if backend.reason else ""))


def _read_plan(path: Path) -> Plan:
    return checkpoint.read_plan(path) if path.is_dir() else Plan.from_json(read_bytes(path, MOST_JSON_BYTES, PlanError))


def _build(name: str, weights: Path | None) -> torch.nn.Module:
    model = zoo.build(name)
    return model if weights is None else load_weights(model, weights)


def _shape(model: str, text: str | None) -> tuple[int, ...]:
    """Shape of the example input: the given one, or the one that the model's data has."""
    if text is None:
        return zoo.input_shape(model)
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise InputError(f"--input-shape {text!r}: give whole numbers and commas, such as 1,3,224,224") from None
    if any(size < 1 for size in shape):
        raise InputError(f"--input-shape {text!r}: every size must be positive")
    if math.prod(shape) > _MOST_ELEMENTS:
        raise InputError(f"--input-shape {text:.80}: that is more than {_MOST_ELEMENTS:,} numbers; give a small batch")
    return shape
