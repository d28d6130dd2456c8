"""Data sets by name: opens any of the formats of this folder, or a user's own. Nothing is downloaded unless asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import ArgumentError, FecError, InputError, nearest
from .cifar import load_cifar
from .coco import load_coco
from .digits import load_digits
from .hugging_face import load_saved
from .image_folder import load_image_folder
from .loaders import DataOptions, Loader, check_positive, check_seed
from .records import Records, load_records
from .user_file import load_function
from .voc import load_voc
from .yolo import load_yolo

_FORMS = (
    *("sklearn:digits", "imagefolder:PATH", "torchvision:cifar10:PATH", "voc:PATH", "coco:PATH", "yolo:PATH"),
    *("hf:PATH", "path/to/file.py:factory"),
)
_WITH_BOXES: dict[str, Callable[..., tuple[Loader, Loader]]] = {"voc": load_voc, "coco": load_coco, "yolo": load_yolo}


def load(
    spec: str | Records | Mapping[str, Records] | Sequence[Records], batch_size: int = 64, seed: int = 0, **options: Any
) -> tuple[Loader, Loader]:
    """Opens a data set by name, or one that gives dictionaries. Nothing is downloaded without ``download=True``.

    Args:
        spec: One of these forms. ``"sklearn:digits"``: :func:`fec_fast.vision.digits.load_digits`.
            ``"imagefolder:PATH"`` (a folder or a zip): :func:`fec_fast.vision.image_folder.load_image_folder`.
            ``"torchvision:cifar10:PATH"``: :func:`fec_fast.vision.cifar.load_cifar`. ``"voc:PATH"`` (a folder or a
            zip): :func:`fec_fast.vision.voc.load_voc`. ``"coco:PATH"``: :func:`fec_fast.vision.coco.load_coco`.
            ``"yolo:PATH"``: :func:`fec_fast.vision.yolo.load_yolo`. ``"hf:PATH"``: a folder that ``save_to_disk`` of
            Hugging Face ``datasets`` wrote, :func:`fec_fast.vision.hugging_face.load_saved`.
            ``"path/to/file.py:factory"``: a function that returns a training and a held-out loader; of ``batch_size``,
            ``seed`` and the options it is passed those that it has parameters for. The file is executed, so name only
            files you trust. Or no name but the data: a Hugging Face ``Dataset`` or ``DatasetDict``, a list of
            dictionaries and others, see :func:`fec_fast.vision.records.load_records`.
        batch_size: Images per batch.
        seed: Seed for shuffling and augmentation.
        **options: The attributes of :class:`fec_fast.vision.loaders.DataOptions`; for digits only ``limit``; for data
            with boxes and for dictionaries the parameters of their functions.

    Returns:
        The training and the held-out loader.

    Raises:
        InputError: There is no data set of this name, a folder lacks what it should hold, or a number is out of its
            range.
        ArgumentError: There is no such option, or a value has the wrong type.
        MissingExtraError: A library that reads this data set is not installed.
    """
    check_seed(seed)
    if hasattr(spec, "__iter__") and not isinstance(spec, str | bytes):
        return load_records(spec, batch_size, seed, **options)
    if not isinstance(spec, str) or "\0" in spec:
        raise ArgumentError(f"spec={spec!r:.80}: write {', '.join(_FORMS[:-1])} or {_FORMS[-1]}")
    kind, _, rest = spec.partition(":")
    if spec == "sklearn:digits":
        _refuse_others(spec, options, {"limit"})
        return load_digits(batch_size, seed, limit=DataOptions.of(options).limit)
    if kind == "imagefolder" and rest:
        return load_image_folder(rest, batch_size, seed, **options)
    if kind == "torchvision" and ":" in rest:
        name, _, path = rest.partition(":")
        return load_cifar(name, path, batch_size, seed, **options)
    if kind in _WITH_BOXES and rest:
        _refuse_others(spec, options, inspect.signature(_WITH_BOXES[kind]).parameters)
        return _WITH_BOXES[kind](rest, batch_size, seed, **options)
    if kind == "hf" and rest:
        return load_saved(rest, batch_size, seed, **options)
    file, _, function = spec.rpartition(":")
    if file.endswith(".py") and function:
        return _load_from_user_file(spec, Path(file), function, {"batch_size": batch_size, "seed": seed}, options)
    raise InputError(f"data {spec!r}: write {', '.join(_FORMS[:-1])} or {_FORMS[-1]}; {nearest(spec, _FORMS)}")


def _load_from_user_file(
    spec: str, file: Path, function: str, defaults: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Loader, Loader]:
    """Calls a user's function; the options must be parameters of it, the defaults may be."""
    check_positive("batch_size", defaults["batch_size"])
    factory = load_function(f"data {spec!r}", file, function)
    parameters = inspect.signature(factory).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_all:
        _refuse_others(spec, options, parameters)
    arguments = {name: value for name, value in {**defaults, **options}.items() if takes_all or name in parameters}
    try:
        loaders = factory(**arguments)
    except FecError:
        raise
    except Exception as error:
        raise InputError(f"data {spec!r}: its factory raised {type(error).__name__}: {error}") from error
    if not isinstance(loaders, tuple) or len(loaders) != 2:
        raise InputError(f"data {spec!r}: its factory must return a training and a held-out loader, not {loaders!r}")
    return loaders


def _refuse_others(spec: str, options: Mapping[str, Any], names: Any) -> None:
    """Raises if there is an option other than those of the given names."""
    for name in options:
        if name not in names:
            raise ArgumentError(f"data {spec!r} has no option {name!r}; {nearest(name, names)}")
