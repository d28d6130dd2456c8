"""Wrong values by kind of parameter: each is to be refused with a documented error, or does what it says."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

NAN, INF = float("nan"), float("inf")
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Thing:
    """An object that is nothing a function expects."""


class Network(nn.Module):
    """Two convolutions, a batch norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.norm(self.one(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().eval()


def with_weight(value: Any) -> Network:
    model = network()
    with torch.no_grad():
        model.one.weight[1, 0, 0, 0] = value
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Network().eval()


def fake() -> nn.Module:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return Network().eval()


def quantised() -> nn.Module:
    model = network()
    model.head = torch.ao.nn.quantized.Linear(6, 4)
    return model


class Raising(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.one, self.error = nn.Conv2d(3, 8, 3), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error("broken")


class StrangeOutput(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.one, self.output = nn.Conv2d(3, 8, 3), output

    def forward(self, x: Tensor) -> Any:
        self.one(x)
        return self.output


def unshaped_state() -> nn.Module:
    """A network whose state dict refuses."""
    model = network()
    model.register_parameter("none", None)
    model.odd = nn.UninitializedParameter()
    return model


Make = Callable[[], Any]

# Never a model that can be worked on.
NO_MODELS: dict[str, Make] = {
    "None": lambda: None,
    "number": lambda: 3,
    "text": lambda: "resnet50",
    "class": lambda: Network,
    "function": lambda: lambda x: x,
    "state": lambda: network().state_dict(),
    "tensor": lambda: IMAGE,
    "list": lambda: [network()],
    "scripted": lambda: torch.jit.script(network()),
    "traced": lambda: torch.jit.trace(network(), IMAGE),
    "exported": lambda: torch.export.export(network(), (IMAGE,)),
}
# Models without values, or with values that mean nothing.
UNFIT_MODELS: dict[str, Make] = {
    "meta": on_meta,
    "fake": fake,
    "quantised": quantised,
    "NaN": lambda: with_weight(NAN),
    "infinite": lambda: with_weight(INF),
    "empty": lambda: nn.Sequential(),
    "no parameters": lambda: nn.Sequential(nn.ReLU()),
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(8, 3)),
    "uninitialised": unshaped_state,
    "exported module": lambda: torch.export.export(network(), (IMAGE,)).module(),
    "complex": lambda: network().to(torch.complex64),
}
BROKEN_MODELS: dict[str, Make] = {
    "raises TypeError": lambda: Raising(TypeError),
    "raises KeyError": lambda: Raising(KeyError),
    "raises RecursionError": lambda: Raising(RecursionError),
    "raises StopIteration": lambda: Raising(StopIteration),
    "gives None": lambda: StrangeOutput(None),
    "gives text": lambda: StrangeOutput("cat"),
    "gives an object": lambda: StrangeOutput(Thing()),
}
NO_NUMBERS: dict[str, Make] = {
    "text": lambda: "0.5",
    "word": lambda: "half",
    "bytes": lambda: b"1",
    "NaN": lambda: NAN,
    "inf": lambda: INF,
    "-inf": lambda: -INF,
    "negative": lambda: -1,
    "bool": lambda: True,
    "list": lambda: [0.5],
    "dict": lambda: {"a": 1},
    "complex": lambda: 0.5 + 0j,
    "huge": lambda: 10**400,
    "-huge": lambda: -(10**400),
    "vector": lambda: torch.tensor([0.5, 0.5]),
    "array": lambda: np.array([1, 2]),
    "object": Thing,
    "type": lambda: int,
    "date": lambda: datetime.date(2026, 1, 1),
    "numpy NaN": lambda: np.float64(NAN),
    "tensor NaN": lambda: torch.tensor(NAN),
}
# Numbers of other types: they are taken as what they are, or refused.
ODD_NUMBERS: dict[str, Make] = {
    "Decimal": lambda: Decimal("0.5"),
    "Fraction": lambda: Fraction(1, 2),
    "numpy float32": lambda: np.float32(0.5),
    "numpy float64": lambda: np.float64(0.5),
    "numpy int64": lambda: np.int64(1),
    "numpy bool": lambda: np.bool_(True),
    "tensor": lambda: torch.tensor(0.5),
    "integer tensor": lambda: torch.tensor(1),
}
NO_NAMES: dict[str, Make] = {
    "number": lambda: 3,
    "float": lambda: 0.5,
    "bytes": lambda: b"one",
    "empty": lambda: "",
    "unknown": lambda: "no_such",
    "long": lambda: "x" * 100_000,
    "surrogate": lambda: "\ud800",
    "list": lambda: ["one"],
    "dict": lambda: {},
    "tensor": lambda: IMAGE,
    "object": Thing,
    "type": lambda: str,
    "bool": lambda: True,
}
NO_PATHS: dict[str, Make] = {
    "number": lambda: 3,
    "float": lambda: 0.5,
    "bool": lambda: True,
    "list": lambda: ["a"],
    "object": Thing,
    "NUL": lambda: "a\0b",
    "long": lambda: "x" * 5000,
    "bytes": lambda: b"folder",
    "tensor": lambda: IMAGE,
    "surrogate": lambda: "\ud800",
}
NO_INPUTS: dict[str, Make] = {
    "None": lambda: None,
    "text": lambda: "x",
    "number": lambda: 3,
    "no tuple": tuple,
    "no list": list,
    "no dict": dict,
    "object": Thing,
    "array": lambda: IMAGE.numpy(),
    "wrong channels": lambda: torch.zeros(1, 5, 8, 8),
    "two dimensions": lambda: torch.zeros(3, 8),
    "scalar": lambda: torch.zeros(()),
    "integers": lambda: torch.zeros(1, 3, 8, 8, dtype=torch.int64),
    "empty image": lambda: torch.zeros(1, 3, 0, 0),
    "sparse": lambda: IMAGE.to_sparse(),
    "meta": lambda: IMAGE.to("meta"),
    "two": lambda: (IMAGE, IMAGE),
    "unknown keyword": lambda: {"image": IMAGE},
    "number keyword": lambda: {3: IMAGE},
    "shape": lambda: (1, 3, 8, 8),
    "float64": lambda: IMAGE.double(),
}


class Images(Dataset[Any]):
    def __init__(self, error: type[BaseException] | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.error is not None:
            raise self.error("broken image")
        return IMAGE[0], index % 4


class RaisingLoader:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        raise self.error("broken loader")


class LyingLoader:
    """Announces more batches than it yields."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def loader() -> list[Any]:
    return [(IMAGE, torch.tensor([0, 1])), (IMAGE, torch.tensor([2, 3]))]


NO_LOADERS: dict[str, Make] = {
    "number": lambda: 3,
    "text": lambda: "images",
    "object": Thing,
    "tensor": lambda: torch.tensor(0.5),
    "type": lambda: list,
    "empty": list,
    "empty generator": lambda: iter(()),
    "empty loader": lambda: DataLoader([]),
    "lying": LyingLoader,
    "None in it": lambda: [None],
    "numbers in it": lambda: [1, 2],
    "text in it": lambda: ["ab"],
    "objects in it": lambda: [Thing()],
    "empty tuples in it": lambda: [()],
    "empty batch": lambda: [(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))],
    "wrong channels": lambda: [(torch.zeros(2, 5, 8, 8), torch.tensor([0, 1]))],
    "arrays": lambda: [(IMAGE.numpy(), np.array([0, 1]))],
    "raises RuntimeError": lambda: RaisingLoader(RuntimeError),
    "raises TypeError": lambda: RaisingLoader(TypeError),
    "raises KeyError": lambda: RaisingLoader(KeyError),
    "raises RecursionError": lambda: RaisingLoader(RecursionError),
    "raises StopIteration": lambda: RaisingLoader(StopIteration),
    "raises OSError": lambda: RaisingLoader(OSError),
    "raises MemoryError": lambda: RaisingLoader(MemoryError),
    "image raises": lambda: DataLoader(Images(ValueError), 2),
    "image raises IndexError": lambda: DataLoader(Images(IndexError), 2),
}
NO_LABELS: dict[str, Make] = {
    "no labels": lambda: [IMAGE],
    "one label": lambda: [(IMAGE, torch.tensor([0]))],
    "float labels": lambda: [(IMAGE, torch.tensor([0.0, 1.0]))],
    "labels beyond": lambda: [(IMAGE, torch.tensor([0, 9]))],
    "negative labels": lambda: [(IMAGE, torch.tensor([0, -7]))],
    "text labels": lambda: [(IMAGE, ["cat", "dog"])],
    "no label": lambda: [(IMAGE, None)],
    "number label": lambda: [(IMAGE, 1)],
    "two columns": lambda: [(IMAGE, torch.zeros(2, 2, dtype=torch.int64))],
}


def of_other_network() -> Any:
    import fec_fast

    torch.manual_seed(0)
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    return fec_fast.prune(other, IMAGE, ratio=0.5, recover=None).plan


def plan_class() -> Any:
    import fec_fast

    return fec_fast.Plan


NO_PLANS: dict[str, Make] = {
    "None": lambda: None,
    "number": lambda: 3,
    "text": lambda: "plan.json",
    "path": lambda: Path("plan.json"),
    "dict": dict,
    "list": list,
    "object": Thing,
    "type": plan_class,
    "other": of_other_network,
}
