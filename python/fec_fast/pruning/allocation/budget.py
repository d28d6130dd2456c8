"""``Budget``: how much smaller a network has to become, measured in parameters, MACs, memory or latency."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import InitVar, dataclass
from typing import Any

from ...utils.arguments import check_number
from ...utils.errors import ArgumentError, BudgetError, nearest
from ...utils.public_call import constructor_checked, names_checked
from ...utils.runtimes import RUNTIMES, TORCH, check_runtime

# The quantities that can be limited, with their names in notes and messages.
QUANTITIES = {
    "params": "parameters",
    "macs": "multiply-accumulates",
    "memory": "bytes of memory",
    "latency_ms": "milliseconds per call",
}

# Units of absolute targets, by quantity: names to factors.
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_TIMES = {"s": 1e3, "ms": 1.0, "us": 1e-3}
_UNITS = {"params": _COUNTS, "macs": _COUNTS, "memory": _BYTES, "latency_ms": _TIMES}
_EXAMPLES = {"params": "'5M'", "macs": "'1.2G'", "memory": "'50 MB'", "latency_ms": "'3 ms'"}


@constructor_checked
@dataclass(frozen=True)
class Budget:
    """The size that the pruned network must reach; exactly one target is given.

    A number is a share that is *removed*: ``Budget(params=0.7)`` leaves 30 % of the parameters, or less where the
    widths do not allow exactly that. ``Budget.remove(params=0.7)`` says so, and ``Budget.keep(params=0.3)`` is the
    same. A text is what may be *left*: ``Budget(macs="1.2G")``, ``Budget(latency="3 ms")``.

    Attributes:
        params: Share of the parameters to remove, in (0, 1), or how many may be left, such as ``"5M"``; a parameter
            shared by several layers counts once.
        macs: Share of the multiply-accumulates of one call on the example inputs to remove, in (0, 1), or how many may
            be left, such as ``"1.2G"``.
        memory: Share of the memory of one call to remove, in (0, 1), or how much may be left, such as ``"50 MB"``
            or ``"48 MiB"``. Memory is the bytes of parameters and buffers, plus the largest sum, at any moment of a
            call in evaluation mode without gradients, of the bytes of operators' results that are still in use, at the
            batch size of the example inputs. Workspaces of operators (im2col, cuDNN) and the allocator's rounding are
            not counted.
        latency_ms: Milliseconds that a call on the example inputs may take, in evaluation mode, on the model's device,
            with the number of threads torch is set to. It is measured, see
            :mod:`fec_fast.pruning.allocation.latency_budget`.
        runtime: What the latency is measured in: ``"torch"`` (the default), ``"torch.compile"``, ``"onnxruntime"`` or
            ``"openvino"``. ``latency="3 ms@onnxruntime"`` says the same.

    Raises:
        BudgetError: None or several are given, or one is out of its range; a runtime without a latency.
        ArgumentError: Neither a number nor a text; an unknown runtime.
    """

    params: float | str | None = None
    macs: float | str | None = None
    memory: float | str | None = None
    latency_ms: float | None = None
    latency: InitVar[str | None] = None
    runtime: str = TORCH

    def __post_init__(self, latency: str | None) -> None:
        """Checks that exactly one target is given and in range.

        Args:
            latency: The same as ``latency_ms``, with its unit, such as ``"3 ms"``.
        """
        given = {name: getattr(self, name) for name in QUANTITIES}
        given = {name: value for name, value in {**given, "latency": latency}.items() if value is not None}
        if len(given) != 1:
            listed = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "nothing"
            raise BudgetError(f"Budget: give exactly one of {', '.join(QUANTITIES)}, latency, not {listed}")
        ((name, value),) = given.items()
        check_runtime(self.runtime)
        if name == "latency":
            if not isinstance(value, str):
                raise ArgumentError(f"Budget(latency={value!r}): give a text with a unit, such as '3 ms'")
            time, runtime = _time_and_runtime(value, self.runtime)
            object.__setattr__(self, "latency_ms", _absolute("latency_ms", time))
            object.__setattr__(self, "runtime", runtime)
            return
        if name != "latency_ms" and self.runtime != TORCH:
            raise BudgetError(f"Budget({name}={value!r}, runtime={self.runtime!r}): a runtime belongs to latency=")
        if isinstance(value, str) and name != "latency_ms":
            share = share_hint(value)
            if share is not None or _absolute(name, value) < 1:
                example = f", such as {share}" if share else ""
                raise ArgumentError(f"Budget({name}={value!r}): write a share as a number, not as a text{example}")
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArgumentError(f"Budget({name}={value!r}): give a number")
        if name == "latency_ms":
            if not 0 < value <= sys.float_info.max:
                raise BudgetError(f"Budget(latency_ms={value!r}): give a positive number of milliseconds")
        elif not 0 < value < 1:
            raise BudgetError(
                f"Budget({name}={value!r}): give the share of the {QUANTITIES[name]} to remove, a number between "
                f"0 and 1 (0.7 leaves 30 %), or a text with what may be left, such as {_EXAMPLES[name]}"
            )

    @classmethod
    @names_checked
    def remove(cls, *, params: float | None = None, macs: float | None = None, memory: float | None = None) -> Budget:
        """A budget by the share that is removed: ``Budget.remove(params=0.7)`` leaves 30 %.

        Args:
            params: Share of the parameters, in (0, 1).
            macs: Share of the multiply-accumulates, in (0, 1).
            memory: Share of the memory, in (0, 1).

        Returns:
            The budget.

        Raises:
            BudgetError: None or several are given, or a share is out of its range.
            ArgumentError: Not a number.
        """
        for name, value in (("params", params), ("macs", macs), ("memory", memory)):
            if isinstance(value, str):
                share = share_hint(value)
                hint = f", such as {share or 0.5}"
                if (_amount_in(name, value) or 0) >= 1:
                    hint += f". Budget.keep({name}={value!r}) is what may be left"
                raise ArgumentError(f"Budget.remove({name}={value!r:.80}): give a share as a number{hint}")
        return cls(params, macs, memory)

    @classmethod
    @names_checked
    def keep(
        cls,
        *,
        params: float | str | None = None,
        macs: float | str | None = None,
        memory: float | str | None = None,
        latency: str | None = None,
        runtime: str = TORCH,
    ) -> Budget:
        """A budget by what may be left: ``Budget.keep(params=0.3)``, ``Budget.keep(macs="1.2G")``.

        Args:
            params: Share of the parameters, in (0, 1), or how many, such as ``"5M"``.
            macs: Share of the multiply-accumulates, in (0, 1), or how many, such as ``"1.2G"``.
            memory: Share of the memory, in (0, 1), or how much, such as ``"50 MB"``.
            latency: The time of one call, such as ``"3 ms"``.
            runtime: What the latency is measured in, see :class:`Budget`; ``"torch"`` by default.

        Returns:
            The budget.

        Raises:
            BudgetError: None or several are given, or one is out of its range.
            ArgumentError: Neither a number nor a text.
        """
        targets: dict[str, float | str | None] = {}
        for name, value in (("params", params), ("macs", macs), ("memory", memory)):
            targets[name] = value
            if isinstance(value, int | float) and not isinstance(value, bool):
                if not 0 < value < 1:
                    raise BudgetError(
                        f"Budget.keep({name}={value!r}): give the share of the {QUANTITIES[name]} that may be left, a "
                        f"number between 0 and 1, or a text such as {_EXAMPLES[name]}"
                    )
                targets[name] = round(1 - value, 12)  # 1 - 0.3 shall be 0.7 where it is shown
        return cls(targets["params"], targets["macs"], targets["memory"], latency=latency, runtime=runtime)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads a budget from a command line.

        Args:
            text: ``"NAME=NUMBER"``, for instance ``"params=0.7"``, ``"macs=1.2G"``, ``"latency=3 ms"`` or
                ``"latency=3 ms@onnxruntime"``.

        Returns:
            The budget.

        Raises:
            BudgetError: The text has another form, or the number is out of its range.
        """
        if not isinstance(text, str):
            raise BudgetError(f"text={text!r:.80}: write NAME=NUMBER, such as params=0.7")
        name, equals, target = text.partition("=")
        if not equals or name not in (*QUANTITIES, "latency"):
            hint = nearest(name, (*QUANTITIES, "latency"))
            raise BudgetError(f"budget {text!r}: write NAME=NUMBER, such as params=0.7 or macs=1.2G; {hint}")
        value: float | str = target
        runtime = TORCH
        if name == "latency_ms":
            target, runtime = _time_and_runtime(target, TORCH)
        try:
            value = float(target)
        except ValueError:
            if name == "latency_ms":
                raise BudgetError(f"budget {text!r}: {target!r} is not a number") from None
        if name == "latency":
            value = target
        targets: dict[str, Any] = {name: value}
        return cls(**targets, runtime=runtime)

    @property
    def quantity(self) -> str:
        """The name of the limited quantity: ``"params"``, ``"macs"``, ``"memory"`` or ``"latency_ms"``."""
        return next(name for name in QUANTITIES if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """The number given for it: a share removed, or, of an absolute target, what may be left."""
        value = getattr(self, self.quantity)
        return _absolute(self.quantity, value) if isinstance(value, str) else float(value)

    def share_of(self, size: float) -> float:
        """The share that is removed from a network of some size.

        Args:
            size: Its size in the quantity; not for latency.

        Returns:
            The share, in (0, 1).

        Raises:
            BudgetError: An absolute target that the network meets without pruning.
            ArgumentError: ``size`` is not a positive number.
        """
        check_number("size", size, "the size of the network, a positive number", exclusive=True)
        if not isinstance(getattr(self, self.quantity), str):
            return self.amount
        if self.amount >= size:
            raise BudgetError(
                f"Budget({self}): the network has {size:,.0f} {QUANTITIES[self.quantity]} before pruning, which is no "
                "more than that; give a smaller target"
            )
        return 1 - self.amount / size

    def __str__(self) -> str:
        """For instance ``params=0.7``, ``macs=1.2G`` or ``latency_ms=3@onnxruntime``."""
        value = getattr(self, self.quantity)
        runtime = "" if self.runtime == TORCH else f"@{self.runtime}"
        return f"{self.quantity}={value if isinstance(value, str) else format(self.amount, 'g')}{runtime}"


def round_budget(budget: Budget, amount: float) -> Budget:
    """The budget for a round of several: of the same quantity, in the same runtime.

    Args:
        budget: The budget of all rounds.
        amount: The share to remove in this one; of latency the milliseconds.

    Returns:
        The budget of the round.
    """
    targets: dict[str, Any] = {budget.quantity: amount}
    return Budget(**targets, runtime=budget.runtime)


def _time_and_runtime(text: str, runtime: str) -> tuple[str, str]:
    """Splits a time such as ``"3 ms@onnxruntime"``; a runtime that was given apart must not contradict it."""
    time, at, named = text.partition("@")
    if not at:
        return text, runtime
    named = named.strip()
    if named not in RUNTIMES:
        raise ArgumentError(
            f"budget 'latency={text}': {named!r} is no runtime; write one of {', '.join(RUNTIMES)} after the @; "
            f"{nearest(named, RUNTIMES)}"
        )
    if runtime not in (TORCH, named):
        raise BudgetError(f"Budget(latency={text!r}, runtime={runtime!r}): the text names another runtime; give one")
    return time, named


def share_hint(text: str) -> str | None:
    """The share that a text means, for messages: numbers are asked for, and ``"50%"`` or ``"0.5"`` were given.

    Args:
        text: What was given.

    Returns:
        The share as digits, such as ``"0.5"``; ``None`` if the text means no share.
    """
    match = re.fullmatch(r"\s*([0-9.]{1,9})\s*(%?)\s*", text)
    try:
        share = 0.0 if match is None else float(match[1]) / (100 if match[2] else 1)
    except ValueError:
        return None
    return f"{share:g}" if 0 < share < 1 else None


def _amount_in(quantity: str, text: str) -> float | None:
    """What may be left, in parameters, operations, bytes or milliseconds; ``None`` if the text says no such thing."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    factor = None if match is None else _UNITS[quantity].get(match.group(2))
    try:
        number = 0.0 if match is None or factor is None else float(match.group(1)) * factor
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _absolute(quantity: str, text: str) -> float:
    """Reads what may be left: a positive number with a unit, in parameters, operations, bytes or milliseconds."""
    number = _amount_in(quantity, text)
    if number is None:
        units = ", ".join(unit or "none" for unit in _UNITS[quantity])
        name = "latency" if quantity == "latency_ms" else quantity
        raise BudgetError(
            f"Budget({name}={text!r}): write a positive number and a unit (one of: {units}), such as "
            f"{_EXAMPLES[quantity]}"
        )
    return number
