"""Contexts that Ctrl-C has kept a ``with`` statement from leaving are left in the right order, and in time."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from fec_fast.utils import critical_section
from fec_fast.utils.critical_section import surely_closed, surely_left
from fec_fast.utils.public_call import interruptible
from fec_fast.utils.random_state import restored_torch_randomness
from fec_fast.utils.undo import all_or_nothing


def test_what_was_not_left_is_left_before_the_context_around_it() -> None:
    order: list[str] = []

    @surely_closed
    def context(name: str) -> Iterator[None]:
        try:
            yield
        finally:
            order.append(name)

    @interruptible
    def call() -> None:
        with context("first"), context("second"):
            context("third").__enter__()
            context("fourth").__enter__()
            with context("fifth"):
                pass
        assert order == ["fifth", "fourth", "third", "second", "first"]
        assert critical_section._opened.generators == []

    call()
    assert len(order) == 5


def test_older_values_win() -> None:
    """The random state after a call is that before it, whichever context was not left."""

    @interruptible
    def call() -> None:
        with restored_torch_randomness():
            torch.rand(1)
            restored_torch_randomness().__enter__()
            torch.rand(1)
            raise KeyboardInterrupt

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        call()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_context_that_is_made_of_others_ends_as_usual() -> None:
    tensor = torch.zeros(1)

    @interruptible
    def call() -> None:
        with all_or_nothing() as undo:
            undo.values(tensor)
            tensor.fill_(1)

    call()
    assert tensor.item() == 1


def test_an_error_while_the_inner_ones_are_left_still_leaves_the_outer_one() -> None:
    left: list[str] = []

    @surely_closed
    def outer() -> Iterator[None]:
        try:
            yield
        finally:
            left.append("outer")

    @surely_closed
    def failing() -> Iterator[None]:
        try:
            yield
        finally:
            raise ValueError("it cannot be put back")

    @interruptible
    def call() -> None:
        with outer():
            failing().__enter__()

    with pytest.raises(ValueError, match="put back"):
        call()
    assert left == ["outer"]


def test_contexts_of_other_libraries_are_left_too(capsys: pytest.CaptureFixture[str]) -> None:
    @interruptible
    def call() -> None:
        surely_left(warnings.catch_warnings()).__enter__()
        warnings.simplefilter("ignore")
        surely_left(contextlib.redirect_stdout(sys.stderr)).__enter__()
        print("elsewhere")

    filters = list(warnings.filters)
    call()
    print("here")
    assert warnings.filters == filters
    assert capsys.readouterr() == ("here\n", "elsewhere\n")
