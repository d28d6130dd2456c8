"""Trials: the channels of an operator's results, what is refused, and nothing that changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fec_fast.graph.operator_call import OperatorCall
from fec_fast.graph.operator_trial import Axis, WithinChannels, try_operator

aten = torch.ops.aten


def tried(operator: object, *args: object, dim: int = 1, zero: bool = True, **kwargs: object) -> WithinChannels | str:
    call = OperatorCall(operator, args, kwargs, operator(*args, **kwargs))  # type: ignore[operator]
    labels = np.arange(1, args[0].shape[dim] + 1)  # type: ignore[attr-defined]
    return try_operator(call, [Axis(dim, labels, zero), *[None] * (len(call.operands) - 1)])


def test_channels_of_the_results() -> None:
    x = torch.rand(2, 4, 3, 5)
    values, indices = tried(aten.topk.default, x, 2, 3).results  # type: ignore[union-attr]
    assert (values.dim, values.zero) == (1, True) and (indices.dim, indices.zero) == (1, False)
    assert values.positions.tolist() == indices.positions.tolist() == [0, 1, 2, 3]
    assert tried(aten.prod.dim_int, x, 0).results[0].dim == 0  # type: ignore[union-attr]
    assert tried(aten.repeat.default, x, [1, 2, 1, 1]).results[0].positions.tolist() == [*range(4), *range(4)]  # type: ignore[union-attr]
    assert tried(aten.im2col.default, x, [1, 2], [1, 1], [0, 0], [1, 1]).results[0].positions.tolist() == [  # type: ignore[union-attr]
        *(0, 0, 1, 1, 2, 2, 3, 3)
    ]


def test_zero_when_masked() -> None:
    x = torch.rand(2, 4, 3, 5)
    assert tried(aten.cumsum.default, x, 3).results[0].zero  # type: ignore[union-attr]
    assert not tried(aten.cumsum.default, x, 3, zero=False).results[0].zero  # type: ignore[union-attr]
    assert not tried(aten.logsumexp.default, x, [3]).results[0].zero  # type: ignore[union-attr]


def test_groups_of_channels() -> None:
    x = torch.rand(2, 12, 4)
    found = tried(aten.col2im.default, x, [4, 4], [2, 2], [1, 1], [0, 0], [2, 2])
    assert isinstance(found, WithinChannels)
    assert found.positions.tolist() == np.repeat([0, 1, 2], 4).tolist() and found.firsts.tolist() == [0, 4, 8]
    assert found.results[0].positions.tolist() == [0, 1, 2]  # type: ignore[union-attr]


def test_a_result_without_channels() -> None:
    found = tried(aten.new_zeros.default, torch.rand(2, 4, 3), [2, 7])
    assert isinstance(found, WithinChannels) and found.results == (None,)


@pytest.mark.parametrize(
    ("operator", "args", "words"),
    [
        (aten.multinomial.default, (torch.rand(3, 5), 2), "random numbers"),
        (aten.nonzero.default, (torch.rand(3, 5),), "as many elements"),
        (aten.equal.default, (torch.rand(3, 5), torch.rand(3, 5)), "no tensor"),
        (aten.expand.default, (torch.rand(1, 5, 3), [2, 5, 3]), "does not accept fewer channels"),
        (aten.as_strided.default, (torch.rand(3, 5), [3, 5], [5, 1]), "does not accept fewer channels"),
    ],
)
def test_what_is_not_tried_or_refused(operator: object, args: tuple[object, ...], words: str) -> None:
    assert words in tried(operator, *args)


def test_a_trial_changes_nothing() -> None:
    x = torch.rand(2, 4, 3)
    before, state = x.clone(), torch.get_rng_state()
    assert isinstance(tried(aten.cumsum.default, x, 2), WithinChannels)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
