"""``fec-fast export onnx`` and ``fec-fast compare``: pruned networks in use, and side by side."""

from __future__ import annotations

import contextlib
import io
import json as json_module
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from ..graph.counts import count
from ..plan import checkpoint
from ..utils.critical_section import surely_closed
from ..utils.errors import FecError, InputError, missing_extra
from ..utils.evaluation import evaluate, warn_if_at_chance
from ..utils.files import atomic_file
from ..utils.forward import call_model, evaluation_mode
from ..utils.outputs import named_tensors_in
from ..utils.public_call import interruptible
from ..utils.text import text_table
from ..utils.timing import measure_latency, warn_if_busy
from ..vision import data
from .options import DATA_HELP, Force, InputShape, ModelName, Weights, build_model, check_out, example_input
from .output import Json, say, write_json

_Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder that prune, finetune or sweep wrote.")]
# The largest difference between torch's and onnxruntime's outputs that is accepted, relative to the largest output.
_PARITY = 1e-3

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
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise missing_extra("onnx, onnxscript and onnxruntime", "onnx", "export onnx") from error
    network = checkpoint.load(build_model(model, None, warn=False), checkpoint_folder).eval()
    example = example_input(model, input_shape)
    with evaluation_mode(network):
        expected = [tensor for _, tensor in named_tensors_in(call_model(network, example))]
    with atomic_file(out.absolute()) as temporary:
        try:
            with _quiet_exporter():
                program: Any = torch.onnx.export(network, (example,), dynamo=True, verbose=False)
        except Exception as error:
            raise InputError(f"torch.onnx.export cannot write this network: {error}") from error
        onnx.save(program.model_proto, temporary)
        session = onnxruntime.InferenceSession(temporary.read_bytes(), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: example.numpy()})
        difference = _difference(expected, [torch.as_tensor(value) for value in found])
        if difference > _PARITY:
            raise FecError(f"onnxruntime computes other outputs than torch (relative difference {difference:.2g})")
    size = out.stat().st_size
    say(f"{out}: {size:,} bytes; onnxruntime's outputs are torch's to {difference:.1g} of the largest")
    document = {"format": "fec_fast.onnx", "version": 1, "file": str(out), "bytes": size, "difference": difference}
    write_json(json, json_module.dumps(document, indent=1) + "\n")


@surely_closed
def _quiet_exporter() -> Iterator[None]:
    """Keeps torch's exporter from reporting on its own code."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference between outputs, relative to the largest value; infinite if their shapes differ."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    return max(
        float((a.double() - b.double()).abs().max()) / (float(a.double().abs().max()) or 1.0)
        for a, b in zip(expected, found, strict=True)
    )


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
    json: Json = None,
    input_shape: InputShape = None,
) -> None:
    """Compare a network with pruned ones: parameters, multiply-accumulates, and on request accuracy and latency."""
    example = example_input(model, input_shape)
    networks: dict[str, nn.Module] = {"dense": build_model(model, weights, warn=data_name is not None).eval()}
    for folder in checkpoints:
        networks[str(folder)] = checkpoint.load(build_model(model, None, warn=False), folder).eval()
    held_out = None if data_name is None else data.load(data_name)[1]
    times = _latencies(networks, example) if latency else {}
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
    document = {"format": "fec_fast.comparison", "version": 1, "networks": entries}
    write_json(json, json_module.dumps(document, indent=1) + "\n")


def _latencies(networks: dict[str, nn.Module], example: Tensor) -> dict[str, float]:
    """Milliseconds per call; all are measured twice, in turns, and a warning says where that disagrees."""
    rounds = [{name: measure_latency(network, example) for name, network in networks.items()} for _ in range(2)]
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
