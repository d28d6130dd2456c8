"""``export_pt2e``: static quantisation by torchao on an exported graph (PT2E), for ``torch.compile`` on an x86 CPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..utils.arguments import check_file_to_write
from ..utils.copying import copied_model
from ..utils.errors import FecError, InputError, missing_extra
from ..utils.files import atomic_file
from ..utils.forward import call_model, undisturbed
from ..utils.model_index import ModelIndex
from ..utils.modules import in_evaluation
from ..utils.onnx_files import finite_outputs
from ..utils.onnx_model import quiet_exporter
from ..utils.outputs import named_tensors_in
from ..utils.public_call import interruptible
from .quantisation import IMAGES, Agreement, agreement_of, example_of, quantisation_inputs, warn_if_far

# torch.compile has int8 kernels for the graph only where this module was imported and weights are frozen; it says
# nothing where they are not, and computes in float32. With torch 2.14, graphs for any batch size end with an error.
_RUN = (
    "in int8 it runs with TORCHINDUCTOR_FREEZING=1, "
    "after `import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer`, under torch.no_grad(), by "
    "torch.compile(torch.export.load(file).module(), dynamic=False)"
)


@dataclass(frozen=True)
class Pt2eExport:
    """A quantised graph of torch in a file.

    Attributes:
        file: The absolute path of the file; docs/int8.md shows how it is read and compiled.
        bytes: Its size.
        agreement: How near the quantised network is to the float one; both run in torch.
        int8_layers: The number of weights in int8.
    """

    file: Path
    bytes: int
    agreement: Agreement
    int8_layers: int

    def __str__(self) -> str:
        """Three lines: the size, agreement with the float network, and what the file needs to run in int8."""
        size = f"{self.file}: {self.bytes:,} bytes, {self.int8_layers} layers in int8"
        return f"{size}\n{self.agreement}\n{_RUN}"


@interruptible
def export_pt2e(
    model: nn.Module,
    file: str | os.PathLike[str],
    calibration: Iterable[Any] | Tensor,
    *,
    images: int = IMAGES,
) -> Pt2eExport:
    """Quantises a network to int8 by torchao (PT2E, for x86 CPUs) and writes it as a program of ``torch.export``.

    The quantised network is compared with the float one on the calibration images, and what was written is read and
    run. The file appears after that, whole, or not at all. It takes batches of any size.

    The program computes in int8 once ``torch.compile(program, dynamic=False)`` has compiled it under
    ``torch.no_grad()``, with the environment variable ``TORCHINDUCTOR_FREEZING=1``, in a process that has imported
    ``torchao.quantization.pt2e.quantizer.x86_inductor_quantizer``. Where one of these is missing, torch computes in
    float32 what the integers stand for, without a word. Each batch size is compiled, eight of them at most
    (``torch._dynamo.config.recompile_limit``).

    Args:
        model: A network with float32 weights and one input ``[B, ...]``, pruned or not. It is left unchanged.
        file: The file to write, such as ``"pruned-int8.pt2"``. Its folder exists.
        calibration: A loader, an iterable of batches, or a tensor of images ``[N, ...]``, prepared as for the network.
            Labels are left out.
        images: How many images are used at most.

    Returns:
        The size and the agreement. A warning says if the agreement is poor.

    Raises:
        MissingExtraError: torchao is not installed, or does not fit this torch.
        ArgumentError: An argument has the wrong type or an unknown value.
        InputError: There are no images, the network cannot be run on them, torch cannot export it, or torchao cannot
            quantise it.
        WeightError: Weights are not in float32.
        LayerError: No layer has a weight.
        FecError: The file computes something else after it was read.
        OSError: The disk is full, or the file cannot be written.
    """
    target = check_file_to_write("file", file)
    try:
        with quiet_exporter():
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
                X86InductorQuantizer,
                get_default_x86_inductor_quantization_config,
            )
    except Exception as error:  # torchao uses parts of torch that other releases of it do not have
        raise missing_extra("torchao", "torchao", "export_pt2e", error) from error
    network, batches = quantisation_inputs(model, calibration, images)
    image = example_of(batches)
    example = (torch.zeros_like(image),)  # the file keeps it: it must not be one of the images
    shapes = ({0: torch.export.Dim("batch")},)
    with undisturbed(network):
        finite_outputs(network, image)
        own = in_evaluation(copied_model(ModelIndex.of(network)))  # batch norms are folded into its weights
        try:
            with quiet_exporter():
                quantizer = X86InductorQuantizer()
                quantizer.set_global(get_default_x86_inductor_quantization_config())
                prepared = prepare_pt2e(torch.export.export(own, example, dynamic_shapes=shapes).module(), quantizer)
                for batch in batches:
                    prepared(batch)
                quantised = _without_float_weights(convert_pt2e(prepared))
                program = _without_paths(torch.export.export(quantised, example, dynamic_shapes=shapes))
        except Exception as error:
            raise InputError(f"export_pt2e: torch and torchao cannot quantise this network: {error}") from error
        agreement = agreement_of(batches, lambda batch: _run(network, batch), lambda batch: _run(quantised, batch))
    with atomic_file(target) as temporary, quiet_exporter():
        torch.export.save(program, temporary)
        _check_read(temporary, image, _run(quantised, image))
        size = temporary.stat().st_size
    weights = sum(tensor.dtype == torch.int8 for tensor in program.state_dict.values())
    weights += sum(isinstance(value, Tensor) and value.dtype == torch.int8 for value in program.constants.values())
    warn_if_far(agreement, target, "give more images, or try export_int8, which has several methods")
    return Pt2eExport(target, size, agreement, weights)


def _without_float_weights(quantised: Any) -> Any:
    """Takes out of a graph the tensors that no operator reads: the weights before they were quantised."""
    read = {node.target for node in quantised.graph.nodes if node.op == "get_attr"}
    for name, _ in [*quantised.named_parameters(), *quantised.named_buffers()]:
        if name not in read:
            module, _, own = name.rpartition(".")
            delattr(quantised.get_submodule(module), own)
    return quantised


def _without_paths(program: Any) -> Any:
    """Takes out of a program where its operators are in the source code: names of the writer's folders."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _run(network: Any, batch: Tensor) -> list[NDArray[Any]]:
    with torch.no_grad():
        return [np.asarray(tensor.detach().cpu()) for _, tensor in named_tensors_in(call_model(network, batch))]


def _check_read(file: Path, example: Tensor, expected: list[NDArray[Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _run(torch.export.load(file).module(), example)
    if not all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True)):
        raise FecError("export_pt2e: the written program computes something else after it was read; try another torch")
