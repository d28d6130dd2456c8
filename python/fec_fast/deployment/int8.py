"""``export_int8``: static quantisation by onnxruntime, compared with the float network in onnxruntime itself."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..utils.arguments import check_file_to_write
from ..utils.errors import ArgumentError, InputError, LayerError, nearest
from ..utils.files import atomic_file
from ..utils.onnx_files import OnnxRun, write_onnx
from ..utils.onnx_model import quiet_exporter, require_onnx
from ..utils.public_call import interruptible
from .quantisation import IMAGES, Agreement, agreement_of, quantisation_inputs, warn_if_far

# How the range of an activation is chosen, by onnxruntime's names.
# Its third, by entropy, divides values into as many bins as there are levels, and finds the range of all values.
METHODS = {"minmax": "MinMax", "percentile": "Percentile"}
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Int8Export:
    """An ONNX file with weights and activations in 8 bits.

    Attributes:
        file: The absolute path of the file.
        bytes: Its size.
        float_bytes: The size of the same network as ONNX with float32 weights.
        difference: The largest difference between the float ONNX network and torch, relative to the largest output.
        agreement: How near the int8 network is to the float one; both run in onnxruntime.
        int8_layers: The names of the layers that compute in int8.
        float_layers: The names of the layers that compute in float32.
    """

    file: Path
    bytes: int
    float_bytes: int
    difference: float
    agreement: Agreement
    int8_layers: tuple[str, ...]
    float_layers: tuple[str, ...]

    def __str__(self) -> str:
        """Three lines: sizes, layers, and agreement with the float network."""
        kept = f", {len(self.float_layers)} in float32" if self.float_layers else ""
        return (
            f"{self.file}: {self.bytes:,} bytes, float32: {self.float_bytes:,}\n"
            f"{len(self.int8_layers)} layers in int8{kept}\n"
            f"{self.agreement}"
        )


@interruptible
def export_int8(
    model: nn.Module,
    file: str | os.PathLike[str],
    calibration: Iterable[Any] | Tensor,
    *,
    images: int = IMAGES,
    method: str = "minmax",
    float_layers: Iterable[str] = (),
) -> Int8Export:
    """Quantises a network to int8 by onnxruntime and writes it as ONNX, with quantise and dequantise operators (QDQ).

    Weights get one scale per output channel, activations one per tensor, from what they are on the calibration images.
    The float network is written first and compared with torch; then the int8 network is run in onnxruntime on the
    calibration images beside the float one. The file appears after that, whole, or not at all. It takes batches of any
    size.

    Prune before: quantised weights cannot be pruned.

    Args:
        model: A network with float32 weights and one input ``[B, ...]``, pruned or not. It is left unchanged.
        file: The file to write, such as ``"pruned-int8.onnx"``. Its folder exists.
        calibration: A loader, an iterable of batches, or a tensor of images ``[N, ...]``, prepared as for the network.
            Labels are left out. Training images do.
        images: How many images are used at most. ``"percentile"`` holds the activations of all of them in memory.
        method: How the range of an activation is chosen: ``"minmax"``: all values seen; ``"percentile"``: 99.999 % of
            the values.
        float_layers: Layers, or modules with layers, that stay in float32.

    Returns:
        Sizes, layers and agreement. A warning says if the agreement is poor.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed, or torch is older than 2.7.
        ArgumentError: An argument has the wrong type or an unknown value.
        LayerError: ``float_layers`` names no layer of the network, or no layer has a weight.
        InputError: There are no images, the network cannot be run on them, torch cannot export it, or onnxruntime
            cannot quantise it.
        WeightError: Weights are not in float32.
        FecError: The float ONNX network computes other outputs than torch.
        OSError: The disk is full, or the file cannot be written.
    """
    target = check_file_to_write("file", file)
    if not isinstance(method, str) or method not in METHODS:
        raise ArgumentError(f"method={method!r:.80}: give one of {', '.join(METHODS)}")
    kept = _names(float_layers)
    require_onnx("export_int8")
    network, batches = quantisation_inputs(model, calibration, images)
    modules = [name for name, _ in network.named_modules()]
    for name in kept:
        if name not in modules:
            raise _no_layer(name, modules)
    with atomic_file(target) as temporary:
        of_floats = temporary.with_name("float32.onnx")
        difference = write_onnx(network, batches[0][:2], of_floats, "export_int8", any_batch=True)
        layers = _layers_of(of_floats)
        _quantise(of_floats, temporary, batches, method, _nodes_of(kept, layers))
        agreement = agreement_of(batches, OnnxRun(of_floats), OnnxRun(temporary))
        in_int8 = _nodes_in_int8(temporary)
        sizes = temporary.stat().st_size, of_floats.stat().st_size
    result = Int8Export(
        target,
        *sizes,
        difference,
        agreement,
        tuple(layer for node, layer in layers.items() if node in in_int8),
        tuple(layer for node, layer in layers.items() if node not in in_int8),
    )
    warn_if_far(
        agreement, target, "try more images, method='percentile', or the first and the last layer in float_layers"
    )
    return result


def _names(float_layers: Any) -> tuple[str, ...]:
    if isinstance(float_layers, str) or not isinstance(float_layers, Iterable):
        raise ArgumentError(f"float_layers={float_layers!r:.80}: give a list of names of layers")
    names = tuple(float_layers)
    for name in names:
        if not isinstance(name, str):
            raise ArgumentError(f"float_layers: {name!r:.80} is not the name of a layer")
    return names


def _nodes_of(kept: tuple[str, ...], layers: dict[str, str]) -> list[str]:
    """The operators of the layers that have these names, or are inside modules that have them."""
    nodes = []
    for name in kept:
        of_layer = [node for node, layer in layers.items() if layer == name or layer.startswith(f"{name}.")]
        if not of_layer:
            raise _no_layer(name, layers.values())
        nodes += of_layer
    return nodes


def _no_layer(name: str, layers: Iterable[str]) -> LayerError:
    return LayerError(f"float_layers: no layer {name!r:.80}; {nearest(name, layers)}")


def _quantise(source: Path, target: Path, batches: list[Tensor], method: str, excluded: list[str]) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    (name,) = OnnxRun(source).input_names
    feeds: Iterator[dict[str, Any]] = ({name: batch.detach().cpu().numpy()} for batch in batches)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            """The next batch, as onnxruntime takes it."""
            return next(feeds, None)

    try:
        with quiet_exporter():
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                calibrate_method=getattr(CalibrationMethod, METHODS[method]),
            )
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"export_int8: onnxruntime cannot quantise this network: {error}") from error


def _layers_of(file: Path) -> dict[str, str]:
    """The layer that each operator with a weight belongs to, by the operator's name."""
    import onnx

    graph = onnx.load(file).graph
    weights = {tensor.name for tensor in graph.initializer}
    return {
        node.name: _layer_of(node) for node in graph.node if node.op_type in _WITH_WEIGHTS and node.input[1] in weights
    }


def _layer_of(node: Any) -> str:
    """A layer's name: that of its weight, or where the weight was computed anew, the innermost module."""
    weight = str(node.input[1])
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes")
    modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope] if scopes else []
    return str(modules[-1]) if modules else str(node.name)


def _nodes_in_int8(file: Path) -> set[str]:
    """The names of the operators whose input and weight are dequantised integers: onnxruntime computes them in int8."""
    import onnx

    graph = onnx.load(file).graph
    dequantised = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return {node.name for node in graph.node if node.op_type in _WITH_WEIGHTS and set(node.input[:2]) <= dequantised}
