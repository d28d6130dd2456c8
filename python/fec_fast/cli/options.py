"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from ..utils.errors import InputError, PlanError
from ..utils.user_warnings import warn_user
from ..vision import data, zoo
from ..vision.loaders import Loader
from ..vision.weights import load_weights

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="torchvision:NAME, zoo:NAME or path/to/file.py:factory")
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Weights: safetensors, or a .pth (read with weights_only). Default: random."),
]
DATA_HELP = (
    "imagefolder:PATH, voc:PATH, coco:PATH or yolo:PATH (a folder or a zip), hf:PATH (saved Hugging Face data), "
    "torchvision:cifar10:PATH, sklearn:digits or file.py:factory"
)
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="N,C,H,W",
        help="Shape of the example input. Default: 1,1,8,8 for the zoo's digits networks, 1,3,32,32 for the rest of "
        "the zoo, 1,3,224,224 for all others.",
    ),
]


Layers = Annotated[bool, typer.Option("--layers", help="Also prints a table of all layers.")]
# Data whose images can be scaled; those with boxes keep their sizes.
_SCALED = ("imagefolder:", "torchvision:", "hf:")
_MOST_ELEMENTS = 1 << 30  # of the example input, 4 GB
Force = Annotated[bool, typer.Option("--force", help="Replaces what --out names.")]


def check_out(out: Path, force: bool, option: str = "--out") -> None:
    """Checks that an option names nothing that would be replaced, or that it may be.

    Args:
        out: A file or a folder.
        force: The value of ``--force``.
        option: The option.

    Raises:
        InputError: It exists, and may not be replaced.
    """
    occupied = any(out.iterdir()) if out.is_dir() else out.exists()
    if occupied and not force:
        raise InputError(f"{option} {out} exists: add --force to replace it, or give another name")


@contextlib.contextmanager
def plan_for(model: str, folder: Path) -> Iterator[None]:
    """Names the model and the plan in an error that says that they do not belong together.

    Args:
        model: The name of the model.
        folder: The checkpoint, or the file of the plan.

    Yields:
        Nothing.
    """
    try:
        yield
    except PlanError as error:
        raise PlanError(f"model {model}, plan of {folder}: {error}") from error


def build_model(name: str, weights: Path | None, *, warn: bool = True) -> nn.Module:
    """Builds a model and loads its weights. A warning says if they are random.

    Args:
        name: As in ``MODEL``.
        weights: The file of the weights; ``None`` leaves those that the model is built with.
        warn: Whether random weights matter.

    Returns:
        The model.

    Raises:
        FecError: There is no such model, or the weights do not fit.
    """
    model = zoo.build(name)
    # A factory in a file may load weights itself.
    if weights is None and warn and name.startswith(("zoo:", "torchvision:")):
        message = (
            f"RANDOM WEIGHTS: {name} was never trained. Its sizes are right, its scores and accuracies mean nothing; "
        )
        warn_user(message + "give the trained weights with --weights FILE")
    return model if weights is None else load_weights(model, weights)


def example_shape(model: str, text: str | None) -> tuple[int, ...]:
    """The shape of the example input: the given one, or the one that the model's data has.

    Args:
        model: The name of the model.
        text: The value of ``--input-shape``.

    Returns:
        The sizes.

    Raises:
        InputError: The text is not made of positive whole numbers, or the input would have too many elements.
    """
    if text is None:
        return zoo.input_shape(model)
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise InputError(f"--input-shape {text!r}: give whole numbers and commas, such as 1,3,224,224") from None
    if any(size < 1 for size in shape):
        raise InputError(f"--input-shape {text!r}: every size must be positive")
    if math.prod(shape) > _MOST_ELEMENTS:
        raise InputError(f"--input-shape {text:.80}: that is more than {_MOST_ELEMENTS:,} numbers; give a small batch")
    return shape


def load_data(name: str, model: str, text: str | None) -> tuple[Loader, Loader]:
    """Opens the data for a model: images that have another size than the example input are scaled to it, or reported.

    Args:
        name: The name of the data.
        model: The name of the model.
        text: The value of ``--input-shape``.

    Returns:
        The training and the held-out loader.

    Raises:
        FecError: There is no such data.
    """
    loaders = data.load(name)
    sizes = example_shape(model, text)[2:]
    image = _first_image(loaders[1]) if name.startswith(_SCALED) else None
    if image is None or len(sizes) != 2 or sizes == image.shape[1:]:
        return loaders
    has = "{} x {}".format(*image.shape[1:])
    wanted = "{} x {}".format(*sizes)
    remedy = "give --input-shape {},{},{},{}".format(1, *image.shape)
    # For a user's own network the default size says nothing about the images that it was trained on.
    if sizes[0] != sizes[1] or (text is None and not model.startswith("torchvision:")):
        warn_user(f"{name} has images of {has} and the example input {wanted}, which sizes are counted on; {remedy}")
        return loaders
    if image.shape[1] < sizes[0]:
        warn_user(
            f"{name}: images of {has} are enlarged to {wanted}, the size of the example input; if the network was "
            f"trained on {has}, {remedy}"
        )
    return data.load(name, image_size=sizes[0])


def _first_image(loader: Loader) -> Tensor | None:
    """The first image ``[C, H, W]`` of a data set for classification; ``None`` for others."""
    dataset: Any = loader.dataset
    image, label = dataset[0]
    is_image = isinstance(image, Tensor) and image.ndim == 3
    return image if is_image and isinstance(label, int) else None


def example_input(model: str, text: str | None) -> Tensor:
    """An example input, the same in every call.

    Args:
        model: The name of the model.
        text: The value of ``--input-shape``.

    Returns:
        Normally distributed numbers.

    Raises:
        InputError: The text is not made of positive whole numbers, or the input would have too many elements.
    """
    return torch.randn(example_shape(model, text), generator=torch.Generator().manual_seed(0))
