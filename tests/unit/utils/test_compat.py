"""What is written around private interfaces of torch does what the private interface does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fec_fast
from fec_fast.utils.compat import without_dispatch_modes


def test_nothing_of_a_traced_run_is_compiled() -> None:
    """A compiled function in a model's code calls operators under our dispatch modes, which must not be compiled."""

    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)
            self.between = torch.compile(lambda x: (2 * x).relu(), backend="eager")

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.between(self.one(x)))

    from torch._dynamo.utils import counters

    counters.clear()
    result = fec_fast.prune(Compiled().eval(), torch.randn(1, 3, 8, 8), ratio=0.5, verify=False, recover=None)
    assert result.model.one.out_channels == 4
    assert not counters["frames"]


def test_without_dispatch_modes_switches_all_off_and_on_again() -> None:
    class Counting(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += 1
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Counting() as outer, Counting() as inner:
        x + x
        assert (outer.seen, inner.seen) == (1, 1)
        with without_dispatch_modes():
            x + x
        assert (outer.seen, inner.seen) == (1, 1)
        x + x
    assert (outer.seen, inner.seen) == (2, 2)
