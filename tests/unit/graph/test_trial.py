"""Trial runs of pruned networks: cuts that do not follow the plan, and the attributes that make them follow."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.graph import planned_run, trial
from fec_fast.pruning.context import PruningContext
from helpers.divided import divided_network

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Divided(nn.Module):
    """A layer of 32 channels that a function divides; attributes hold numbers."""

    def __init__(self, divide: Any, **attributes: Any) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(16, 3, 1)
        self.divide = divide
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.divide(self, self.conv(torch.relu(self.stem(x)))))


def product(model: Any, x: Tensor, size: Any) -> Tensor:
    left, right = x.split(size, 1)
    return left * right


def pruned(divide: Any, **attributes: Any) -> fec_fast.PruneResult:
    torch.manual_seed(0)
    return fec_fast.prune(Divided(divide, **attributes).eval(), IMAGE, ratio=0.5, recover=None)


@pytest.mark.parametrize(
    ("attributes", "size", "changed"),
    [
        ({"c": 16}, lambda m: m.c, {"c": 8}),
        ({"c": 16, "heads": 16, "other": [16, 16]}, lambda m: m.c, {"c": 8}),  # only what the cut reads
        ({"sizes": (16, 16)}, lambda m: m.sizes, {"sizes": (8, 8)}),
        ({"dim": 32}, lambda m: m.dim // 2, {"dim": 16}),
        ({"dim": 32, "c": 16}, lambda m: [m.c, m.dim - m.c], {"dim": 16, "c": 8}),
    ],
)
def test_the_attributes_that_a_cut_depends_on_change(attributes: Any, size: Any, changed: Any) -> None:
    result = pruned(lambda model, x: product(model, x, size(model)), **attributes)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.conv.out_channels == 16
    assert {name: getattr(result.model, name) for name in attributes} == {**attributes, **changed}
    assert {name: type(value) for name, value in changed.items()} == {n: type(attributes[n]) for n in changed}


@pytest.mark.parametrize(
    ("attributes", "divide"),
    [
        ({"c": 16}, lambda m, x: product(m, x, m.c) * m.c),
        ({"c": 16}, lambda m, x: product(m, x, m.c) / m.c**0.5),
        ({"c": 16}, lambda m, x: product(m, x, m.c) + torch.ones(m.c).sum()),
        ({"c": 16}, lambda m, x: product(m, x, m.c) if m.c == 16 else 2 * product(m, x, m.c)),
        ({"c": 16}, lambda m, x: product(m, x, m.c).roll(m.c, 2)),
        ({"c": 16}, lambda m, x: nn.functional.pad(product(m, x, m.c), (m.c, 0))[..., m.c :]),
        ({"c": True}, lambda m, x: product(m, x, 16 * m.c)),
        ({"c": 16.0}, lambda m, x: product(m, x, int(m.c))),
        ({"c": {"c": 16}}, lambda m, x: product(m, x, m.c["c"])),
        ({"c": torch.Size([16])}, lambda m, x: product(m, x, m.c[0])),
    ],
)
def test_attributes_of_another_use_or_kind_keep_the_channels(attributes: Any, divide: Any) -> None:
    result = pruned(divide, **attributes)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.conv.out_channels == 32 and result.model.stem.out_channels == 4
    assert "fixed positions of the model's code, [16, 16]" in result.plan.pinned["conv"] and not result.plan.sizes
    assert all(getattr(result.model, name) == value for name, value in attributes.items())


def test_a_cut_of_training_mode_is_tried_in_training_mode() -> None:
    result = pruned(lambda m, x: product(m, x, 16 if m.training else x.shape[1] // 2))
    assert result.model.conv.out_channels == 32 and "fixed positions" in result.plan.pinned["conv"]
    result = pruned(lambda m, x: product(m, x, m.c if m.training else x.shape[1] // 2), c=16)
    assert result.model.conv.out_channels == 16 and result.model.c == 8
    result.model.train()(IMAGE).sum().backward()


def test_code_that_goes_another_way_when_it_is_narrower_keeps_the_channels() -> None:
    result = pruned(lambda m, x: x.chunk(2, 1)[int(x.shape[1] != 32)])
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.conv.out_channels == 32
    assert "differs from the masked original" in result.plan.pinned["conv"]


def test_a_literal_is_kept_beside_an_attribute() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Divided(lambda m, x: product(m, x, m.c), c=16), None
            self.first.head = nn.Conv2d(16, 3, 1)
            self.second = Divided(lambda m, x: product(m, x, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    result = fec_fast.prune(Two().eval(), IMAGE, ratio=0.5, recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert (result.model.first.conv.out_channels, result.model.second.conv.out_channels) == (16, 32)
    assert list(result.plan.sizes) == ["first"] and "in second" in result.plan.pinned["second.conv"]


def test_one_run_finds_every_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks there are, the pruned network is planned twice."""
    found: list[Any] = []
    try_out = trial.try_out
    monkeypatch.setattr("fec_fast.pruning.context.try_out", lambda *a, **k: found.append(try_out(*a, **k)) or found[-1])
    torch.manual_seed(0)
    for name in ("C2f by split", "Res2Net by slices", "DPN"):
        blocks = [divided_network(name).block for _ in range(3)]
        joints = [nn.Conv2d(36, 16, 1) if name == "DPN" else nn.Identity() for _ in blocks]
        rows = [layer for pair in zip(blocks, joints, strict=True) for layer in pair]
        model = nn.Sequential(nn.Conv2d(3, 16, 1), *rows, nn.Conv2d(16, 3, 1)).eval()
        found.clear()
        result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
        assert len(result.plan.sizes) == 3 and len(found) == 2 and found[1] is None


def test_a_planned_run_of_a_split_needs_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(func: Any, args: Any, kwargs: Any) -> Any:
        raise AssertionError(f"{func} was called as it is")

    monkeypatch.setattr(planned_run, "call_with_values", refuse)
    result = fec_fast.prune(divided_network("C2f by split"), IMAGE, ratio=0.5, verify=False, recover=None)
    assert result.model.block.c == 6


def test_a_planned_run_leaves_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    model = divided_network("C2f by split")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert model.block.c == 12 and result.model.block.c == 6
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "divide",
    [
        lambda m, x: x.permute(0, 2, 3, 1).reshape(2, 8, 8, 2, m.c).sum(3).permute(0, 3, 1, 2),
        lambda m, x: x.reshape(2, 2, m.c, 8, 8).sum(1),
        lambda m, x: x.unflatten(1, (2, m.c)).sum(1),
        lambda m, x: x.narrow(1, 0, m.c) + 2 * x.narrow(1, m.c, m.c),
        lambda m, x: x[:, : m.c] + 2 * x[:, m.c :],
        lambda m, x: x[:2, m.c :, :, :8] + 2 * x[..., : m.c, :, :],
        lambda m, x: x[:, -m.c :] + 2 * x[:, : -m.c],
    ],
)
def test_functions_that_refuse_a_number_or_do_nothing_with_it_are_seen_too(divide: Any) -> None:
    result = pruned(divide, c=16)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.conv.out_channels == 16 and result.model.c == 8


def test_sizes_change_in_every_round() -> None:
    torch.manual_seed(0)
    model = divided_network("C2f by split")
    result = fec_fast.prune_iteratively(
        model, IMAGE, budget=fec_fast.Budget(params=0.7), train=lambda *_: None, rounds=2, criterion="l1", recover=None
    )
    ((module, sizes),) = result.plan.sizes.items()
    assert module == "block" and sizes["c"]["before"] == 12 > sizes["c"]["after"] == result.model.block.c
    again = divided_network("C2f by split")
    again.load_state_dict(model.state_dict())
    fec_fast.apply_plan(again, result.plan)
    with torch.no_grad():
        assert torch.equal(again(IMAGE), result.model(IMAGE))


class ByWidth(nn.Module):
    """Another branch for few channels: nothing fails in it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x).relu())
        if x.shape[1] > 16:
            x = x.sigmoid()
        return self.head(x)


@pytest.mark.parametrize("verify", [True, False])
def test_channels_whose_number_decides_a_branch_are_kept(verify: bool) -> None:
    result = fec_fast.prune(ByWidth().eval(), IMAGE, ratio=0.5, verify=verify, recover=None)
    assert (result.model.stem.out_channels, result.model.conv.out_channels) == (4, 32)
    assert re.search(r"goes another way with fewer channels at .*test_trial\.py:\d+\)", result.plan.pinned["conv"])


def test_a_copy_that_one_channel_makes_needless_is_no_other_way() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 2, 1), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).flatten(2).transpose(1, 2).contiguous())

    assert fec_fast.prune(Transposed().eval(), IMAGE, ratio=0.5, recover=None).model.conv.out_channels == 1


class Deciding(nn.Module):
    """Reads a value that removed channels decide, and goes another way for another value."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        self.conv, self.head, self.width = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), width
        with torch.no_grad():
            self.conv.weight[:4] *= 0.01  # removed by their L1 norm
            self.conv.bias[:4] = 1.0
            self.conv.bias[4:] = 0.5
            self.head.weight[:, :4], self.head.weight[:, 4:] = -9.0, 0.1

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        x = self.head(features)
        if float(x.mean()) < 0:
            return x
        if features.shape[1] != self.width:
            return x - x.amax(1, keepdim=True)
        return x.sigmoid()


def test_code_that_reads_values_may_go_another_way() -> None:
    torch.manual_seed(0)
    model = Deciding().eval()
    result = fec_fast.prune(model, IMAGE, ratio=0.5, criterion="l1", sides="producer", recover=None)
    assert result.difference is not None and result.difference < 1e-9
    assert result.model.conv.out_channels == 4
    with torch.no_grad():
        assert float(model(IMAGE).mean()) < 0 and float(result.model(IMAGE).amax()) == 0


def test_a_width_that_decides_behind_a_value_keeps_the_channels_or_is_refused() -> None:
    torch.manual_seed(0)
    model = Deciding(width=4).eval()  # at this width it does what the masked original does not do
    try:
        result = fec_fast.prune(model, IMAGE, ratio=0.5, criterion="l1", sides="producer", recover=None)
    except fec_fast.EquivalenceError:
        return
    assert result.model.conv.out_channels == 8


class ReadsAtItsWidth(nn.Module):
    """Reads a value at the width that it was written for, and goes another way without values at any other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        if features.shape[1] == 8:
            return self.head(features) * (1 + float(x.sum() != 0))
        return self.head(features).sigmoid()


@pytest.mark.parametrize("verify", [True, False])
def test_a_width_that_decides_whether_values_are_read_is_kept(verify: bool) -> None:
    torch.manual_seed(0)
    result = fec_fast.prune(ReadsAtItsWidth().eval(), IMAGE, ratio=0.5, verify=verify, recover=None)
    assert result.model.conv.out_channels == 8
    assert any("goes another way" in note for note in result.plan.notes)


class ReadsInEvaluation(nn.Module):
    """Divides channels at an attribute, and reads a value in evaluation mode, as YOLO's heads do."""

    def __init__(self, ended: list[bool]) -> None:
        super().__init__()
        self.conv, self.head, self.c = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 3, 1), 16
        self.forward = partial(_read_in_evaluation, self, ended)  # runs put attributes of the module back


def _read_in_evaluation(model: Any, ended: list[bool], x: Tensor) -> Tensor:
    ended.append(False)
    x = model.head(product(model, model.conv(x), model.c))
    x = x if model.training else x * float(x.abs().amax() > 0)
    ended[-1] = True
    return x


def test_runs_for_the_shapes_are_not_tried_again_where_the_code_reads_values() -> None:
    ended: list[bool] = []
    torch.manual_seed(0)
    result = fec_fast.prune(ReadsInEvaluation(ended).eval(), IMAGE, ratio=0.5, verify=False, recover=None)
    assert result.model.conv.out_channels == 16 and result.model.c == 8
    assert len(ended) > 3 and ended.count(False) == 1, "the first of the trace alone"


class Checked(nn.Module):
    """A block that may ask for the width that it was written for."""

    def __init__(self, checks: bool) -> None:
        super().__init__()
        self.checks = checks
        self.wide, self.narrow = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x).relu()
        if self.checks:
            assert y.flatten(2).shape[1] == 8
        return x + self.narrow(y)


def test_alike_blocks_are_kept_in_one_turn_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []
    with_finding = PruningContext.with_finding
    monkeypatch.setattr(
        PruningContext, "with_finding", lambda self, found: turns.append(found) or with_finding(self, found)
    )
    checks = [True, False, True, True, False, True]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *map(Checked, checks), nn.Conv2d(4, 2, 1)).eval()
    result = fec_fast.prune(model, IMAGE, ratio=0.5, criterion="l1", recover=None)
    assert [result.model[1 + block].wide.out_channels for block in range(6)] == [8 if check else 4 for check in checks]
    assert len(turns) == 1 and result.difference is not None and result.difference < 1e-6
    assert sum("asks for" in note or "wants the width" in note for note in result.plan.notes) == 1


class Windowed(nn.Module):
    """Attention that divides the width by the number of heads, as torchvision's Swin does."""

    def __init__(self, heads: int = 4, extra: bool = False) -> None:
        super().__init__()
        self.heads, self.extra = heads, extra
        self.norm, self.qkv, self.proj = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        q, k, v = (
            self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        )
        q = q * (width // self.heads) ** -0.5
        if self.extra:
            v = v * self.heads
        return x + self.proj((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).reshape(*x.shape[:2], width))


@pytest.mark.parametrize("extra", [False, True])
def test_a_number_that_a_held_size_restores(extra: bool) -> None:
    """The scale stays where heads and width shrink together; a factor that follows the heads alone keeps them."""
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.Flatten(2), Transposed(), Windowed(extra=extra), Windowed())
    model = nn.Sequential(*blocks, nn.LayerNorm(32), nn.Linear(32, 5)).eval()
    result = fec_fast.prune(model, torch.randn(2, 3, 16, 16), ratio=0.5, norms="renormalise", recover=None)
    assert result.difference is not None and result.difference < 1e-9
    heads = [block.heads for block in result.model if isinstance(block, Windowed)]
    assert heads == ([4, 4] if extra else [2, 2])
    assert result.model[0].out_channels == (32 if extra else 16)


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class KeepsByIdentity(nn.Module):
    """Computes a ramp in the first run of each object, and keeps it outside."""

    kept: ClassVar[dict[int, Tensor]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if id(self) not in self.kept:
            self.kept[id(self)] = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
        return self.second(torch.cat([self.first(x), self.kept[id(self)].expand(len(x), -1, -1, -1)], 1))


@pytest.mark.parametrize("warm", [False, True])
def test_a_first_run_may_compute_what_later_runs_do_not(warm: bool) -> None:
    KeepsByIdentity.kept.clear()
    model = KeepsByIdentity().eval()
    if warm:
        model(IMAGE)
    result = fec_fast.prune(model, IMAGE, ratio=0.5, recover=None)
    assert result.model.first.out_channels == 4 and result.proof is not None
