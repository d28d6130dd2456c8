"""Weights that are computed from parameters: what may go goes exactly, what may not is kept with its remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fec_fast
from fec_fast.graph.rules.cuts import blocks_of
from fec_fast.graph.trace import trace_model
from fec_fast.utils.model_index import ModelIndex
from tests.helpers.computed import BOTH_AXES, FILTERS, NEITHER, Around, Recurrent

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned(make):
    torch.manual_seed(0)
    model = Around(make).eval()
    return model, fec_fast.prune(model, X, ratio=0.5, recover=None)


@pytest.mark.parametrize("name", BOTH_AXES)
def test_filters_and_input_channels_go(name):
    model, result = pruned(BOTH_AXES[name])
    assert result.proof.difference < 1e-9
    assert set(result.proof.runs) >= {"own weights", "drawn weights"} and not result.proof.not_read
    assert result.model.a.out_channels == 8 and result.model.b.in_channels == 8
    assert all(16 not in tensor.shape for tensor in result.model.state_dict().values())


@pytest.mark.parametrize("name", FILTERS)
def test_filters_go_and_input_channels_are_kept_with_a_remedy(name):
    model, result = pruned(FILTERS[name])
    assert result.proof.difference < 1e-9 and not result.proof.not_read
    assert result.model.a.out_channels == 16 and result.model.b.in_channels == 8
    assert "before pruning" in result.plan.pinned["a"]
    notes = [note for note in result.plan.notes if "body" in note and "before pruning" in note]
    assert len(notes) == 1


@pytest.mark.parametrize("name", FILTERS)
def test_input_channels_go_where_norms_run_over_the_kept_ones(name):
    torch.manual_seed(0)
    model = Around(FILTERS[name]).eval()
    result = fec_fast.prune(model, X, ratio=0.5, norms="renormalise", recover=None)
    assert result.proof.difference < 1e-9 and not result.proof.not_read
    assert set(result.proof.runs) >= {"own weights", "drawn weights"}
    assert result.model.a.out_channels == 8 and result.model.b.in_channels == 8
    assert all(16 not in tensor.shape for tensor in result.model.state_dict().values())
    assert all(module.startswith("body") for module in result.plan.changed_norms)
    if "standardisation" in name:  # a norm is the same over zeros, a mean is not
        as_before = replace(result.plan, norms={})
        with pytest.raises(fec_fast.EquivalenceError, match="differs from the masked original"):
            fec_fast.verify_equivalence(model, result.model, as_before, X)
    again = fec_fast.prune(result.model, X, ratio=0.5, norms="renormalise", recover=None)
    both = fec_fast.compose(result.plan, again.plan)
    assert fec_fast.verify_equivalence(model, again.model, both, X) < 1e-9


@pytest.mark.parametrize("name", FILTERS)
def test_exact_norms_name_what_lets_the_input_channels_go(name):
    _, result = pruned(FILTERS[name])
    assert 'or norms="renormalise" lets them go' in result.plan.pinned["a"]


@pytest.mark.parametrize("name", NEITHER)
def test_what_depends_on_all_weights_is_kept_with_a_remedy(name):
    make, remedy = NEITHER[name]
    with pytest.raises(fec_fast.LayerError, match=remedy):
        pruned(make)


def test_one_note_for_all_layers_of_a_kind():
    wrap = nn.utils.parametrizations.weight_norm
    layers = [wrap(nn.Conv1d(4 if i == 0 else 8, 8, 3)) for i in range(3)]
    model = nn.Sequential(*layers, nn.Conv1d(8, 2, 1)).eval()
    notes = fec_fast.prune(model, torch.randn(1, 4, 20), ratio=0.5, recover=None).plan.notes
    assert [note for note in notes if "weight norm" in note] == [
        "weight norm: the weights of 0, 1, 2 are computed from several of their channels together, which keep their "
        "width: call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') before pruning"
    ]


@pytest.mark.parametrize("name", [*BOTH_AXES, *FILTERS])
def test_plan_and_saved_network_rebuild_the_pruned_one(name, tmp_path):
    make = {**BOTH_AXES, **FILTERS}[name]
    _, result = pruned(make)
    expected = result.model(X)
    fresh = Around(make).eval()
    fec_fast.apply_plan(fresh, result.plan)
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh(X), expected)
    fec_fast.save(result, tmp_path / "saved")
    assert torch.equal(fec_fast.load(Around(make), tmp_path / "saved").eval()(X), expected)


@pytest.mark.parametrize("name", ["mask", "weight norm", "parametrized weight norm", "weight standardisation"])
def test_attributes_and_computed_weights_follow(name):
    make = {**BOTH_AXES, **FILTERS}[name]
    model, result = pruned(make)
    kept = len(result.plan.keep["a.weight"]["0"]) if name == "mask" else 16
    body = result.model.body
    assert (body.in_channels, body.out_channels) == (kept, 8)
    assert body.weight.shape[:2] == (8, kept)  # before a run
    fec_fast.apply_plan(model, result.plan)
    assert model.body.weight.shape[:2] == (8, kept)
    model.train()(X).sum().backward()


def test_pruning_leaves_the_given_model_and_its_computed_weight():
    torch.manual_seed(0)
    model = Around(FILTERS["weight norm"])  # its weight has a history, and deepcopy refuses it
    weight, before = model.body.weight, {name: value.clone() for name, value in model.state_dict().items()}
    fec_fast.prune(model, X, ratio=0.5, recover=None)
    assert model.body.weight is weight
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_are_those_of_the_computed_weight():
    torch.manual_seed(0)
    model = Around(FILTERS["parametrized weight norm"]).eval()
    torch.manual_seed(0)
    plain = Around(FILTERS["parametrized weight norm"]).eval()  # no copy: it would share the class that is changed
    nn.utils.parametrize.remove_parametrizations(plain.body, "weight")
    for criterion in ("l1", "fec_l1"):
        result = fec_fast.prune(model, X, ratio=0.5, criterion=criterion, sides="producer", ignore=["a"], recover=None)
        other = fec_fast.prune(plain, X, ratio=0.5, criterion=criterion, sides="producer", ignore=["a"], recover=None)
        assert result.plan.sets[0]["removed"] == other.plan.sets[0]["removed"]
        assert torch.allclose(result.model(X), other.model(X), atol=1e-6)


def test_gradients_of_the_scale_stand_for_those_of_the_computed_weight():
    class Classifier(Around):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    torch.manual_seed(0)
    model = Classifier(FILTERS["parametrized weight norm"]).eval()
    torch.manual_seed(0)
    plain = Classifier(FILTERS["parametrized weight norm"]).eval()  # no copy: it would share the class that is changed
    nn.utils.parametrize.remove_parametrizations(plain.body, "weight")
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 3, (8,)))]
    options = {"ratio": 0.5, "criterion": "taylor", "sides": "producer", "calibration": data, "ignore": ["a"]}
    scores, expected = (
        torch.tensor(fec_fast.prune(each, X, **options, recover=None).plan.sets[0]["scores"]) for each in (model, plain)
    )
    assert torch.allclose(scores, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["mask", "parametrized weight norm", "weight norm", "channels-last weight"])
def test_compensation_leaves_computed_weights_and_says_so(name):
    torch.manual_seed(0)
    model, images = Around({**BOTH_AXES, **FILTERS}[name]).eval(), torch.randn(16, 3, 8, 8)
    result = fec_fast.prune(model, X, ratio=0.5, norms="renormalise", recover=None)
    assert result.model.a.out_channels == 8
    left = fec_fast.compensate(model, result.model, result.plan, images, progress=False).left
    is_computed = name != "channels-last weight"
    (layer,) = left
    assert layer == ("body" if is_computed else "body.w")
    assert ("its weight is computed" in left[layer]) == is_computed


def test_weights_that_are_not_zero_when_masked_keep_the_channels_they_read():
    class Exponential(nn.Conv2d):
        def forward(self, x):
            return torch.sigmoid(self._conv_forward(x, self.weight.exp(), None))

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.Sigmoid(), Exponential(8, 8, 1), nn.Conv2d(8, 2, 1)]
    result = fec_fast.prune(nn.Sequential(*layers).eval(), X, ratio=0.5, recover=None)
    assert result.model[0].out_channels == 8 and result.model[2].out_channels == 4


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_inputs_of_recurrent_layers_go(kind, options):
    torch.manual_seed(0)
    model, x = Recurrent(kind, **options).eval(), torch.randn(2, 3, 6)
    result = fec_fast.prune(model, x, ratio=0.5, recover=None)
    assert result.proof.difference < 1e-9
    assert result.model.a.out_channels == result.model.body.input_size == 8
    assert result.model.body.weight_hh_l0.shape == model.body.weight_hh_l0.shape
    fresh = Recurrent(kind, **options)
    fec_fast.apply_plan(fresh, result.plan)
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh.eval()(x), result.model(x))
    result.model.train()(x).sum().backward()


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_inputs_of_recurrent_cells_go(kind):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.cell, self.b = nn.Conv1d(3, 16, 1), kind(16, 8), nn.Linear(8, 3)

        def forward(self, x):
            state = None
            for step in torch.relu(self.a(x)).unbind(2):
                state = self.cell(step, state)
            return self.b(state[0] if isinstance(state, tuple) else state)

    torch.manual_seed(0)
    result = fec_fast.prune(Steps().eval(), torch.randn(2, 3, 4), ratio=0.5, recover=None)
    assert result.proof.difference < 1e-9
    assert result.model.a.out_channels == result.model.cell.input_size == 8


def test_deformable_convolution():
    ops = pytest.importorskip("torchvision.ops")

    class Deformable(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.offsets, self.conv = (
                nn.Conv2d(inputs, 27, 3, padding=1),
                ops.DeformConv2d(inputs, outputs, 3, padding=1),
            )

        def forward(self, x):
            first, second, mask = self.offsets(x).chunk(3, 1)
            return self.conv(x, torch.cat([first, second], 1), mask.sigmoid())

    _, result = pruned(Deformable)
    body = result.model.body
    assert result.proof.difference < 1e-9
    assert (body.conv.in_channels, body.conv.out_channels, body.offsets.out_channels) == (8, 8, 27)


def test_computed_weights_are_counted_and_traced_without_touching_buffers():
    torch.manual_seed(0)
    model = Around(NEITHER["parametrized spectral norm"][0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace = trace_model(ModelIndex.of(model), X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trace.macs_by_layer()["body"] == 2 * 16 * 16 * 9 * 64 and "body" not in trace.unreached


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((4, 3, 2), (4, 6), [([0], [0]), ([1, 2], [1])]),
        ((4, 6), (4, 3, 2), [([0], [0]), ([1], [1, 2])]),
        ((4, 3), (3, 4), [([0, 1], [0, 1])]),
        ((4, 6), (4, 1, 6), [([0], [0]), ([1], [1, 2])]),
        ((0, 3), (3, 0), [([0, 1], [0, 1])]),
    ],
)
def test_dimensions_of_a_reshape_in_blocks(before, after, expected):
    assert blocks_of(before, after) == expected


def test_a_note_on_a_parameter_of_the_model_itself_says_so():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.weight = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(6, 8, 1, 1))

        def forward(self, x):
            return nn.functional.conv2d(self.first(x), self.weight - self.weight.mean(1, keepdim=True))

    notes = fec_fast.couplings(Own().eval(), X).notes
    assert any("the weights of the model itself are computed" in note for note in notes)
