"""ONNX files: written by torch's exporter, and compared with what torch computes before anyone gets them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .arguments import check_file_to_write, check_network
from .errors import ArgumentError, FecError, InputError
from .files import atomic_file
from .forward import call_model, copied_inputs, describe_tensors, tensor_in_place_of, undisturbed
from .modules import check_can_be_changed, device_of, unwrap
from .onnx_model import PARITY, exported, relative_difference, require_onnx
from .outputs import named_tensors_in
from .public_call import interruptible


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that computes what the network computes in torch.

    Attributes:
        file: The absolute path of the file.
        bytes: Its size.
        difference: The largest difference between the outputs of onnxruntime and of torch on the example inputs,
            relative to the largest output.
    """

    file: Path
    bytes: int
    difference: float

    def __str__(self) -> str:
        """One line: the file, its size, and how far its outputs are from torch's."""
        return (
            f"{self.file}: {self.bytes:,} bytes; onnxruntime's outputs are torch's to {self.difference:.1g} of the "
            "largest"
        )


@interruptible
def export_onnx(
    model: nn.Module, example_inputs: Any, file: str | os.PathLike[str], *, any_batch: bool = False
) -> OnnxExport:
    """Writes a network as ONNX, and compares what onnxruntime computes with what torch does.

    The file appears whole and compared, or not at all; an older file of that name stays until then. Ctrl-C waits until
    torch's exporter has ended.

    Args:
        model: Any network, pruned or not, on any device; it may be wrapped by ``DataParallel`` or ``torch.compile``. It
            is exported in evaluation mode and left unchanged.
        example_inputs: A tensor, or a tuple of tensors for a network with several inputs. The file takes these shapes.
        file: The file to write, such as ``"pruned.onnx"``. Its folder exists.
        any_batch: Whether the file takes batches ``[B, ...]`` of any size B.

    Returns:
        The path, the size and the largest difference.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed, or torch is older than 2.7.
        ArgumentError: An argument has the wrong type.
        InputError: The network cannot be run on the inputs, torch cannot export it, or there is no such folder.
        FecError: onnxruntime computes other outputs than torch.
        OSError: The disk is full, or the file cannot be written.
    """
    target = check_file_to_write("file", file)
    with atomic_file(target) as temporary:
        difference = write_onnx(model, example_inputs, temporary, "export_onnx", any_batch=any_batch)
    return OnnxExport(target, target.stat().st_size, difference)


def write_onnx(
    model: Any,
    example_inputs: Any,
    file: Path,
    purpose: str,
    *,
    any_batch: bool = False,
    argument: str = "example_inputs",
) -> float:
    """Writes a network to a file that nobody reads yet, and compares it with torch.

    Args:
        model: See :func:`export_onnx`.
        example_inputs: See :func:`export_onnx`.
        file: A temporary path, see :func:`fec_fast.utils.files.atomic_file`.
        purpose: What needs the file, for the messages.
        any_batch: See :func:`export_onnx`.
        argument: The name of the argument that holds the inputs, for the messages.

    Returns:
        The largest relative difference.

    Raises:
        FecError: As :func:`export_onnx`.
    """
    require_onnx(purpose)
    import onnx

    check_network("model", model)
    network = unwrap(model)
    check_can_be_changed({"": network})
    inputs = _positional(argument, example_inputs, device_of(network))
    if any_batch:  # torch takes a size of 1 for a constant
        inputs = tuple(each.repeat(2, *[1] * (each.ndim - 1)) if len(each) == 1 else each for each in inputs)
    with undisturbed(network):
        expected = finite_outputs(network, inputs)
        shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs) if any_batch else None
        try:
            proto = exported(network, copied_inputs(inputs), shapes)
        except InputError as error:
            raise InputError(f"{purpose}: {error}") from error
    onnx.save(proto, file)
    try:
        found = [torch.from_numpy(array) for array in OnnxRun(file)(*inputs)]
    except Exception as error:
        raise InputError(f"{purpose}: onnxruntime cannot run the exported network: {error}") from error
    difference = relative_difference(expected, found)
    if not difference <= PARITY:  # NaN too
        raise FecError(
            f"{purpose}: onnxruntime computes other outputs than torch for this network (relative difference "
            f"{difference:.2g}); try other versions of torch, onnxscript and onnxruntime"
        )
    return difference


def finite_outputs(network: nn.Module, inputs: Any) -> list[Tensor]:
    """Runs a network that is to be written.

    Args:
        network: The network, in evaluation mode.
        inputs: Its inputs, as :func:`fec_fast.utils.forward.call_model` takes them.

    Returns:
        Its outputs, on the CPU.

    Raises:
        InputError: It cannot be run, has no outputs, or computes NaN or infinity.
    """
    outputs = [tensor.detach().cpu() for _, tensor in named_tensors_in(call_model(network, copied_inputs(inputs)))]
    if not outputs:
        raise InputError(f"model: the {type(network).__name__} returns no tensor")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in outputs):
        raise InputError(
            f"model: the {type(network).__name__} computes NaN or infinite values on these inputs: check its weights"
        )
    return outputs


class OnnxRun:
    """An ONNX file in onnxruntime, on the CPU.

    Attributes:
        session: onnxruntime's session.
    """

    def __init__(self, file: Path | bytes, threads: int = 0) -> None:
        """Reads a file.

        Args:
            file: The ONNX file, or its content.
            threads: Threads inside operators; 0 leaves the number to onnxruntime.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors alone
        content = file.read_bytes() if isinstance(file, Path) else file
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs, in order."""
        return [entry.name for entry in self.session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> list[Any]:
        """Runs the network.

        Args:
            *inputs: One tensor per input, in order.

        Returns:
            The outputs as NumPy arrays.
        """
        arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
        return [np.asarray(array) for array in self.session.run(None, dict(zip(self.input_names, arrays, strict=True)))]


def _positional(argument: str, example_inputs: Any, device: torch.device) -> tuple[Tensor, ...]:
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or not all(isinstance(each, Tensor) and each.ndim for each in inputs):
        remedy = tensor_in_place_of(example_inputs)
        if remedy is not None:
            raise ArgumentError(f"{argument}: {remedy}")
        raise ArgumentError(f"{argument}={example_inputs!r:.80}: give a tensor, or a tuple of tensors, for ONNX")
    if any(each.is_meta or each.layout != torch.strided for each in inputs):
        raise InputError(f"{argument}: {describe_tensors(inputs)} are not dense tensors with values")
    return tuple(each.to(device) for each in inputs)
