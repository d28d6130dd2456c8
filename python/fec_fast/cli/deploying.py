"""``fec-fast export onnx`` and ``fec-fast compare``: pruned networks in use, and side by side."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from ..graph.counts import count
from ..plan import checkpoint
from ..utils.errors import FecError, InputError
from ..utils.evaluation import evaluate, warn_if_at_chance
from ..utils.files import atomic_file
from ..utils.forward import call_model, evaluation_mode
from ..utils.onnx_file import PARITY, exported, relative_difference, require_onnx
from ..utils.outputs import named_tensors_in
from ..utils.public_call import interruptible
from ..utils.runtimes import TORCH, check_runtime, deployed, require_runtime
from ..utils.text import text_table
from ..utils.timing import measure_latency, warn_if_busy
from ..vision import data
from .options import DATA_HELP, Force, InputShape, ModelName, Weights, build_model, check_out, example_input
from .output import Json, say, write_json

_Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder that prune, finetune or sweep wrote.")]

export = typer.Typer(no_args_is_help=True, help="Write a pruned network for other programs.")


@export.callback()
def _formats() -> None:
    """Write a pruned network for other programs."""


@export.command("onnx")
@interruptible
def export_onnx_command(
    model: ModelName,
    checkpoint_folder: _Checkpoint,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file, such as pruned.onnx.")],
    force: Force = False,
    json: Json = None,
    input_shape: InputShape = None,
) -> None:
    """Write a pruned network as ONNX, and compare what onnxruntime computes with what torch does."""
    check_out(out, force)
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.absolute().parent}")
    require_onnx("export onnx")
    import onnx
    import onnxruntime

    network = checkpoint.load(build_model(model, None, warn=False), checkpoint_folder).eval()
    example = example_input(model, input_shape)
    with evaluation_mode(network):
        expected = [tensor for _, tensor in named_tensors_in(call_model(network, example))]
    with atomic_file(out.absolute()) as temporary:
        onnx.save(exported(network, example), temporary)
        session = onnxruntime.InferenceSession(temporary.read_bytes(), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: example.numpy()})
        difference = relative_difference(expected, [torch.as_tensor(value) for value in found])
        if not difference <= PARITY:
            raise FecError(f"onnxruntime computes other outputs than torch (relative difference {difference:.2g})")
    size = out.stat().st_size
    say(f"{out}: {size:,} bytes; onnxruntime's outputs are torch's to {difference:.1g} of the largest")
    document = {"format": "fec_fast.onnx", "version": 1, "file": str(out), "bytes": size, "difference": difference}
    write_json(json, json_module.dumps(document, indent=1) + "\n")


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
    networks: dict[str, nn.Module] = {"dense": build_model(model, weights, warn=data_name is not None).eval()}
    for folder in checkpoints:
        networks[str(folder)] = checkpoint.load(build_model(model, None, warn=False), folder).eval()
    held_out = None if data_name is None else data.load(data_name)[1]
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


def register(app: typer.Typer) -> None:
    """Adds these commands to the program.

    Args:
        app: The program.
    """
    app.add_typer(export, name="export")
    app.command("compare")(compare_command)
