"""Functions of a model's code that keep their results (``functools.lru_cache``), called anew every time."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .critical_section import one_thread_at_a_time, put_back_by, surely_closed
from .model_index import ModelIndex
from .modules import modules_of

_KEEPS_RESULTS = type(functools.cache(len))
_Place = tuple[Callable[[Any], None], Any, Any]  # how to write to it, what it holds, what it shall hold


@surely_closed
def uncached(*models: nn.Module | ModelIndex) -> Iterator[None]:
    """Runs models whose code keeps results of functions, without looking into what was kept or adding to it.

    A copy of a model is another ``self``: a cached method computes in it what the original has long computed, and calls
    other operators. The cache would keep every copy alive. A run for the shapes alone would leave zeros in it, and
    results of the old weights would be used with the new ones.

    Args:
        *models: The models, or their indexes. Looked into are the methods of their modules, and the functions of the
            same files that these call by name. The caches are as before at the end.

    Yields:
        Nothing.
    """
    kinds = {
        parent
        for model in models
        for module in (model.modules if isinstance(model, ModelIndex) else modules_of(model)).values()
        for parent in type(module).__mro__[:-1]
        if not parent.__module__.startswith("torch.")
    }
    places = [place for kind in kinds for place in _places_of(kind)]
    if not places:
        yield
        return

    def restore() -> None:
        for write, held, _ in places:
            write(held)

    with one_thread_at_a_time(), put_back_by(restore):
        for write, _, plain in places:
            write(plain)
        yield


def _places_of(kind: type) -> Iterator[_Place]:
    """What must be written where, so that methods of a class and what they call keep no results."""
    for name, attribute in vars(kind).items():
        plain = _without_cache(attribute)
        if plain is not None:
            yield functools.partial(setattr, kind, name), attribute, plain
        function = _function_of(attribute if plain is None else plain)
        while isinstance(function, types.FunctionType):
            yield from _places_in(function)
            function = getattr(function, "__wrapped__", None)  # under a decorator
            function = _without_cache(function) or function


def _places_in(function: types.FunctionType) -> Iterator[_Place]:
    """The same for the global variables that a function reads, and for the variables of a decorator."""
    for name in function.__code__.co_names:
        held = function.__globals__.get(name)
        if (plain := _without_cache(held)) is not None:
            yield functools.partial(function.__globals__.__setitem__, name), held, plain
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            if (plain := _without_cache(cell.cell_contents)) is not None:
                yield functools.partial(setattr, cell, "cell_contents"), cell.cell_contents, plain


def _without_cache(value: Any) -> Any:
    """The function, method or property that keeps no results; ``None`` for one that keeps none anyway."""
    if isinstance(value, _KEEPS_RESULTS):
        return value.__wrapped__ if isinstance(value.__wrapped__, types.FunctionType) else None
    function = _function_of(value)
    if function is value or (plain := _without_cache(function)) is None:
        return None
    return value.getter(plain) if isinstance(value, property) else type(value)(plain)


def _function_of(value: Any) -> Any:
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value
