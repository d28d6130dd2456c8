"""The command line: ``fec-fast score | prune | explain | finetune | run | demo | info``."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from ..plan import checkpoint
from ..plan.plan import Plan
from ..pruning.allocation.budget import Budget
from ..pruning.criteria import DEFAULT, NAMES
from ..pruning.explanation import explain as run_explain
from ..pruning.pruner import prune as run_prune
from ..scoring.backends.registry import backends
from ..scoring.formula import Formula
from ..scoring.model_scores import score_model
from ..training.finetuning import finetune as run_finetune
from ..utils.distributed import processes
from ..utils.errors import FecError, InputError, LayerError, TrainingInterrupted
from ..utils.files import write_text
from ..vision import data, zoo
from ..vision.weights import load_weights
from . import recipe as recipes
from .demo import run_demo
from .recipe_run import run_recipe


class _OneLineErrors(TyperGroup):
    """Tells what is wrong in one line and exits with 2; a traceback is for faults of the program, not of its input."""

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

_ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="torchvision:NAME, zoo:NAME or path/to/file.py:factory")
]
_Weights = Annotated[
    Path | None, typer.Option(help="safetensors, or a .pth read with weights_only. Without it: fresh weights.")
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
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the recipe, such as finetune.epochs=1."),
]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the result there, too.")]


@app.command()
def score(
    model: _ModelName,
    weights: _Weights = None,
    json: _Json = None,
    compress: Annotated[str | None, typer.Option(help="rms, absmean, mean or none")] = None,
    axis: Annotated[str | None, typer.Option(help="channels, filters or both")] = None,
    entropy: Annotated[str | None, typer.Option(help="similarity, softmax or distance")] = None,
) -> None:
    """Print the entropy of the filters of every convolution, in nats."""
    given = {"compress": compress, "axis": axis, "entropy": entropy}
    formula = Formula.from_dict({word: value for word, value in given.items() if value is not None})
    scores = score_model(_build(model, weights), formula=formula)
    typer.echo(str(scores))
    if json is not None:
        write_text(json, scores.to_json())


@app.command()
def prune(
    model: _ModelName,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint to write.")],
    ratio: Annotated[
        float | None,
        typer.Option(help="Share of every layer's filters to remove, 0 <= ratio < 1; 0.5 without a budget."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="What the whole has to come to: params=0.7, macs=0.5 or memory=0.5 removes such a share; latency_ms=5 "
            "is milliseconds a call.",
        ),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="How a budget is spread over the layers: entropy (unless given), uniform, global or sensitivity"
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="For --ratios sensitivity: data as for finetune, of which the training images are taken."),
    ] = None,
    min_channels: Annotated[int, typer.Option(help="So many channels every layer keeps.")] = 1,
    weights: _Weights = None,
    criterion: Annotated[str, typer.Option(help=f"One of {', '.join(NAMES)}")] = DEFAULT,
    sides: Annotated[str, typer.Option(help="both or producer")] = "both",
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W",
            help="Shape of the example input; 1,1,8,8 for the zoo's digits networks, 1,3,32,32 for the rest of the "
            "zoo and 1,3,224,224 for all others, unless given.",
        ),
    ] = None,
    round_to: Annotated[int, typer.Option(help="Keep widths at multiples of this.")] = 1,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A layer, or a module that holds layers, to leave alone; may be repeated.")
    ] = None,
) -> None:
    """Remove filters, check the result against the masked original, and save it."""
    checkpoint.check_destination(out)
    example = torch.randn(_shape(model, input_shape), generator=torch.Generator().manual_seed(0))
    network = _build(model, weights).eval()
    result = run_prune(
        network,
        example,
        ratio=ratio,
        ratios=ratios,
        budget=None if budget is None else Budget.parse(budget),
        calibration=None if calibration is None else data.load(calibration)[0],
        criterion=criterion,
        sides=sides,
        min_channels=min_channels,
        round_to=round_to,
        ignore=ignore or (),
    )
    typer.echo(result.summary())
    typer.echo(f"saved in {checkpoint.save(result, out)}")


@app.command()
def explain(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json, or the folder of a checkpoint.")],
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="A layer of the model before pruning.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model before pruning, to tell each filter's nearest neighbours."),
    ] = None,
    weights: _Weights = None,
    index: Annotated[int | None, typer.Option("--filter", help="This filter only.")] = None,
    removed: Annotated[bool, typer.Option("--removed", help="The filters that went only.")] = False,
) -> None:
    """Tell why each filter of a layer went or stayed: its score, its rank, and what it is coupled with."""
    if weights is not None and model is None:
        raise InputError(f"--weights {weights}: give the model they belong to with --model")
    network = None if model is None else _build(model, weights)
    told = run_explain(_read_plan(plan), layer, network)
    if index is not None and index not in range(len(told.filters)):
        raise LayerError(f"--filter {index}: {layer} has {len(told.filters)} filters in the plan, counted from 0")
    chosen = [entry for entry in told.filters if index in (None, entry.index) and (entry.removed or not removed)]
    typer.echo("\n".join([told.heading(), *map(str, chosen)]))


@app.command()
def finetune(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="torchvision:NAME, zoo:NAME or path/to/file.py:factory")
    ] = None,
    *,
    checkpoint_folder: Annotated[Path, typer.Option("--checkpoint", help="What 'fec-fast prune' has written.")],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint to write.")],
    config: Annotated[Path | None, typer.Option(help="A recipe, for whatever is not given otherwise.")] = None,
    data_name: _Data = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    overrides: _Set = None,
    state: Annotated[Path | None, typer.Option(help="Folder for the state of the training, to resume from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --state.")] = False,
    log: Annotated[Path | None, typer.Option(help="Folder for metrics.csv.")] = None,
) -> None:
    """Train a pruned model further, evaluate it on the held-out data, and save it."""
    checkpoint.check_destination(out)
    given = {"model": model, "data.name": data_name, "finetune.epochs": epochs}
    recipe = recipes.read(config, overrides or (), given)
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
    result = run_finetune(
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
    if processes().rank == 0:
        typer.echo(f"saved in {checkpoint.save(SimpleNamespace(model=network, plan=plan), out)}")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML, such as those in recipes/.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, results.json and states of training.")],
    data_name: _Data = None,
    weights: _Weights = None,
    overrides: _Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run in --out.")] = False,
) -> None:
    """Run a whole recipe: measure, prune, fine-tune (the dense network too, if it says so), save, and write figures."""
    given = {"data.name": data_name, "weights": None if weights is None else str(weights)}
    run_recipe(recipes.read(recipe, overrides or (), given), out, resume=resume)


@app.command()
def demo(
    json: Annotated[Path, typer.Option("--json", help="Where to write the figures.")] = Path("fec-fast-demo.json"),
) -> None:
    """Train, prune, fine-tune, save, load and evaluate two small networks on real digits; a few minutes on a CPU."""
    run_demo(json)


@app.command()
def info() -> None:
    """Print the version, and which backends are built and usable, and why the others are not."""
    typer.echo(f"fec-fast {version('fec-fast')}, torch {torch.__version__}, Python {platform.python_version()}")
    typer.echo(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    for name, backend in backends().items():
        state = "usable" if backend.usable else "built, not usable" if backend.built else "not built"
        typer.echo(f"{name}: {state}" + (f" ({backend.reason})" if backend.reason else ""))


def _read_plan(path: Path) -> Plan:
    return checkpoint.read_plan(path) if path.is_dir() else Plan.from_json(path.read_text("utf-8", "replace"))


def _build(name: str, weights: Path | None) -> torch.nn.Module:
    model = zoo.build(name)
    return model if weights is None else load_weights(model, weights)


def _shape(model: str, text: str | None) -> tuple[int, ...]:
    """The shape of the example input: as given, or that of the data a model of this name is made for."""
    if text is None:
        return zoo.input_shape(model)
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise InputError(f"--input-shape {text!r}: give whole numbers with commas, such as 1,3,224,224") from None
    if any(size < 1 for size in shape):
        raise InputError(f"--input-shape {text!r}: every size must be positive")
    return shape
