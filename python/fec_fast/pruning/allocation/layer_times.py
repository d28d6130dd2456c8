"""Times of single layers on a grid of widths, measured in a runtime, and kept on disk for the next network.

A table is a file of its own, named by a digest of everything that its times depend on: the machine, the threads, the
runtime and its version, and the layer. So processes do not disturb one another, and nothing old is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.compat import ConvolutionBase
from ...utils.critical_section import put_back_by
from ...utils.errors import CheckpointError, InputError
from ...utils.files import make_folders, write_text
from ...utils.forward import call_model, copied_inputs, undisturbed
from ...utils.machine import describe_machine
from ...utils.reading import parse_json, read_bytes
from ...utils.runtimes import COMPILED, TORCH, layer_call, runtime_version
from ...utils.timing import Timing, time_call
from ...utils.user_warnings import warn_user
from ..context import PruningContext

# The widths that a layer is timed at, as shares of its own width. Work, reading and writing are bilinear in the widths,
# so a fine grid buys little: against five shares (with 0.25 and 0.75), these three differ by 1.8 % of a layer's time in
# the mean (of one layer 0.3 to 7 %), over 15 layers of resnet18 and mobilenet_v2 in ONNX Runtime.
GRID = (0.125, 0.5, 1.0)
# The environment variable with the folder of the tables; where it is empty, none are kept.
FOLDER_VARIABLE = "FEC_FAST_LATENCY_TABLES"
_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "output_padding", "transposed")
_FORMAT = "fec_fast.latency_table"
_MOST_BYTES = 1 << 16  # a table has some 2,000
# A time whose confidence interval is wider than this share of it is used once, and not kept.
_STEADY = 0.25
# A convolution by its number of spatial dimensions, and whether it is transposed.
_CONVOLUTIONS: dict[tuple[int, bool], Callable[..., Tensor]] = {
    (1, False): F.conv1d,
    (2, False): F.conv2d,
    (3, False): F.conv3d,
    (1, True): F.conv_transpose1d,
    (2, True): F.conv_transpose2d,
    (3, True): F.conv_transpose3d,
}


@dataclass(frozen=True)
class LayerShape:
    """Everything that the time of a layer depends on, with its widths before pruning. Equal layers share their times.

    Attributes:
        kind: ``nn.Linear``, or ``ConvolutionBase`` for every convolution.
        inputs: Input channels.
        outputs: Output channels.
        groups: Groups of the convolution; 1 for a linear layer.
        whole_groups: Whether pruning removes whole groups (and input channels with them), as in a depthwise layer.
        image: The shape of the input without its channels: batch size and spatial sizes.
        options: Names and values of the convolution's other arguments (kernel size, stride, padding, ...).
        dtype: Of input and weight.
        device: Of input and weight.
    """

    kind: type[nn.Module]
    inputs: int
    outputs: int
    groups: int
    whole_groups: bool
    image: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype
    device: torch.device

    def described(self) -> dict[str, Any]:
        """The shape as JSON has it."""
        return {
            "kind": "linear" if self.kind is nn.Linear else "convolution",
            "inputs": self.inputs,
            "outputs": self.outputs,
            "groups": self.groups,
            "whole_groups": self.whole_groups,
            "image": list(self.image),
            "options": json.loads(json.dumps(dict(self.options))),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
        }


class LayerTimes:
    """Seconds of one call of a layer, on a grid of widths, interpolated between them.

    A narrower layer counts as no slower than a wider one: what took longer was disturbed, and the search for removal
    counts (:mod:`fec_fast.pruning.allocation.solver`) relies on sizes that do not rise with a removal.
    """

    def __init__(self, input_widths: np.ndarray, output_widths: np.ndarray, seconds: np.ndarray) -> None:
        """Keeps the grid.

        Args:
            input_widths: Int64, rising.
            output_widths: Int64, rising.
            seconds: Float64 ``[input widths, output widths]``, as measured.
        """
        self.input_widths, self.output_widths = input_widths, output_widths
        for axis in (0, 1):
            seconds = np.flip(np.minimum.accumulate(np.flip(seconds, axis), axis), axis)
        self.seconds = seconds

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Interpolates linearly between the four nearest points of the grid.

        Args:
            inputs: Input channels ``[...]``.
            outputs: Output channels ``[...]``.

        Returns:
            Seconds ``[...]``.
        """
        (row, next_row, row_part) = _grid_position(self.input_widths, inputs)
        (column, next_column, column_part) = _grid_position(self.output_widths, outputs)
        lower = self.seconds[row, column] * (1 - column_part) + self.seconds[row, next_column] * column_part
        upper = self.seconds[next_row, column] * (1 - column_part) + self.seconds[next_row, next_column] * column_part
        return np.asarray(lower * (1 - row_part) + upper * row_part)


class LayerTables:
    """The times of layers in one runtime: measured at the first request, and kept on disk."""

    def __init__(self, runtime: str) -> None:
        """Finds the folder.

        Args:
            runtime: One of :data:`fec_fast.utils.runtimes.RUNTIMES`, installed.

        Raises:
            InputError: The folder that the environment variable names is a file.
        """
        self._runtime = runtime
        self._folder: Path | None = tables_folder()
        # Inductor leaves convolutions and matrix products to the kernels that torch itself calls, and compiling one
        # layer takes seconds: these layers are timed by torch.
        self._layer_runtime = TORCH if runtime == COMPILED else runtime
        self._place = {
            "machine": describe_machine(),
            "runtime": self._layer_runtime,
            "runtime_version": runtime_version(self._layer_runtime),
        }

    def times_of(self, shape: LayerShape) -> LayerTimes:
        """The times of a layer.

        Args:
            shape: The layer.

        Returns:
            Its times, from the disk if they were measured before.

        Raises:
            InputError: The runtime cannot run such a layer.
        """
        rows, columns = _grid_widths(shape.inputs, shape), _grid_widths(shape.outputs, shape)
        file = None if self._folder is None else self._folder / f"{self._digest(shape)}.json"
        seconds = None if file is None else _stored(file, rows, columns)
        if seconds is None:
            timings = self._measured(shape, rows, columns)
            seconds = np.array([[timing.seconds for timing in row] for row in timings])
            steady = all(timing.half_width <= _STEADY * timing.seconds for row in timings for timing in row)
            if file is not None and steady:
                self._store(file, shape, rows, columns, seconds)
        return LayerTimes(rows, columns, seconds)

    def _measured(self, shape: LayerShape, rows: np.ndarray, columns: np.ndarray) -> list[list[Timing]]:
        def time(inputs: int, outputs: int) -> Timing:
            return time_layer(shape, inputs, outputs, self._layer_runtime)

        if shape.whole_groups:  # input channels are removed with their group, so the output width alone decides
            row = [time(shape.inputs * outputs // shape.outputs, outputs) for outputs in columns.tolist()]
            return [row] * len(rows)
        return [[time(inputs, outputs) for outputs in columns.tolist()] for inputs in rows.tolist()]

    def _digest(self, shape: LayerShape) -> str:
        known = json.dumps([self._place, shape.described(), GRID], sort_keys=True)
        return hashlib.sha256(known.encode()).hexdigest()

    def _store(self, file: Path, shape: LayerShape, rows: np.ndarray, columns: np.ndarray, seconds: np.ndarray) -> None:
        document = {
            "format": _FORMAT,
            "version": 1,
            **self._place,
            "layer": shape.described(),
            "input_widths": rows.tolist(),
            "output_widths": columns.tolist(),
            "seconds": seconds.tolist(),
        }
        try:
            make_folders(file.parent)
            write_text(file, json.dumps(document, indent=1) + "\n")
        except OSError as error:
            self._folder = None  # one warning is enough
            warn_user(
                f"tables of latency are not kept: {file.parent} cannot be written ({error}); name another folder in "
                f"the environment variable {FOLDER_VARIABLE}"
            )


def layer_shapes(context: PruningContext) -> list[tuple[str, LayerShape]]:
    """Runs a model to see its layers.

    Args:
        context: The traced model.

    Returns:
        For every call of a convolution or linear layer, the name of its weight and its shape.
    """
    shapes: list[tuple[str, LayerShape]] = []
    handles: list[Any] = []

    def remove_hooks() -> None:
        for handle in handles:
            handle.remove()

    with put_back_by(remove_hooks):
        for weight, use in context.trace.weight_uses.items():
            module = context.index.modules[use.layer]
            if not isinstance(module, nn.Linear | ConvolutionBase):
                continue

            def hook(module: Any, inputs: Any, *, weight: str = weight, use: Any = use) -> None:
                source = inputs[0]
                is_linear = isinstance(module, nn.Linear)
                shape = LayerShape(
                    kind=nn.Linear if is_linear else ConvolutionBase,
                    inputs=len(use.inputs),
                    outputs=len(use.outputs),
                    groups=use.groups,
                    whole_groups=use.whole_groups,
                    image=tuple(source.shape[:-1]) if is_linear else (source.shape[0], *source.shape[2:]),
                    options=() if is_linear else tuple((name, getattr(module, name)) for name in _OPTIONS),
                    dtype=source.dtype,
                    device=source.device,
                )
                shapes.append((weight, shape))

            handles.append(module.register_forward_pre_hook(hook))

        with undisturbed(context.index):
            call_model(context.model, copied_inputs(context.example_inputs))
    return shapes


def tables_folder() -> Path | None:
    """The folder of the tables: what the environment variable names, or the user's folder for caches.

    Returns:
        The folder, which need not exist; ``None`` where the variable is empty: no tables are kept.

    Raises:
        InputError: It is a file.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        folder = Path(named)
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", Path.home())) / "fec_fast" / "latency"
    else:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches) / "fec_fast" / "latency"
    if named == "":
        return None
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{FOLDER_VARIABLE}={str(folder)!r} is a file; name a folder for the tables of latency")
    return folder


_Width = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e5)]


class _Table(TypedDict):
    format: Literal["fec_fast.latency_table"]
    version: Literal[1]
    input_widths: Annotated[list[_Width], msgspec.Meta(max_length=64)]
    output_widths: Annotated[list[_Width], msgspec.Meta(max_length=64)]
    seconds: list[list[_Seconds]]


def _stored(file: Path, rows: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """The seconds in a file; ``None`` if there is none, or none that can be believed: then they are measured anew."""
    try:
        return read_table(file, rows, columns)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (CheckpointError, OSError) as error:
        warn_user(f"a table of latency is measured anew: {error}")
        return None


def read_table(file: Path, input_widths: np.ndarray, output_widths: np.ndarray) -> np.ndarray:
    """Reads a table.

    Args:
        file: The file.
        input_widths: The widths that it must have.
        output_widths: Likewise.

    Returns:
        Seconds, float64 ``[input widths, output widths]``.

    Raises:
        CheckpointError: It is damaged, or of other widths.
        OSError: It cannot be read.
    """
    table = parse_json(read_bytes(file, _MOST_BYTES, CheckpointError), _Table, str(file), CheckpointError)
    expected = [input_widths.tolist(), output_widths.tolist()]
    if [table["input_widths"], table["output_widths"]] != expected:
        raise CheckpointError(f"{file} has other widths than its name says")
    shape = {len(row) for row in table["seconds"]}
    if len(table["seconds"]) != len(expected[0]) or shape != {len(expected[1])}:
        raise CheckpointError(f"{file} does not have a time for each of its widths")
    return np.array(table["seconds"], dtype=np.float64)


def time_layer(shape: LayerShape, inputs: int, outputs: int, runtime: str) -> Timing:
    """Measures one call of a layer with other widths, on random numbers.

    Args:
        shape: The layer.
        inputs: Its input channels.
        outputs: Its output channels.
        runtime: Where it runs, not ``"torch.compile"``.

    Returns:
        The time.

    Raises:
        InputError: The runtime cannot run such a layer.
    """
    generator = torch.Generator(shape.device).manual_seed(0)  # the process's own is the user's
    factory: dict[str, Any] = {"dtype": shape.dtype, "device": shape.device, "generator": generator}
    options: dict[str, Any] | None = None
    call: Callable[[], Any]
    if shape.kind is nn.Linear:
        source, weight = torch.randn(*shape.image, inputs, **factory), torch.randn(outputs, inputs, **factory)
    else:
        options = dict(shape.options)
        kernel = options.pop("kernel_size")
        groups = max(1, shape.groups * outputs // shape.outputs) if shape.whole_groups else shape.groups
        widths = (inputs, outputs // groups) if options["transposed"] else (outputs, inputs // groups)
        source = torch.randn(shape.image[0], inputs, *shape.image[1:], **factory)
        weight = torch.randn(*widths, *kernel, **factory)
        options["groups"] = groups
    if runtime != TORCH:
        call = layer_call(source, weight, options, runtime)
    elif options is None:

        def call() -> Tensor:
            return F.linear(source, weight)

    else:
        convolution = _CONVOLUTIONS[len(kernel), options.pop("transposed")]
        if convolution in (F.conv1d, F.conv2d, F.conv3d):
            del options["output_padding"]

        def call() -> Tensor:
            return convolution(source, weight, **options)

    with torch.no_grad():
        return time_call(call, 0.02, 0.1)


def _grid_widths(width: int, shape: LayerShape) -> np.ndarray:
    """The widths to time, int64, rising: shares of a width that the layer's groups allow, and the width itself."""
    step = shape.outputs // shape.groups if shape.whole_groups else shape.groups
    step = step if width % step == 0 else 1
    return np.unique([max(step, round(share * width / step) * step) for share in GRID] + [width])


def _grid_position(grid: np.ndarray, width: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two points of the grid around each width, and the width's position between them, from 0 to 1.

    Beyond the ends of the grid the line through the last two points is continued: the position is below 0 or above 1.
    """
    if len(grid) == 1:
        only = np.zeros(np.shape(width), dtype=np.int64)
        return only, only, only.astype(np.float64)
    at = np.clip(np.searchsorted(grid, width, side="right") - 1, 0, len(grid) - 2)
    return at, at + 1, (width - grid[at]) / (grid[at + 1] - grid[at])
