"""``Budget``: how much smaller a network has to become, measured in parameters, MACs, memory or latency."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from ...utils.errors import ArgumentError, BudgetError, nearest

# The quantities that can be limited, with their names in notes and messages.
QUANTITIES = {
    "params": "parameters",
    "macs": "multiply-accumulates",
    "memory": "bytes of memory",
    "latency_ms": "milliseconds per call",
}


@dataclass(frozen=True)
class Budget:
    """The size that the pruned network must reach; exactly one of the four is given.

    Shares are shares *removed*: ``Budget(params=0.7)`` leaves 30 % of the parameters, or less where the widths do not
    allow exactly that.

    Attributes:
        params: Share of the parameters to remove, in (0, 1); a parameter shared by several layers counts once.
        macs: Share of the multiply-accumulates of one call on the example inputs to remove, in (0, 1).
        memory: Share of the memory of one call to remove, in (0, 1). Memory is the bytes of parameters and buffers,
            plus the largest sum, at any moment of a call in evaluation mode without gradients, of the bytes of
            operators' results that are still in use, at the batch size of the example inputs. Workspaces of operators
            (im2col, cuDNN) and the allocator's rounding are not counted.
        latency_ms: Milliseconds that a call on the example inputs may take, in evaluation mode, on the model's device,
            with the number of threads torch is set to. It is measured, see
            :mod:`fec_fast.pruning.allocation.latency_budget`.

    Raises:
        BudgetError: None or several are given, or a number is out of its range.
        ArgumentError: Not a number.
    """

    params: float | None = None
    macs: float | None = None
    memory: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        """Checks that exactly one target is given and in range."""
        given = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            listed = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "nothing"
            raise BudgetError(f"Budget: give exactly one of {', '.join(QUANTITIES)}, not {listed}")
        ((name, value),) = given.items()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArgumentError(f"Budget({name}={value!r}): give a number")
        if name == "latency_ms":
            if not 0 < value <= sys.float_info.max:
                raise BudgetError(f"Budget(latency_ms={value!r}): give a positive number of milliseconds")
        elif not 0 < value < 1:
            raise BudgetError(
                f"Budget({name}={value!r}): give the share of the {QUANTITIES[name]} to remove, a number between "
                "0 and 1 (0.7 leaves 30 %)"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads a budget from a command line.

        Args:
            text: ``"NAME=NUMBER"``, for instance ``"params=0.7"``.

        Returns:
            The budget.

        Raises:
            BudgetError: The text has another form, or the number is out of its range.
        """
        if not isinstance(text, str):
            raise BudgetError(f"text={text!r:.80}: write NAME=NUMBER, such as params=0.7")
        name, equals, number = text.partition("=")
        if not equals or name not in QUANTITIES:
            hint = nearest(name, QUANTITIES)
            raise BudgetError(f"budget {text!r}: write NAME=NUMBER, such as params=0.7; {hint}")
        try:
            value = float(number)
        except ValueError:
            raise BudgetError(f"budget {text!r}: {number!r} is not a number") from None
        return cls(**{name: value})

    @property
    def quantity(self) -> str:
        """The name of the limited quantity: ``"params"``, ``"macs"``, ``"memory"`` or ``"latency_ms"``."""
        return next(name for name in QUANTITIES if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """The number given for it: a share removed, or milliseconds."""
        return float(getattr(self, self.quantity))

    def __str__(self) -> str:
        """For instance ``params=0.7``."""
        return f"{self.quantity}={self.amount:g}"
