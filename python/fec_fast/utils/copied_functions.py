"""Copies of functions that refer to a model, such as a ``forward`` put in place of the class's, a hook or a wrapper.

``copy.deepcopy`` shares functions. A function of a copied model that refers to the original would run the original.
"""

from __future__ import annotations

import copy
import dis
import functools
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from .errors import ArgumentError

FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_CONTAINERS = (dict, OrderedDict, defaultdict, list, tuple, set, deque)
# How far functions, containers and callable objects are looked into.
_DEPTH = 6
IMMUTABLE = {int, float, bool, str, bytes, type(None)}
# A container with more entries is data, and no place where runs leave something.
_MOST_ENTRIES = 10_000


class FunctionCopier:
    """Copies functions whose variables hold modules or tensors of a model; others are shared."""

    def __init__(
        self, memo: dict[int, Any], own: set[int], copy_other: Callable[[Any, str], Any], keeps_apart: bool
    ) -> None:
        """Takes what the copies are made with.

        Args:
            memo: What stands for some objects in the copy, by the identity of the original; new entries are added.
            own: The identities of the model's modules and tensors.
            copy_other: Copies another value; takes its place too, for messages.
            keeps_apart: Whether every function has variables of its own.
        """
        self._memo, self._own, self._copy, self._keeps_apart = memo, own, copy_other, keeps_apart
        self._known: dict[int, tuple[Any, bool]] = {}  # by identity: whether it refers to the model

    def copied(self, value: Any, place: str) -> Any:
        """Copies a function, a method or a ``functools.partial``."""
        if id(value) in self._memo:
            return self._memo[id(value)]
        if isinstance(value, types.MethodType):
            function = self._copied_function(value.__func__, place)
            copied: Any = types.MethodType(function, self._copy(value.__self__, place))
        elif isinstance(value, functools.partial):
            keywords = {name: self._copy(each, place) for name, each in value.keywords.items()}
            copied = functools.partial(
                self._copy(value.func, place), *(self._copy(each, place) for each in value.args), **keywords
            )
            vars(copied).update({name: self._content(each, place) for name, each in vars(value).items()})
        else:
            copied = self._copied_function(value, place)
        if place.rpartition(".")[2] == "forward":
            self._check_globals(value, place)
        self._memo[id(value)] = copied
        return copied

    def are_inside(self, value: Any) -> bool:
        """Whether a container or a callable object holds functions that are copied, which ``deepcopy`` would share."""
        return any(isinstance(each, types.FunctionType) and self._is_copied(each) for each in self._reached(value))

    def _is_copied(self, function: types.FunctionType) -> bool:
        return self._refers(function) or (self._keeps_apart and bool(function.__closure__))

    def _copied_function(self, function: Any, place: str) -> Any:
        if not isinstance(function, types.FunctionType):  # of a C extension, or a callable object
            return self._copy(function, place)
        if id(function) in self._memo:
            return self._memo[id(function)]
        if not self._is_copied(function):
            return function
        variables = function.__closure__ or ()
        cells = [self._cell_of(cell) for cell in variables]
        copied = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, tuple(cells))
        for name in functools.WRAPPER_ASSIGNMENTS:  # name, documentation, annotations
            setattr(copied, name, getattr(function, name))
        self._memo[id(function)] = copied  # before it is filled: it may refer to itself
        for cell, old in zip(cells, variables, strict=True):
            if cell is not old and not _is_empty(old) and _is_empty(cell):
                cell.cell_contents = self._content(old.cell_contents, place)
        if function.__defaults__ is not None:
            copied.__defaults__ = tuple(self._content(each, place) for each in function.__defaults__)
        if function.__kwdefaults__ is not None:
            copied.__kwdefaults__ = {key: self._content(each, place) for key, each in function.__kwdefaults__.items()}
        copied.__dict__.update({key: self._content(each, place) for key, each in vars(function).items()})
        return copied

    def _check_globals(self, value: Any, place: str) -> None:
        """Refuses functions that refer to the model by a global variable, which a copy cannot have for itself."""
        for function in self._reached(value):
            if not isinstance(function, types.FunctionType):
                continue
            for name in _globals_read(function.__code__):
                held = function.__globals__.get(name)
                is_own = isinstance(held, nn.Module | nn.Parameter) and id(held) in self._own
                if is_own or (isinstance(held, FUNCTIONS) and self._refers(held)):
                    raise ArgumentError(
                        f"model: {place} is a function that refers to the model by the global variable {name!r}, so it "
                        "would run this model in a pruned copy too; put the model into a module of your own whose "
                        "forward calls self.model, or make the function inside another one that is given the model"
                    )

    def _cell_of(self, cell: types.CellType) -> types.CellType:
        """The variable of the copy; functions that share one share its copy."""
        if not self._keeps_apart and (_is_empty(cell) or not self._refers(cell.cell_contents)):
            return cell
        copied: types.CellType = self._memo.setdefault(id(cell), types.CellType())
        return copied

    def _content(self, value: Any, place: str) -> Any:
        """What a variable of the copy holds."""
        if self._refers(value):
            return self._copy(value, place)
        return self._apart(value) if self._keeps_apart else value

    def _apart(self, value: Any) -> Any:
        """A copy of what runs may leave something in, but not of tensors: a dictionary may hold all images."""
        if id(value) in self._memo or not _is_state(value):
            return self._memo.get(id(value), value)
        try:
            copied = copy.copy(value)
        except Exception:  # then runs share it
            return value
        self._memo[id(value)] = copied
        if isinstance(copied, dict):
            copied.update({key: self._apart(each) for key, each in value.items()})
        elif isinstance(copied, list | deque):
            for position, each in enumerate(value):
                copied[position] = self._apart(each)
        elif not isinstance(copied, set):
            vars(copied).update({name: self._apart(each) for name, each in vars(value).items()})
        return copied

    def _refers(self, value: Any) -> bool:
        known = self._known.get(id(value))
        if known is None:  # with the value itself: its identity may not be used again
            known = self._known[id(value)] = value, any(id(each) in self._own for each in self._reached(value))
        return known[1]

    def _reached(self, value: Any) -> Iterator[Any]:
        """A value and what it holds, at some depth, through functions, containers and callable objects."""
        seen, level = {id(value)}, [value]
        for _ in range(_DEPTH):
            yield from level
            held = [each for one in level if id(one) not in self._own for each in _held_by(one)]
            level = []
            for each in held:
                if type(each) not in IMMUTABLE and id(each) not in seen:
                    seen.add(id(each))
                    level.append(each)


def _globals_read(code: types.CodeType) -> Iterator[str]:
    """The names of the global variables that code reads, also in functions inside it."""
    yield from (each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_read(constant)


def _held_by(value: Any) -> Iterator[Any]:
    if isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values(), *vars(value).values())
    elif isinstance(value, types.FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell))
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values())
    elif isinstance(value, dict):
        yield from value.values()
    elif type(value) in _CONTAINERS:
        yield from value
    elif callable(value) and not isinstance(value, type | nn.Module | Tensor):
        # A wrapper. Objects that are not called, such as a trainer that a hook reports to, are not looked into.
        yield from getattr(value, "__dict__", {}).values()


def _is_state(value: Any) -> bool:
    """Whether runs may leave something in a value, and a shallow copy of it is harmless."""
    kind = type(value)
    if kind in _CONTAINERS:
        return kind is not tuple and len(value) <= _MOST_ENTRIES
    if kind is types.SimpleNamespace:
        return True
    own_ways = {"__del__", "__copy__", "__deepcopy__", "__slots__", "__getstate__", "__setstate__"}
    own_ways |= {"__reduce__", "__reduce_ex__"}
    plain = all(own_ways.isdisjoint(vars(parent)) for parent in kind.__mro__[:-1])
    if not plain or isinstance(value, type | nn.Module | Tensor):
        return False
    return any(isinstance(each, Tensor) for each in getattr(value, "__dict__", {}).values())


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False
