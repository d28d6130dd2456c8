"""score_model and ModelScores: what is scored, what is refused; the model is not changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fec_fast
from fec_fast import Formula, ModelScores, score_model
from fec_fast.scoring.layers import LayerInfo
from fec_fast.scoring.reference import entropy
from fec_fast.utils.modules import unwrap
from tests.helpers.networks import KindsOfLayers as Net

CHANNELS = Formula(compress="rms", axis="channels")
FILTERS = Formula(compress="none", axis="filters")


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("formula", [CHANNELS, FILTERS, Formula.literal()], ids=str)
def test_scores_are_those_of_the_reference(formula: Formula) -> None:
    net = Net()
    scores = score_model(net, formula=formula, layers=[nn.Conv2d, nn.ConvTranspose2d, nn.Linear])
    expected = {
        "stem": entropy(net.stem.weight, formula),
        "body.0": entropy(net.body[0].weight, formula, groups=2),
        "body.2": entropy(net.body[2].weight, formula, axis=1, groups=3),
        "head": entropy(net.head.weight, formula),
    }
    for name, values in expected.items():
        close(scores[name], values)
        assert scores[name].dtype == torch.float64
    assert [len(scores[name]) for name in expected] == [8, 12, 6, 5]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 5, 3),
        nn.Conv2d(4, 5, (3, 1)),
        nn.Conv3d(4, 5, 2),
        nn.ConvTranspose1d(4, 5, 3),
        nn.ConvTranspose2d(4, 5, 3),
        nn.ConvTranspose3d(4, 5, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_kind_of_convolution(layer: nn.Module) -> None:
    scores = score_model(nn.Sequential(layer), formula=CHANNELS)
    transposed = "Transpose" in type(layer).__name__
    weight: Any = layer.weight
    # A transposed convolution computes for an output channel what a plain one with swapped axes computes.
    close(scores["0"], entropy(weight.transpose(0, 1) if transposed else weight, CHANNELS))
    assert scores.layers["0"] == LayerInfo(type(layer).__name__, tuple(weight.shape), int(transposed), 1)


def test_unscored_layers_have_a_reason() -> None:
    scores = score_model(Net(), formula=CHANNELS)
    assert set(scores) == {"stem", "body.0", "body.2"}
    assert set(scores.unscored) == {"depthwise", "head"}
    assert "one channel per filter" in scores.unscored["depthwise"]
    assert "nn.Linear" in scores.unscored["head"]
    with pytest.raises(KeyError, match="one channel per filter"):
        scores["depthwise"]
    with pytest.raises(KeyError, match="'stem'"):
        scores["stemm"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("convert", [torch.jit.script, lambda part: torch.jit.trace(part, torch.randn(1, 4, 8, 8))])
def test_convolutions_inside_torchscript_have_no_score_but_a_reason(convert: Any) -> None:
    part = convert(nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU()))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), part)
    scores = score_model(net)
    assert list(scores) == ["0"] and set(scores.unscored) == {"1.0"} and "scripted" in scores.unscored["1.0"]
    with pytest.raises(fec_fast.LayerError, match=r"'1.0' is inside a scripted or traced module"):
        score_model(net, layers=["1.0"])


def test_single_filter_has_no_entropy_among_filters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 1))
    scores = score_model(net, formula=FILTERS)
    assert list(scores) == ["0"]
    assert "single filter" in scores.unscored["1"]
    assert "1" in score_model(net, formula=CHANNELS)


def test_a_layer_without_one_of_the_two_entropies_has_the_other() -> None:
    both = Formula("rms", axis="both")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 1, 1), nn.Conv2d(1, 1, 3))
    scores = score_model(net, formula=both)
    assert list(scores) == ["0", "1", "2"] and "single filter" in scores.unscored["3"]
    first = score_model(net, formula=CHANNELS)["0"] + score_model(net, formula=FILTERS)["0"]
    assert torch.equal(scores["0"], first)
    close(scores["1"], score_model(net, formula=FILTERS)["1"])
    close(scores["2"], score_model(net, formula=CHANNELS)["2"])
    plan = fec_fast.prune(net[:3].eval(), torch.randn(1, 3, 8, 8), ratio=0.5, formula=both, recover=None).plan
    assert Formula.from_dict(plan.formula) == both


def test_layers_by_name_and_class() -> None:
    net = Net()
    assert set(score_model(net, layers=["stem", nn.Linear])) == {"stem", "head"}
    assert score_model(net, layers=["stem"]).unscored["body.0"] == "not asked for"
    assert set(score_model(net, layers=[nn.modules.conv._ConvTransposeNd])) == {"body.2"}


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        (["sten"], fec_fast.LayerError, "'stem'"),
        (["norm"], fec_fast.LayerError, "BatchNorm2d"),
        ([nn.BatchNorm2d], fec_fast.LayerError, "BatchNorm2d"),
        ([nn.Conv3d], fec_fast.LayerError, "not asked for"),
        ([], fec_fast.LayerError, "not asked for"),
        ("stem", fec_fast.ArgumentError, "'stem'"),
        ([3], fec_fast.ArgumentError, "3"),
    ],
)
def test_wrong_layers(layers: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        score_model(Net(), layers=layers)


def test_layer_under_a_second_name() -> None:
    net = Net()
    net.again = net.stem
    assert list(score_model(net)).count("stem") == 1
    with pytest.raises(fec_fast.LayerError, match="same module as 'stem'"):
        score_model(net, layers=["again"])


def test_model_is_only_read() -> None:
    net = Net().train()
    net.head.eval()
    net.stem.weight.grad = torch.ones_like(net.stem.weight)
    parametrised = nn.utils.parametrizations.spectral_norm(net.body[0])
    before = copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    score_model(net, layers=[nn.Conv2d, nn.ConvTranspose2d, nn.Linear])
    assert torch.equal(random_state, torch.get_rng_state())
    assert net.training and not net.head.training and parametrised.training
    assert torch.equal(net.stem.weight.grad, torch.ones_like(net.stem.weight))
    assert net.stem.weight.requires_grad and net.body[2].weight.grad is None
    after = net.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_weights_of_inference_mode_are_read() -> None:
    net = Net()
    with torch.inference_mode():
        inside = copy.deepcopy(net)
    assert inside.stem.weight.is_inference()
    assert score_model(inside) == score_model(net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    net = Net().to(dtype)
    scores = score_model(net, formula=CHANNELS)
    close(scores["stem"], entropy(net.stem.weight, CHANNELS))


def test_memory_layout_does_not_matter() -> None:
    net = Net()
    expected = score_model(net, formula=FILTERS)
    scores = score_model(net.to(memory_format=torch.channels_last), formula=FILTERS)
    for name in expected:
        close(scores[name], expected[name])


def test_wrappers() -> None:
    net = Net()
    expected = score_model(net)
    compiled = torch.compile(net, backend="eager")
    for wrapped in (nn.DataParallel(net), compiled, nn.DataParallel(compiled)):
        assert unwrap(wrapped) is net
        scores = score_model(wrapped)
        assert scores.keys() == expected.keys() and scores.layers == expected.layers
        for name in expected:  # DataParallel moves the model to the GPU where there is one
            close(scores[name], expected[name])


def test_distributed_wrapper(tmp_path: Any) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    net = Net()
    expected = score_model(net)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert score_model(nn.parallel.DistributedDataParallel(net)) == expected
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_on_a_gpu_stays_on_it() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    net = Net()
    expected = score_model(net)
    scores = score_model(net.cuda())
    assert net.stem.weight.is_cuda
    for name in expected:
        assert scores[name].device.type == "cpu"
        close(scores[name], expected[name])


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_non_finite_weight_is_named(value: float, word: str) -> None:
    net = Net()
    with torch.no_grad():
        net.body[0].weight[3, 2, 0, 0] = value
        net.body[0].weight[5, 0, 0, 0] = value
    with pytest.raises(fec_fast.WeightError, match=rf"'body\.0'.* {word} at \[3, 2, 0, 0\].*layers=") as caught:
        score_model(net)
    assert (caught.value.layer, caught.value.index) == ("body.0", (3, 2, 0, 0))
    assert isinstance(caught.value, ValueError)


def test_meta_model() -> None:
    with torch.device("meta"):
        net = Net()
    with pytest.raises(fec_fast.WeightError, match="'stem'.*meta.*to_empty"):
        score_model(net)


def test_lazy_model() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.LazyConv2d(4, 3))
    with pytest.raises(fec_fast.WeightError, match="'1'.*not initialised"):
        score_model(net)


def test_sparse_weight() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].weight = nn.Parameter(net[0].weight.detach().to_sparse())
    with pytest.raises(fec_fast.WeightError, match="'0'.*sparse.*to_dense"):
        score_model(net, layers=[nn.Linear])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fnuz])
def test_unsupported_dtype(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net[0].weight = nn.Parameter(net[0].weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(fec_fast.WeightError, match=f"'0'.*{str(dtype).removeprefix('torch.')}.*float32"):
        score_model(net)


@pytest.mark.filterwarnings("ignore")
def test_quantised_model() -> None:
    quantised = pytest.importorskip("torch.ao.nn.quantized", reason="this torch has no quantised layers")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), quantised.Conv2d(4, 4, 3))
    with pytest.raises(fec_fast.WeightError, match="'1'.*quantised"):
        score_model(net)
    with_linear = nn.Sequential(nn.Conv2d(3, 4, 3), quantised.Linear(4, 4))
    assert set(score_model(with_linear).unscored) == {"1"}
    with pytest.raises(fec_fast.WeightError, match="'1'.*quantised"):
        score_model(with_linear, layers=["1"])


@pytest.mark.filterwarnings("ignore")
def test_empty_weight() -> None:
    with pytest.raises(fec_fast.WeightError, match=r"'0'.*empty, \[0, 3, 3, 3\]"):
        score_model(nn.Sequential(nn.Conv2d(3, 0, 3)))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(), "nothing to score"),
        (nn.Sequential(nn.ReLU()), "nothing to score"),
        (nn.Sequential(nn.Linear(2, 2)), "'0'.*nn.Linear"),
    ],
)
def test_nothing_to_score(net: nn.Module, words: str) -> None:
    with pytest.raises(fec_fast.LayerError, match=words):
        score_model(net)


def test_wrong_arguments() -> None:
    net = Net()
    with pytest.raises(fec_fast.ArgumentError, match="dict.*load the state dict"):
        score_model(dict(net.state_dict()))  # type: ignore[arg-type]
    with pytest.raises(fec_fast.ArgumentError, match="Formula"):
        score_model(net, formula="rms")  # type: ignore[arg-type]
    with pytest.raises(fec_fast.BackendError):
        score_model(net, backend="abacus")
    with pytest.raises(fec_fast.BackendError):
        score_model(net, backend="cuda")


def test_reports_itself() -> None:
    scores = score_model(Net(), formula=CHANNELS)
    assert (scores.backend, scores.formula) == ("cpu", CHANNELS)
    text = str(scores)
    row = next(line for line in text.splitlines() if line.startswith("body.2"))
    assert row.split()[:4] == ["body.2", "ConvTranspose2d", "12x2x2x2", "6"]
    assert [float(cell) for cell in row.split()[4:]] == pytest.approx(
        [float(f(scores["body.2"])) for f in (torch.min, torch.mean, torch.max)], abs=5e-5
    )
    assert "depthwise" in text and "one channel per filter" in text and str(CHANNELS) in text
    assert "3 layers" in repr(scores)


def test_rows() -> None:
    scores = score_model(Net())
    rows = scores.to_rows()
    assert len(rows) == sum(len(values) for values in scores.values())
    assert rows[9] == {"layer": "depthwise", "filter": 1, "entropy": scores["depthwise"][1].item()}


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.lists(st.floats(min_value=0, max_value=2.8, allow_subnormal=True), min_size=1, max_size=5),
        max_size=4,
    )
)
def test_json_round_trip_keeps_every_bit(values: dict[str, list[float]]) -> None:
    entropies = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in values.items()}
    layers = {name: LayerInfo("Conv2d", (len(numbers), 2, 3, 3), 0, 1) for name, numbers in values.items()}
    scores = ModelScores(entropies, layers, {"head": "not asked for"}, Formula(tau=0.1, tau_scale=0.5), "cpu")
    again = ModelScores.from_json(scores.to_json())
    assert again == scores
    assert again.to_rows() == scores.to_rows()


def test_equality() -> None:
    scores = score_model(Net())
    other = ModelScores.from_json(scores.to_json())
    assert other == scores
    other["stem"][0] += 1e-12
    assert other != scores
    assert scores != dict(scores)


def test_damaged_json() -> None:
    text = score_model(Net()).to_json()
    content = json.loads(text)
    damaged = [text[:-9], "[]", "{}", json.dumps({**content, "version": 99}), json.dumps({**content, "layers": 3})]
    damaged.append(json.dumps({**content, "format": "fec_fast.plan"}))
    del content["layers"]["stem"]["shape"]
    damaged.append(json.dumps(content))
    for broken in damaged:
        with pytest.raises(fec_fast.InputError):
            ModelScores.from_json(broken)
