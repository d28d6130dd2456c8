"""ONNX: a network as the content of an ONNX file, a single layer likewise, and outputs compared with torch's."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from .critical_section import interrupts_deferred, surely_closed
from .errors import InputError, MissingExtraError, missing_extra

# The largest difference between the outputs of torch and of another runtime that is accepted, relative to the largest.
PARITY = 1e-3
# The first torch whose exporter works with the onnxscript of today. Pruning needs no exporter.
EXPORTING_TORCH = "2.7"
_ABOUT_SOURCES = {"pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node"}


def require_exporter(purpose: str) -> None:
    """Checks that torch's exporter to ONNX works: the one of older versions fails with every version of onnxscript.

    Args:
        purpose: What needs it, the subject of the error message.

    Raises:
        MissingExtraError: torch is older.
    """
    if TorchVersion(torch.__version__) < EXPORTING_TORCH:
        raise MissingExtraError(
            f"{purpose} needs torch {EXPORTING_TORCH} or newer, torch {torch.__version__} is installed: "
            "pip install --upgrade torch torchvision"
        )


def require_onnx(purpose: str) -> None:
    """Checks that what writes and runs ONNX files is installed.

    Args:
        purpose: What needs it, the subject of the error message.

    Raises:
        MissingExtraError: It is not, or torch is too old.
    """
    require_exporter(purpose)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except (ImportError, AttributeError) as error:
        raise missing_extra("onnx, onnxscript and onnxruntime", "onnx", purpose, error) from error


def exported(network: nn.Module, example_inputs: Any, dynamic_shapes: Any = None) -> Any:
    """Writes a network in its present mode as an ONNX model, by torch's exporter.

    Args:
        network: The network.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments.
        dynamic_shapes: As for ``torch.onnx.export``: which sizes are not constants.

    Returns:
        The ``onnx.ModelProto``, without paths of the machine it was made on.

    Raises:
        InputError: The exporter cannot write this network.
    """
    arguments: dict[str, Any] = {"args": (example_inputs,)}
    if isinstance(example_inputs, tuple):
        arguments["args"] = example_inputs
    elif isinstance(example_inputs, dict):
        arguments = {"args": (), "kwargs": example_inputs}
    try:
        # A Ctrl-C raised in what torch's C++ calls here would end the process (seen with torch 2.14): it waits.
        with quiet_exporter(), interrupts_deferred():
            program: Any = torch.onnx.export(
                network, dynamic_shapes=dynamic_shapes, dynamo=True, verbose=False, **arguments
            )
            return _without_paths(program.model_proto)
    except Exception as error:
        batches = " for batches of any size" if dynamic_shapes else ""
        raise InputError(f"torch.onnx.export cannot write this network{batches}: {error}") from error


@surely_closed
def quiet_exporter() -> Iterator[None]:
    """Keeps torch's exporter and onnxruntime's quantiser from reporting on their own code."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _without_paths(proto: Any) -> Any:
    """Takes out of an ONNX network where its operators are in the source code: names of the writer's folders."""
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        kept = [(entry.key, entry.value) for entry in node.metadata_props if entry.key not in _ABOUT_SOURCES]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)
    return proto


def layer_model(source: Tensor, weight: Tensor, options: Mapping[str, Any] | None) -> bytes:
    """Writes one convolution or linear layer without bias as an ONNX model.

    Args:
        source: An input of it, float16, float32 or float64.
        weight: Its weight, as torch lays it out.
        options: Of a convolution: ``stride``, ``padding``, ``dilation``, ``groups`` and ``transposed``, and
            ``output_padding`` of a transposed one; ``None`` for a linear layer.

    Returns:
        The content of an ONNX file.
    """
    from onnx import TensorProto, helper, numpy_helper

    types = {torch.float16: TensorProto.FLOAT16, torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE}
    if options is None:
        weight = weight.t().contiguous()
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        padding = options["padding"]
        attributes: dict[str, Any] = {
            "strides": options["stride"],
            "dilations": options["dilation"],
            "group": options["groups"],
        }
        if padding == "same":
            attributes["auto_pad"] = "SAME_UPPER"
        elif padding != "valid":
            attributes["pads"] = [*padding, *padding]
        if options["transposed"]:
            attributes["output_padding"] = options["output_padding"]
        node = helper.make_node("ConvTranspose" if options["transposed"] else "Conv", ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", types[source.dtype], list(source.shape))],
        [helper.make_tensor_value_info("y", types[source.dtype], None)],
        [numpy_helper.from_array(weight.numpy(), "w")],
    )
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return content


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference between outputs, relative to the largest value of each.

    Args:
        expected: Tensors.
        found: Tensors to compare with them.

    Returns:
        The difference; infinite if numbers or shapes differ, NaN if one is.
    """
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return float("inf")
    differences = [
        float((a.double() - b.double()).abs().max()) / (float(a.double().abs().max()) or 1.0)
        for a, b in zip(expected, found, strict=True)
        if a.numel()
    ]
    return float(np.max(differences)) if differences else 0.0
