"""Errors carry what a program needs besides the message."""

from __future__ import annotations

import pickle

from fec_fast.scoring.ops import NonFiniteWeightError
from fec_fast.utils.errors import WeightError


def test_weight_errors_carry_layer_and_index() -> None:
    assert (WeightError("x").layer, WeightError("x").index) == (None, None)
    for error in (
        WeightError("layer 'a' is sparse", layer="a", index=(1, 2)),
        NonFiniteWeightError("layer 'a' has nan", layer="a", index=(1, 2), position=3),
    ):
        copy = pickle.loads(pickle.dumps(error))  # as between the processes of a data loader
        assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)
