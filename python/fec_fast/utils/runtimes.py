"""Runtimes that networks are deployed in: networks and single layers made ready to be called and timed there.

Every runtime computes on as many threads as torch is set to (``torch.set_num_threads``) when the network is made ready.
A network is compared with torch before it is handed out: a time of something else says nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from .compat import tree_leaves
from .copying import copied_model
from .errors import ArgumentError, FecError, InputError, missing_extra, nearest
from .forward import call_model, copied_inputs, undisturbed
from .model_index import ModelIndex
from .modules import device_of, in_evaluation
from .onnx_files import OnnxRun
from .onnx_model import PARITY, exported, layer_model, relative_difference, require_exporter, require_onnx
from .outputs import named_tensors_in

TORCH, COMPILED, ONNXRUNTIME, OPENVINO = "torch", "torch.compile", "onnxruntime", "openvino"
RUNTIMES = (TORCH, COMPILED, ONNXRUNTIME, OPENVINO)


def check_runtime(runtime: Any) -> str:
    """Checks the name of a runtime; it need not be installed.

    Args:
        runtime: What was given.

    Returns:
        The name.

    Raises:
        ArgumentError: It is not one of :data:`RUNTIMES`.
    """
    if not isinstance(runtime, str) or runtime not in RUNTIMES:
        raise ArgumentError(f"runtime={runtime!r:.80}: give one of {', '.join(RUNTIMES)}; {nearest(runtime, RUNTIMES)}")
    return runtime


def require_runtime(runtime: str) -> None:
    """Checks that a runtime is installed.

    Args:
        runtime: One of :data:`RUNTIMES`.

    Raises:
        MissingExtraError: It is not; the message has the command that installs it.
    """
    if runtime == OPENVINO:
        require_exporter(f"runtime={runtime!r}")
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401 (torch's exporter needs it)
            import openvino  # noqa: F401
        except (ImportError, AttributeError) as error:
            raise missing_extra("openvino, onnx and onnxscript", "openvino", f"runtime={runtime!r}", error) from error
    elif runtime == ONNXRUNTIME:
        require_onnx(f"runtime={runtime!r}")


def runtime_version(runtime: str) -> str:
    """The version of an installed runtime.

    Args:
        runtime: One of :data:`RUNTIMES`.

    Returns:
        Such as ``"1.20.0"``.
    """
    return torch.__version__ if runtime in (TORCH, COMPILED) else version(runtime)


class _Deployed(nn.Module):
    """Stands in for a network: called on anything, it runs the network in a runtime on the inputs it was made with."""

    def __init__(self, run: Callable[[], list[Tensor]]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return self.run()


def deployed(model: nn.Module | ModelIndex, example_inputs: Any, runtime: str) -> nn.Module | ModelIndex:
    """Makes a network ready in a runtime, for its evaluation mode. The model is left unchanged.

    Args:
        model: The model, or its index if there is one.
        example_inputs: Its inputs, as for :func:`fec_fast.prune`.
        runtime: One of :data:`RUNTIMES`, installed.

    Returns:
        The model itself for ``"torch"``. Otherwise a module without parameters that runs it in the runtime, on copies
        of the example inputs.

    Raises:
        InputError: The model cannot be run on the example inputs, or the runtime cannot run it.
        ArgumentError: The model is not on the CPU, and the runtime is not torch.
        FecError: The runtime computes other outputs than torch.
    """
    if runtime == TORCH:
        return model
    index = model if isinstance(model, ModelIndex) else ModelIndex.of(model)
    if runtime != COMPILED:
        _check_on_cpu(device_of(index.model), runtime)
    inputs = copied_inputs(example_inputs)
    with undisturbed(index):
        expected = [tensor for _, tensor in named_tensors_in(call_model(index.model, inputs))]
        if runtime == COMPILED:
            run = _compiled(index, inputs)
        else:
            content = exported(index.model, inputs).SerializeToString()
            run = onnx_call(content, inputs, runtime)
        try:
            difference = relative_difference(expected, run())
        except Exception as error:
            raise InputError(f"{runtime} cannot run this network: {type(error).__name__}: {error}") from error
    if not difference <= PARITY:
        raise FecError(f"{runtime} computes other outputs than torch (relative difference {difference:.2g})")
    return _Deployed(run)


def layer_call(source: Tensor, weight: Tensor, options: Mapping[str, Any] | None, runtime: str) -> Callable[[], Any]:
    """Makes one convolution or linear layer ready in a runtime that reads ONNX.

    Args:
        source: An input of it, on the CPU.
        weight: Its weight.
        options: See :func:`fec_fast.utils.onnx_model.layer_model`.
        runtime: ``"onnxruntime"`` or ``"openvino"``, installed.

    Returns:
        A function that runs the layer.

    Raises:
        InputError: The runtime cannot run such a layer.
    """
    _check_on_cpu(source.device, runtime)
    try:
        return onnx_call(layer_model(source, weight, options), source, runtime)
    except Exception as error:
        raise InputError(f"{runtime} cannot run a layer of this network: {type(error).__name__}: {error}") from error


def _check_on_cpu(device: torch.device, runtime: str) -> None:
    if device.type != "cpu":
        raise ArgumentError(
            f"runtime={runtime!r}: the model is on {device}, and this runtime is measured on the CPU; move it there "
            "(model.cpu()), and the example inputs"
        )


def _compiled(index: ModelIndex, inputs: Any) -> Callable[[], list[Tensor]]:
    """Compiles a copy of a model that stays in evaluation mode."""
    network = in_evaluation(copied_model(index))

    def run() -> Any:
        return call_model(network, inputs)

    # Torch counts the compilations of a piece of code and gives up after eight, without an error: every network gets
    # code of its own.
    run.__code__ = run.__code__.replace()
    compiled = torch.compile(run, dynamic=False)

    def call() -> list[Tensor]:
        with torch.no_grad():
            return [tensor for _, tensor in named_tensors_in(compiled())]

    return call


@functools.cache
def _openvino_core() -> Any:
    """The ``openvino.Core``, which the process keeps.

    With OpenVINO 2026.4.1, once the last one was freed, the next signal, such as Ctrl-C, ended the process by a
    segmentation fault. It was seen with OpenVINO alone.
    """
    import openvino

    return openvino.Core()


def onnx_call(content: bytes, example_inputs: Any, runtime: str) -> Callable[[], list[Tensor]]:
    """Loads the content of an ONNX file into a runtime.

    Args:
        content: What :func:`fec_fast.utils.onnx_model.exported` wrote, as bytes.
        example_inputs: The inputs that it was written with.
        runtime: ``"onnxruntime"`` or ``"openvino"``, installed.

    Returns:
        A function that runs the network on these inputs and returns its outputs, which the next call may overwrite.
    """
    feed = [leaf.numpy() for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor)]
    threads = torch.get_num_threads()
    if runtime == ONNXRUNTIME:
        run = OnnxRun(content, threads)
        named = dict(zip(run.input_names, feed, strict=True))  # once: a small network takes some microseconds
        return lambda: [torch.from_numpy(array) for array in run.session.run(None, named)]
    core = _openvino_core()
    # In float32, as torch computes it: on some processors the default is bfloat16.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(content, b""), "CPU", settings).create_infer_request()

    def infer() -> list[Tensor]:
        request.infer(feed, share_inputs=True)
        return [torch.from_numpy(output.data) for output in request.output_tensors]

    return infer
