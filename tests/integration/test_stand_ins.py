"""The spread: small stand-ins for the networks of known packages are pruned to a budget, proven, saved and loaded."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
from torch import nn

import fec_fast
from benchmarks.proof.faults import faults, is_found
from fec_fast.utils.compat import ConvolutionBase
from helpers.comparison import assert_same_weights
from helpers.stand_ins import STAND_INS


def prunable_share(model: nn.Module, listed: fec_fast.Couplings) -> float:
    """The share of the output channels of all convolutions that can be removed."""
    layers = [name for name, module in model.named_modules() if isinstance(module, ConvolutionBase)]
    total = sum(model.get_submodule(name).out_channels for name in layers)
    kept = sum(pinned.channels for pinned in listed.pinned if pinned.layer in layers)
    return 1 - kept / total


def test_there_are_at_least_forty() -> None:
    assert len(STAND_INS) >= 40


@pytest.mark.parametrize("name", STAND_INS)
def test_it_reaches_a_budget_and_is_proven_saved_and_loaded(name: str, tmp_path: Path) -> None:
    stand_in = STAND_INS[name]
    model, inputs = stand_in.built()
    listed = fec_fast.couplings(model, inputs, norms=stand_in.norms)
    share = prunable_share(model, listed)
    reasons = " ".join(pinned.reason for pinned in listed.pinned)
    assert share >= 0.6 if stand_in.kept is None else share < 0.6 and stand_in.kept in reasons, (share, reasons)
    if not listed.sets:
        return
    result = fec_fast.prune(model, inputs, budget=fec_fast.Budget(params=0.3), norms=stand_in.norms, recover=None)
    assert result.after.parameters <= 0.7 * result.before.parameters
    assert result.proof is not None and result.proof.difference < 1e-9
    fresh, _ = stand_in.built()
    fec_fast.load(fresh, fec_fast.save(result, tmp_path / "saved"))
    assert_same_weights(fresh, result.model)
    # Each network is given some of the kinds of faults; the long part is benchmarks/proof.
    first = list(STAND_INS).index(name) % 5
    for kind, place, faulty, plan in islice(faults(model, result, random.Random(first)), first, first + 3):
        assert is_found(model, faulty, plan, inputs), (kind, place)
