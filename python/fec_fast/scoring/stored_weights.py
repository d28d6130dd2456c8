"""Weights of layers in safetensors files: found by the layers' names, checked by the headers, read one at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import nn
from torch.nn.parameter import is_lazy

from ..utils.compat import own_parameters
from ..utils.errors import ArgumentError, CheckpointError, WeightError, nearest
from ..utils.tensor_files import StoredTensor, open_tensors
from ..utils.weights import FLOAT8_DTYPES, SCORABLE_DTYPES, is_quantised_layer
from .layers import refusal, scale_trouble

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class NotInFileError(WeightError):
    """A weight that is no tensor of the files. The model may be able to load them nevertheless.

    Attributes:
        what: What is the case, without the remedy.
    """

    def __init__(self, what: str, remedy: str, *, layer: str) -> None:
        """Stores the parts of the message.

        Args:
            what: What is the case.
            remedy: What to do about it.
            layer: The name of the layer.
        """
        super().__init__(f"{what}{remedy}", layer=layer)
        self.what = what


class StoredWeights:
    """The tensors of some files, by name."""

    def __init__(self, tensors: Mapping[str, StoredTensor], modules: Mapping[str, nn.Module]) -> None:
        """Stores where weights are looked for.

        Args:
            tensors: The tensors of the files.
            modules: The modules of the model by every name that they have.
        """
        self._tensors = tensors
        self._names: dict[int, list[str]] = {}  # of a shared layer a file may have any name
        for name, module in modules.items():
            self._names.setdefault(id(module), []).append(f"{name}.weight" if name else "weight")

    def weight_of(self, name: str, module: nn.Module) -> StoredTensor:
        """Finds the weight of a layer; it is not read yet.

        Args:
            name: The name of the layer.
            module: The layer, whose own weight gives the shape alone: it may be on the meta device.

        Returns:
            The tensor in the file, which has that shape and a dtype that can be scored.

        Raises:
            WeightError: There is none, or it is unfit.
        """
        where = f"layer {name!r} ({type(module).__name__}): its weight"
        own = own_parameters(module).get("weight")
        if own is None or is_lazy(own) or is_quantised_layer(module):
            raise NotInFileError(
                f"{where} is not a parameter of a known shape, so that a file's cannot be compared with it",
                "; load the file into the model and leave weights= out",
                layer=name,
            )
        names = self._names[id(module)]
        stored = next((self._tensors[key] for key in names if key in self._tensors), None)
        if stored is None:
            raise NotInFileError(
                f"{where} is not in the file: there is no {names[0]!r}; {nearest(names[0], self._tensors)}",
                ". Where the names differ, load the file into the model and leave weights= out",
                layer=name,
            )
        if stored.shape != own.shape:
            raise WeightError(
                f"{where} has shape {list(own.shape)} and in {stored.file} {list(stored.shape)}: give the file of "
                "this model",
                layer=name,
            )
        if stored.dtype not in (*SCORABLE_DTYPES, *FLOAT8_DTYPES):
            kind = str(stored.dtype).removeprefix("torch.")
            raise WeightError(f"{where} is {kind} in {stored.file}; save the float weights", layer=name)
        if stored.dtype in FLOAT8_DTYPES:
            layer = stored.name.removesuffix("weight")
            trouble = scale_trouble(stored.dtype, (key for key in self._tensors if key.startswith(layer)))
            if trouble is not None:
                raise refusal(name, module, trouble)
        return stored


@contextlib.contextmanager
def open_weights(files: Files, modules: Mapping[str, nn.Module]) -> Iterator[StoredWeights]:
    """Opens the files of a model's weights.

    Args:
        files: A safetensors file, or several that share out the weights.
        modules: The modules of the model by every name that they have.

    Yields:
        Its weights; the files are closed afterwards.

    Raises:
        ArgumentError: Not paths.
        CheckpointError: A file is missing, or is not in the safetensors format; or two files have a tensor each of one
            name.
        OSError: A file cannot be read.
    """
    paths = [files] if isinstance(files, str | os.PathLike) else files
    if not isinstance(paths, Sequence) or not paths or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise ArgumentError(f"weights={files!r}: give the path of a safetensors file, or a list of such paths")
    tensors: dict[str, StoredTensor] = {}
    with contextlib.ExitStack() as opened:
        for path in map(Path, paths):
            if path.suffix != ".safetensors":
                raise CheckpointError(
                    f"weights={str(path)!r}: only .safetensors files are read a tensor at a time; load others into the "
                    "model (model.load_state_dict) and leave weights= out"
                )
            if not path.exists():
                raise CheckpointError(f"there is no weights file {path}")
            found = opened.enter_context(open_tensors(path))
            both = next((name for name in found if name in tensors), None)
            if both is not None:
                raise CheckpointError(
                    f"{tensors[both].file} and {path} both have {both!r}: give the files of one model"
                )
            tensors |= found
        yield StoredWeights(tensors, modules)
