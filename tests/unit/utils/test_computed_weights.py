"""What computes a weight, and how to undo it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fec_fast.utils.computed_weights import (
    computation_of,
    computation_of_layer,
    computed_attributes,
    memo_of_computed,
    owner_of,
    recompute,
    weight_parts,
)
from fec_fast.utils.model_index import ModelIndex

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


def masked(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


CASES = {
    "weight norm": (nn.utils.weight_norm, {"weight_g", "weight_v"}, "remove_weight_norm(layer)"),
    "spectral norm": (nn.utils.spectral_norm, {"weight_orig"}, "remove_spectral_norm(layer)"),
    "a pruning mask": (masked, {"weight_orig"}, "prune.remove(layer, 'weight')"),
    "orthogonal": (parametrizations.orthogonal, {"parametrizations.weight.original"}, "remove_parametrizations"),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("prefix", ["", "body."])
def test_kind_layer_and_remedy(kind, prefix):
    wrap, names, remedy = CASES[kind]
    layer = wrap(nn.Linear(4, 4))
    model = nn.ModuleDict({"body": layer}) if prefix else layer
    modules = ModelIndex.of(model).modules
    assert set(weight_parts(layer)) == names
    for name in names:
        found = computation_of(modules, prefix + name)
        assert (found.layer, found.kind) == (prefix.rstrip("."), kind) and remedy in found.remedy
        assert owner_of(prefix + name) == found.layer
    assert computation_of_layer(modules, prefix.rstrip(".")) == found


def test_an_ordinary_layer_has_no_computation():
    layer = nn.Conv2d(3, 4, 1)
    assert computation_of_layer({"": layer}, "") is None and set(weight_parts(layer)) == {"weight"}
    assert computation_of({"": layer}, "weight").kind == "the code of Conv2d"


def test_a_computed_weight_is_copied_and_computed_anew():
    model = nn.utils.weight_norm(nn.Linear(4, 6))
    assert list(computed_attributes(model)) == ["weight"]
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    copied = copy.deepcopy(model, memo_of_computed(ModelIndex.of(model)))
    assert torch.equal(copied.weight, model.weight) and copied.weight is not model.weight
    with torch.no_grad():
        copied.weight_g.mul_(2)
        recompute([copied])
    assert torch.allclose(copied.weight, 2 * model.weight)
