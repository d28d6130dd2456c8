"""Whether a weight is fit is decided in one place: what one entrance refuses, all refuse, and say what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import fec_fast
from fec_fast.scoring import ops
from fec_fast.scoring.formula import Formula
from fec_fast.utils.weights import first_not_finite, is_quantised_layer, weight_trouble

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
WITH_NAN = WEIGHT.clone()
WITH_NAN[2, 1, 0, 2] = float("nan")

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about quantised and lazy layers

# A weight, and what its message has to say: the trouble and the remedy.
UNFIT: dict[str, tuple[Callable[[], Tensor], str]] = {
    "meta": (lambda: WEIGHT.to("meta"), "on the meta device and has no values.*to_empty"),
    "sparse": (lambda: WEIGHT.to_sparse(), "sparse.*to_dense"),
    "quantised": (lambda: torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8), "quantised.*float model"),
    "lazy": (lambda: nn.UninitializedParameter(), "not initialised.*run the model"),
    "wrapper subclass": (lambda: TwoTensor(WEIGHT, WEIGHT.clone()), "TwoTensor.*plain model"),
    "integer": (lambda: WEIGHT.to(torch.int8), "int8.*float32"),
    "complex": (lambda: WEIGHT.to(torch.complex64), "complex64.*float32"),
    "float8": (lambda: WEIGHT.to(torch.float8_e5m2fnuz), "float8_e5m2fnuz.*float32"),
    "one dimension": (lambda: torch.randn(4), r"shape \[4\].*two dimensions"),
    "not finite": (lambda: WITH_NAN.clone(), r"nan at (index )?\[2, 1, 0, 2\].*load"),
}


def network(weight: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    model[0].weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    return model


@pytest.mark.parametrize("kind", UNFIT)
def test_an_unfit_weight_is_refused_everywhere(kind: str) -> None:
    make, words = UNFIT[kind]
    with pytest.raises(fec_fast.WeightError, match=f"layer '0'.*{words}") as caught:
        fec_fast.score_model(network(make()))
    assert caught.value.layer == "0"
    for criterion in ("fec_l1", "l1"):
        with pytest.raises(fec_fast.WeightError, match=f"^0.weight .*{words}") as caught:
            fec_fast.prune(network(make()), IMAGE, criterion=criterion, recover=None)
        assert caught.value.layer == "0"
    with pytest.raises(fec_fast.WeightError, match=f"^weight 0 .*{words}") as caught:
        ops.entropies([make()], Formula(), axes=[0], groups=[1])
    assert caught.value.layer is None
    if kind == "not finite":
        assert first_not_finite(make()) == caught.value.index == (2, 1, 0, 2)
        assert fec_fast.channel_distances(make()).isnan().any()  # a matrix to look at shows where the NaN is
    else:
        assert weight_trouble(make()) is not None and caught.value.index is None
        with pytest.raises(fec_fast.WeightError, match=f"^weight 0 .*{words}"):
            fec_fast.channel_distances(make())


def test_an_empty_weight_has_no_scores() -> None:
    model = nn.Sequential(nn.Conv2d(3, 0, 3), nn.Conv2d(0, 4, 3), nn.Conv2d(4, 2, 3))
    for call, words in (
        (lambda: fec_fast.score_model(model), r"layer '0'.*empty, \[0, 3, 3, 3\].*at least one"),
        (lambda: fec_fast.prune(model, IMAGE, recover=None), r"^0.weight is empty, \[0, 3, 3, 3\].*at least one"),
        (lambda: fec_fast.channel_distances(model[0].weight), r"^weight 0 is empty, \[0, 3, 3, 3\].*at least one"),
    ):
        with pytest.raises(fec_fast.WeightError, match=words):
            call()
    # The operator's answer for no filters is no entropies, whatever else is in the call.
    (none,) = ops.entropies([model[0].weight], Formula(), axes=[0], groups=[1])
    assert none.shape == (0,)


def test_an_empty_linear_layer_is_no_obstacle_unless_it_is_to_be_scored() -> None:
    model = network(WEIGHT.clone())
    model[0].unused = nn.Linear(0, 4)
    fec_fast.score_model(model)
    fec_fast.prune(model, IMAGE, recover=None)
    with pytest.raises(fec_fast.WeightError, match=r"'0.unused'.*empty, \[4, 0\]"):
        fec_fast.score_model(model, layers=[nn.Linear])


@pytest.mark.parametrize(
    "path",
    [
        "torch.ao.nn.quantized.Conv2d",
        "torch.ao.nn.quantized.ConvTranspose2d",
        "torch.ao.nn.quantized.reference.Conv2d",
        "torch.ao.nn.intrinsic.quantized.ConvReLU2d",
        "torch.ao.nn.quantized.Linear",
        "torch.ao.nn.quantized.dynamic.Linear",
    ],
)
def test_a_quantised_layer_is_refused_everywhere(path: str) -> None:
    module, _, name = path.rpartition(".")
    kind = getattr(pytest.importorskip(module, reason="this torch has no quantised layers"), name)
    layer = kind(4, 4) if "Linear" in name else kind(4, 4, 3)
    assert is_quantised_layer(layer)
    for model in (nn.Sequential(nn.Conv2d(3, 4, 3), layer), nn.Sequential(nn.ReLU(), layer)):
        with pytest.raises(fec_fast.WeightError, match="layer '1'.*quantised.*float model") as caught:
            fec_fast.score_model(model, layers=["1"])
        assert caught.value.layer == "1"
        with pytest.raises(fec_fast.WeightError, match="^1 is quantised.*float model") as caught:
            fec_fast.prune(model, IMAGE, recover=None)
        assert caught.value.layer == "1"
    if callable(layer.weight):
        with pytest.raises(fec_fast.WeightError, match="weight 0 is quantised.*float model"):
            ops.entropies([layer.weight()], Formula(), axes=[0], groups=[1])


class Quantisable(nn.Module):
    """A float model, ready to be quantised: its sum is a module of torch.ao.nn.quantized."""

    def __init__(self) -> None:
        super().__init__()
        quantised = pytest.importorskip("torch.ao.nn.quantized", reason="this torch has no quantised layers")
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.sum = nn.Conv2d(4, 2, 1), quantised.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.sum.add(x, self.second(x)))


def test_a_float_model_that_can_be_quantised_is_fit() -> None:
    torch.manual_seed(0)
    model = Quantisable().eval()
    assert set(fec_fast.score_model(model)) == {"first", "second", "head"}
    pruned = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None).model
    assert pruned.first.weight.shape == (2, 3, 3, 3) and pruned.second.weight.shape == (2, 2, 3, 3)


def test_other_tensors_may_have_any_shape_and_dtype() -> None:
    model = network(WEIGHT.clone())
    model[0].register_buffer("table", torch.arange(3))
    model[0].register_buffer("none", torch.empty(0))
    model[0].register_buffer("absent", None)
    model[0].register_parameter("alpha", nn.Parameter(torch.tensor(1.0)))
    fec_fast.prune(model, IMAGE, recover=None)
    for fit in (model[0].table, model[0].none, model[0].alpha):
        assert weight_trouble(fit, holds_filters=False) is None
    hollow = copy.deepcopy(model)
    hollow[0].table = torch.arange(3, device="meta")
    with pytest.raises(fec_fast.WeightError, match="^0.table is on the meta device"):
        fec_fast.prune(hollow, IMAGE, recover=None)


def test_a_sum_that_overflows_is_looked_at_element_by_element() -> None:
    large = torch.full((3, 3), 3e38)
    assert first_not_finite(large) is None
    large[1, 2] = -float("inf")
    assert first_not_finite(large) == (1, 2)
    assert first_not_finite(torch.empty(0, 3)) is None
