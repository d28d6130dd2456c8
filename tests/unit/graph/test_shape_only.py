"""Runs that compute shapes alone: the shapes are those of a real run, and mistakes stop them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fec_fast
from fec_fast.graph import shape_only
from fec_fast.graph.counts import count
from fec_fast.graph.operator_call import OperatorCall
from fec_fast.graph.recorded_run import can_run
from fec_fast.graph.rules.lookup import rule_of
from fec_fast.graph.rules.registry import DataDependentError
from fec_fast.utils.model_index import ModelIndex
from fec_fast.vision import zoo


class Both(TorchDispatchMode):
    """Evaluates every operator twice, and adds up its multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.macs, self.shape_only = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        short = shape_only.call_shape_only(func, args, kwargs or {})
        one, other = (out[0] if isinstance(out, tuple) else out for out in (result, short))
        assert (one.shape, one.dtype) == (other.shape, other.dtype), func
        tensors = [tensor for tensor in args[:2] if isinstance(tensor, Tensor)]
        layouts = {suggest_memory_format(tensor) for tensor in tensors}
        # For mixed layouts, and where a size of 1 leaves the layout open, versions of torch differ.
        if len(layouts) == 1 and not any(1 in tensor.shape for tensor in [one, *tensors]):
            assert suggest_memory_format(one) == suggest_memory_format(other), func
        rule = rule_of(func)
        if rule.macs is not None:
            self.macs += rule.macs(OperatorCall(func, args, kwargs or {}, result))
        self.shape_only += rule.shape is not None
        return result


@given(data=st.data())
@settings(max_examples=60)
def test_convolutions_have_the_shapes_and_costs_of_real_ones(data: st.DataObject) -> None:
    draw = data.draw
    rank = draw(st.sampled_from([1, 2, 3]))
    groups, into, out = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    options = {
        "stride": [draw(st.integers(2, 3)) for _ in range(rank)],
        "padding": [draw(st.integers(0, 2)) for _ in range(rank)],
        "dilation": [draw(st.integers(1, 2)) for _ in range(rank)],
        "groups": groups,
    }
    sizes = [draw(st.integers(5, 8)) for _ in range(rank)]
    source = torch.randn(draw(st.integers(1, 2)), groups * into, *sizes)
    if rank == 2 and draw(st.booleans()):
        source = source.to(memory_format=torch.channels_last)
    weight = torch.randn(*((groups * into, out) if transposed else (groups * out, into)), *kernel)
    if rank == 2 and draw(st.booleans()):
        weight = weight.to(memory_format=torch.channels_last)
    bias = torch.randn(groups * out) if draw(st.booleans()) else None
    if transposed:
        options["output_padding"] = [draw(st.integers(0, 1)) for _ in range(rank)]
    name = f"conv{'_transpose' if transposed else ''}{rank}d"
    with FlopCounterMode(display=False) as counter, Both() as both:
        getattr(F, name)(source, weight, bias, **options)
    assert both.shape_only == 1
    assert 2 * both.macs == counter.get_total_flops()


def test_products_norms_and_activations() -> None:
    x = torch.randn(4, 6)
    norm = nn.BatchNorm2d(3).eval()
    with FlopCounterMode(display=False) as counter, Both() as both, torch.no_grad():
        F.linear(x, torch.randn(5, 6), torch.randn(5))
        x @ torch.randn(6, 5)
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 5))
        torch.baddbmm(torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5))
        norm(torch.randn(2, 3, 4, 4))
        for activation in (F.relu_, F.hardtanh_, lambda t: F.hardswish(t, True), lambda t: F.silu(t, True)):
            activation(torch.randn(3))
    assert both.shape_only == 9
    assert 2 * both.macs == counter.get_total_flops()


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: F.conv2d(x, torch.randn(4, 2, 1, 1)),
        lambda x: F.conv2d(x, torch.randn(4, 3, 1, 1), torch.randn(3)),
        lambda x: F.conv2d(x, torch.randn(4, 1, 1, 1), groups=3),
        lambda x: F.batch_norm(x, torch.zeros(2), torch.ones(2)),
        lambda x: F.linear(x, torch.randn(5, 3), torch.randn(5)),
        lambda x: F.linear(x, torch.randn(5, 4), torch.randn(3)),
        lambda x: x.reshape(2, 3, 16) @ torch.randn(2, 5, 5),
    ],
)
def test_a_mistake_stops_a_shape_only_run(mistake) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mistake(x)

    assert not can_run(ModelIndex.of(Net()), torch.randn(2, 3, 4, 4))


class ReadsValues(nn.Module):
    """Calls one layer or another, by a value that it computes; with zeros for values it would call the wrong one."""

    def __init__(self, read) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.usual, self.rare = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 2)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.usual(x) if self.read(x.abs().sum()) > 0 else self.rare(x)
        return self.last(x.mean((2, 3)))


READING = [float, Tensor.item, Tensor.tolist, Tensor.numpy, np.asarray, np.from_dlpack]


@pytest.mark.parametrize("read", READING)
def test_a_model_that_reads_values_is_traced_with_values(read) -> None:
    torch.manual_seed(0)
    found = fec_fast.couplings(ReadsValues(read).eval(), torch.randn(2, 3, 4, 4))
    assert [one.name for one in found.sets] == ["first", "usual"]
    reason = "the example inputs do not reach it: give example inputs that do"
    assert [(kept.layer, kept.reason) for kept in found.pinned][-1] == ("rare", reason)


@pytest.mark.parametrize("read", READING)
def test_a_trial_run_computes_values_where_the_model_reads_them(read) -> None:
    model, image = ReadsValues(read).eval(), torch.randn(2, 3, 4, 4)
    assert can_run(ModelIndex.of(model), image)
    model.usual = nn.Conv2d(7, 8, 1)
    assert not can_run(ModelIndex.of(model), image)


@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg16_cifar"])
def test_the_counts_of_the_pruned_network_are_those_of_running_it(name: str) -> None:
    torch.manual_seed(0)
    model, image = getattr(zoo, name)().eval(), torch.randn(2, 3, 32, 32)
    result = fec_fast.prune(model, image, ratio=0.4, criterion="l1", verify=False, recover=None)
    assert result.after == count(result.model, image)
    for counts, network in ((result.before, model), (result.after, result.model)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image)
        assert 2 * counts.macs == counter.get_total_flops()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnext50_32x4d", "shufflenet_v2_x0_5", "vit_b_32"])
def test_the_same_on_groups_and_attention(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model, image = models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)
    result = fec_fast.prune(model, image, ratio=0.5, criterion="l1", verify=False, recover=None)
    assert result.after == count(result.model, image)
    assert result.after.macs < result.before.macs


@pytest.mark.parametrize(
    ("function", "needs"),
    [
        (lambda x: x.sum().item(), True),
        (lambda x: x.nonzero(), True),
        (lambda x: x[x > 0], True),
        (lambda x: x[torch.ones(3, dtype=torch.bool)], True),
        (lambda x: x.unique(), True),
        (lambda x: x[torch.tensor([2, 0])], False),
        (lambda x: x.sort(dim=1)[0].softmax(0).cumsum(1), False),
        (lambda x: x.topk(2)[0], False),
    ],
)
def test_operators_that_need_values(function, needs: bool) -> None:
    class ShapeOnly(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return shape_only.call_shape_only(func, args, kwargs or {})

    x = torch.randn(3, 4)
    if needs:
        with pytest.raises(DataDependentError), ShapeOnly():
            function(x)
    else:
        with ShapeOnly():
            found = function(x)
        assert torch.equal(found, function(x))


class Run(TorchDispatchMode):
    """A run for the shapes alone."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.evaluate = shape_only.ShapeOnlyRun(inputs)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.evaluate(func, args, kwargs or {})


def written_slice(x: Tensor) -> Tensor:
    whole = torch.zeros(2, 3, 4)
    whole[1] = x
    return whole


def written_before_the_view_is_read(x: Tensor) -> Tensor:
    whole = torch.zeros(3, 4)
    view = whole[1:]
    whole.copy_(x)
    return view


def written_in_a_list(x: Tensor) -> Tensor:
    whole = torch.zeros(3, 4)
    torch._foreach_add_([whole], [x])
    return whole


@pytest.mark.parametrize(
    ("function", "depends"),
    [
        (lambda x: torch.ones(4) @ torch.ones(4, 4), False),
        (lambda x: torch.ones(len(x)).cumsum(0), False),
        (lambda x: torch.ones(3, 4), False),
        (lambda x: x + 1, True),
        (lambda x: torch.ones(4) @ x.mT, True),
        (written_slice, True),
        (written_before_the_view_is_read, True),
        (written_in_a_list, True),
    ],
)
def test_values_of_what_depends_on_the_inputs_are_not_read(function, depends: bool) -> None:
    x = torch.randn(3, 4)
    with Run(x):
        found = function(x)
        if depends:
            with pytest.raises(DataDependentError):
                found.sum().item()
        else:
            assert found.sum().item() == function(x).sum().item()
    if not depends:
        assert torch.equal(found, function(x))


def test_memory_that_is_used_again_is_not_taken_for_the_inputs() -> None:
    """A storage of the run that was released, and a constant that gets its address."""
    x = torch.randn(3, 4)
    with Run(x):
        for _ in range(100):
            _ = x.softmax(0)
            assert (torch.tensor([[1.0, 2.0]]) @ torch.tensor([[1.0], [2.0]])).item() == 5
