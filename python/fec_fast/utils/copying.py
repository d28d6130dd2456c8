"""Copies of models: as ``copy.deepcopy``, but faster, and also of models with attributes that cannot be copied."""

from __future__ import annotations

import copy
import gc
import sys
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .computed_weights import memo_of_computed
from .copied_functions import FUNCTIONS, IMMUTABLE, FunctionCopier
from .errors import ArgumentError
from .model_index import ModelIndex

_SEQUENCES = (list, tuple, set, deque)
# Classes of Python's library that are looked into, besides those of others. All others are tied to something outside.
_LOOKED_INTO = {"abc", "argparse", "builtins", "collections", "contextlib", "enum", "functools", "types", "typing"}
_THREADING_LOOKED_INTO = (threading.Semaphore, threading.Event, threading.Barrier)
_MADE_ANEW: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.Condition: threading.Condition,
}
# How far what cannot be copied is searched for modules and tensors of the model.
_DEPTH = 3
_NO_REFERENCES = (types.ModuleType, type, types.FunctionType, str, bytes)


def copied_model(index: ModelIndex, memo: dict[int, Any] | None = None, *, keeps_apart: bool = False) -> nn.Module:
    """Copies a model.

    What cannot be copied is shared with the original: a Python module, a generator, an open file, a stream, a thread
    pool, an object with a destructor. Locks are made anew, because runs of several copies would wait for one another.
    A tensor that was computed with gradients is copied without its history. ``deepcopy`` shares functions; those that
    refer to the model (a ``forward`` put in place of the class's, a hook) get the copy to refer to.

    Args:
        index: The index of the model, which is not changed.
        memo: What stands for some objects in the copy, by the identity of the original; new entries are added.
        keeps_apart: Whether functions of the copy also have variables of their own, so that runs of the copy and of the
            original can take turns: a hook may leave what a layer computes in a variable.

    Returns:
        What ``copy.deepcopy(index.model, memo)`` returns where everything can be copied.

    Raises:
        ArgumentError: Something cannot be copied and holds modules or tensors of the model, so that it cannot be
            shared.
    """
    memo = {} if memo is None else memo
    # In inference mode the copy could not be trained. With gradients the parameters of a scripted module would be
    # results of a copy.
    with torch.inference_mode(False), torch.no_grad():
        for identity, computed in memo_of_computed(index).items():
            memo.setdefault(identity, computed)
        copied_by_default = {
            kind: _uses_default_copy(kind) for kind in {type(module) for module in index.modules.values()}
        }
        modules = [(name, module) for name, module in index.modules.items() if copied_by_default[type(module)]]
        # All copies are made, empty, before any is filled: wherever an attribute refers to a module, the copy is found.
        for _, module in modules:
            memo[id(module)] = object.__new__(type(module))
        copier = _Copier(memo, index, keeps_apart)
        # Children first: a class that deepcopy copies by itself may use them in its __setstate__.
        for name, module in reversed(modules):
            state = module.__getstate__()  # type: ignore[no-untyped-call]
            prefix = f"{name}." if name else ""
            memo[id(module)].__setstate__({own: copier.attribute(value, prefix + own) for own, value in state.items()})
        copied: nn.Module = copier.attribute(index.model, "the model")
        return copied


class _Copier:
    """Copies what the modules of one model hold.

    ``deepcopy`` is slow at what most of a module's attributes are: numbers and empty dictionaries.
    """

    def __init__(self, memo: dict[int, Any], index: ModelIndex, keeps_apart: bool) -> None:
        self._memo = memo
        self._own = {id(held) for held in (*index.modules.values(), *index.tensors.values())}
        self._under_way: set[int] = set()
        self._functions = FunctionCopier(memo, self._own, self.attribute, keeps_apart)

    def attribute(self, value: Any, place: str) -> Any:
        """Copies an attribute; ``place`` is its name, for messages."""
        kind = type(value)
        if kind in IMMUTABLE or (kind is tuple and all(type(item) in IMMUTABLE for item in value)):
            return value
        copied = self._memo.get(id(value))
        if copied is not None:
            return copied
        if kind in FUNCTIONS:
            return self._functions.copied(value, place)
        if kind in (dict, OrderedDict) and (
            all(type(key) is str for key in value) or self._functions.are_inside(value)
        ):
            # Into the memo before it is filled: a dictionary that two modules share is shared by their copies too.
            copied = self._memo[id(value)] = kind()
            for key, item in value.items():
                copied[key if type(key) is str else self._copied(key, place)] = self.attribute(item, place)
            return copied
        if id(value) in self._under_way or not self._functions.are_inside(value):
            return self._copied(value, place)
        self._under_way.add(id(value))  # a wrapper may hold a method of its own
        return self._sequence(value, place) if kind in _SEQUENCES else self._wrapper(value, place)

    def _sequence(self, value: Any, place: str) -> Any:
        if type(value) is list:
            copied = self._memo[id(value)] = []
            copied.extend(self.attribute(item, place) for item in value)
            return copied
        items = [self.attribute(item, place) for item in value]
        made = deque(items, value.maxlen) if type(value) is deque else type(value)(items)
        self._memo[id(value)] = made
        return made

    def _wrapper(self, value: Any, place: str) -> Any:
        """Copies an object that holds functions, which ``deepcopy`` shares."""
        own = getattr(value, "__dict__", {})
        held = {name: self.attribute(each, place) for name, each in own.items() if self._functions.are_inside(each)}
        copied = self._copied(value, place)
        if copied is not value:
            getattr(copied, "__dict__", {}).update(held)
        return copied

    def _copied(self, value: Any, place: str) -> Any:
        known = len(self._memo)
        try:
            return copy.deepcopy(value, self._memo)
        except Exception as error:
            while len(self._memo) > known:  # copies of its parts that were not finished
                self._memo.popitem()
            copied = self._made_otherwise(value, place, error)
            self._memo[id(value)] = copied
            return copied

    def _made_otherwise(self, value: Any, place: str, error: Exception) -> Any:
        kind = type(value)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            return value.detach().clone()
        if kind in _MADE_ANEW:
            return _MADE_ANEW[kind]()
        if kind is tuple:
            return tuple(self._copied(item, place) for item in value)
        if not (hasattr(kind, "__deepcopy__") or hasattr(kind, "__del__") or _is_tied_outside(kind)):
            try:
                reduced = value.__reduce_ex__(4)
            except Exception:  # it has no parts that Python knows of
                reduced = None
            if isinstance(reduced, tuple):
                return self._rebuilt(value, reduced, place)
        if isinstance(value, nn.Module | nn.Parameter) or self._refers_to_own(value):
            raise ArgumentError(
                f"model: {place} holds a {kind.__name__} that cannot be copied ({type(error).__name__}: {error}), and "
                "it refers to modules or tensors of the model, which a copy must have for itself; take it off the "
                "model before the call"
            ) from error
        return value

    def _rebuilt(self, value: Any, reduced: tuple[Any, ...], place: str) -> Any:
        """Makes an object from what it is reduced to, as ``copy`` does, part by part."""
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        copied = make(*(self._copied(each, place) for each in arguments))
        self._memo[id(value)] = copied
        if state is not None:
            self._set_state(copied, self._copied(state, place))
        for item in items or ():
            copied.append(self._copied(item, place))
        for key, item in pairs or ():
            copied[self._copied(key, place)] = self._copied(item, place)
        return copied

    def _set_state(self, copied: Any, state: Any) -> None:
        if hasattr(copied, "__setstate__"):
            copied.__setstate__(state)
            return
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        if attributes:
            vars(copied).update(attributes)
        for name, held in (slots or {}).items():
            setattr(copied, name, held)

    def _refers_to_own(self, value: Any) -> bool:
        """Whether an object holds a module or tensor of the model, at some depth."""
        seen, level = {id(value)}, [value]
        for _ in range(_DEPTH):
            held = [each for each in gc.get_referents(*level) if not isinstance(each, _NO_REFERENCES)]
            level = [each for each in held if id(each) not in seen]
            seen.update(map(id, level))
            if not self._own.isdisjoint(map(id, level)):
                return True
        return False


def _is_tied_outside(kind: type) -> bool:
    """Whether objects of a class of Python's library stand for something outside: a thread, a file, a connection."""
    if issubclass(kind, _THREADING_LOOKED_INTO):
        return False
    roots = {parent.__module__.partition(".")[0] for parent in kind.__mro__}
    return not (roots & sys.stdlib_module_names).issubset(_LOOKED_INTO)


def _uses_default_copy(kind: type[nn.Module]) -> bool:
    """Whether ``deepcopy`` would make an empty object of this class and fill in its attributes, and do nothing else."""
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__new__ is object.__new__
        and kind.__getstate__ is nn.Module.__getstate__
        and not any("__slots__" in vars(parent) for parent in kind.__mro__)
    )
