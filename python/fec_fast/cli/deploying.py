"""``fec-fast export``, ``compare`` and ``load-check``: pruned networks in use, side by side, and handed on."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from ..deployment.int8 import METHODS, export_int8
from ..deployment.pt2e import export_pt2e
from ..deployment.quantisation import IMAGES
from ..graph.counts import count
from ..plan import checkpoint
from ..plan.checkpoint_check import check_checkpoint
from ..utils.evaluation import evaluate, warn_if_at_chance
from ..utils.modules import in_evaluation
from ..utils.onnx_files import export_onnx
from ..utils.onnx_model import require_onnx
from ..utils.runtimes import TORCH, check_runtime, deployed, require_runtime
from ..utils.text import text_table
from ..utils.timing import measure_latency, warn_if_busy
from ..vision import data
from .options import (
    DATA_HELP,
    Force,
    InputShape,
    ModelName,
    Weights,
    build_model,
    check_out,
    example_input,
    load_data,
    plan_for,
)
from .output import Json, check_new_file, say, write_json
from .program import WholeHelp
from .written_paths import PathCheckingCommand

_Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder that prune, finetune or sweep wrote.")]
_Out = Annotated[Path, typer.Option("-o", "--out", help="The file, such as pruned.onnx.")]
_Calibrate = Annotated[
    str,
    typer.Option(metavar="DATA", help=f"{DATA_HELP}. Its training images say how large activations are."),
]
_Images = Annotated[int, typer.Option(help="Most images of --calibrate that are used.")]

export = typer.Typer(cls=WholeHelp, no_args_is_help=True, help="Write a pruned network for other programs.")


@export.callback()
def _formats() -> None:
    """Write a pruned network for other programs."""


@export.command("onnx", cls=PathCheckingCommand)
def export_onnx_command(
    model: ModelName,
    checkpoint_folder: _Checkpoint,
    out: _Out,
    force: Force = False,
    json: Json = None,
    input_shape: InputShape = None,
) -> None:
    """Write a pruned network as ONNX, and compare what onnxruntime computes with what torch does."""
    _check_file(out, force)
    require_onnx("export onnx")
    exported = export_onnx(_pruned(model, checkpoint_folder), example_input(model, input_shape), out)
    say(f"{out}{str(exported).removeprefix(str(exported.file))}")
    document = {"format": "fec_fast.onnx", "version": 1, "file": str(out), "bytes": exported.bytes}
    write_json(json, json_module.dumps({**document, "difference": exported.difference}, indent=1) + "\n")


@export.command("int8", cls=PathCheckingCommand)
def export_int8_command(
    model: ModelName,
    checkpoint_folder: _Checkpoint,
    out: _Out,
    calibrate: _Calibrate,
    images: _Images = IMAGES,
    method: Annotated[
        str, typer.Option(help="How the range of an activation is chosen: " + " or ".join(METHODS) + ".")
    ] = "minmax",
    float_layers: Annotated[
        list[str] | None,
        typer.Option(
            "--float", metavar="LAYER", help="Layer, or module with layers, that stays in float32; repeatable."
        ),
    ] = None,
    force: Force = False,
    json: Json = None,
) -> None:
    """Write a pruned network as ONNX in int8, and compare what onnxruntime computes with the float network."""
    _check_file(out, force)
    require_onnx("export int8")
    network, loader = _pruned(model, checkpoint_folder), data.load(calibrate)[0]
    exported = export_int8(network, out, loader, images=images, method=method, float_layers=float_layers or ())
    say(f"{out}{str(exported).removeprefix(str(exported.file))}")
    document = {
        "format": "fec_fast.int8",
        "version": 1,
        "file": str(out),
        "bytes": exported.bytes,
        "float_bytes": exported.float_bytes,
        "difference": exported.difference,
        "agreement": asdict(exported.agreement),
        "int8_layers": exported.int8_layers,
        "float_layers": exported.float_layers,
    }
    write_json(json, json_module.dumps(document, indent=1) + "\n")


@export.command("pt2e", cls=PathCheckingCommand)
def export_pt2e_command(
    model: ModelName,
    checkpoint_folder: _Checkpoint,
    out: _Out,
    calibrate: _Calibrate,
    images: _Images = IMAGES,
    force: Force = False,
    json: Json = None,
) -> None:
    """Write a pruned network in int8 as a program of torch.export (PT2E), and compare it with the float network."""
    _check_file(out, force)
    exported = export_pt2e(_pruned(model, checkpoint_folder), out, data.load(calibrate)[0], images=images)
    say(f"{out}{str(exported).removeprefix(str(exported.file))}")
    document = {
        "format": "fec_fast.pt2e",
        "version": 1,
        "file": str(out),
        "bytes": exported.bytes,
        "agreement": asdict(exported.agreement),
        "int8_layers": exported.int8_layers,
    }
    write_json(json, json_module.dumps(document, indent=1) + "\n")


def _check_file(out: Path, force: bool) -> None:
    check_new_file("--out", out)
    check_out(out, force)


def _pruned(model: str, folder: Path) -> nn.Module:
    network = build_model(model, None, warn=False)
    with plan_for(model, folder):
        return in_evaluation(checkpoint.load(network, folder))


def compare_command(
    model: ModelName,
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Folders that prune, finetune or sweep wrote.")
    ],
    weights: Weights = None,
    data_name: Annotated[
        str | None, typer.Option("--data", help=f"{DATA_HELP}. Adds the accuracy on its held-out part.")
    ] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Adds the time of one call.")] = False,
    runtime: Annotated[
        str | None,
        typer.Option("--runtime", help="Adds it as measured in torch, torch.compile, onnxruntime or openvino."),
    ] = None,
    json: Json = None,
    input_shape: InputShape = None,
) -> None:
    """Compare a network with pruned ones: parameters, multiply-accumulates, and on request accuracy and latency."""
    if runtime is not None:
        require_runtime(check_runtime(runtime))
    example = example_input(model, input_shape)
    networks: dict[str, nn.Module] = {"dense": in_evaluation(build_model(model, weights, warn=data_name is not None))}
    for folder in checkpoints:
        networks[str(folder)] = _pruned(model, folder)
    held_out = None if data_name is None else load_data(data_name, model, input_shape)[1]
    times = _latencies(networks, example, runtime or TORCH) if latency or runtime else {}
    entries = []
    for name, network in networks.items():
        counts = count(network, example)
        accuracy = None if held_out is None else evaluate(network, held_out)
        if accuracy is not None:
            warn_if_at_chance(network, example, accuracy, name)
        entries.append(
            {
                "name": name,
                "parameters": counts.parameters,
                "macs": counts.macs,
                "accuracy": accuracy,
                "latency_ms": times.get(name),
            }
        )
    say(_comparison(entries))
    document: dict[str, Any] = {"format": "fec_fast.comparison", "version": 1, "networks": entries}
    if times:
        document |= {"runtime": runtime or TORCH, "threads": torch.get_num_threads()}
    write_json(json, json_module.dumps(document, indent=1) + "\n")


def _latencies(networks: dict[str, nn.Module], example: Tensor, runtime: str) -> dict[str, float]:
    """Milliseconds per call; all are measured twice, in turns, and a warning says where that disagrees."""
    ready = {name: deployed(network, example, runtime) for name, network in networks.items()}
    rounds = [{name: measure_latency(network, example) for name, network in ready.items()} for _ in range(2)]
    for name in networks:
        warn_if_busy(name, [times[name] for times in rounds])
    return {name: 1e3 * min(times[name] for times in rounds) for name in networks}


def _comparison(entries: list[dict[str, Any]]) -> str:
    formats = {"parameters": "{:,}", "macs": "{:,}", "accuracy": "{:.4f}", "latency_ms": "{:.3g}"}
    shown = [name for name in formats if entries[0][name] is not None]
    rows = [(entry["name"], *(formats[name].format(entry[name]) for name in shown)) for entry in entries]
    return text_table(("network", *shown), rows, "l" + "r" * len(shown))


def load_check_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint, such as one from the Hub.")],
    json: Json = None,
) -> None:
    """Check a checkpoint (plan, weights, checksums, card, ONNX), and say what it is and how to load it."""
    checked = check_checkpoint(folder)
    say(checked)
    write_json(json, checked.to_json())


def register(app: typer.Typer) -> None:
    """Adds these commands to the program.

    Args:
        app: The program.
    """
    app.add_typer(export, name="export")
    app.command("compare", cls=PathCheckingCommand)(compare_command)
    app.command("load-check", cls=PathCheckingCommand)(load_check_command)
