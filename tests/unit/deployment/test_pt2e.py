"""export_pt2e: a program of torch.export in int8, read again before it appears."""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch import nn

import fec_fast
from fec_fast.deployment import pt2e
from fec_fast.utils import errors
from helpers.everything import of_model

IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_int8_is_near_the_float_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    dense = fec_fast.zoo.build("zoo:resnet-digits")
    dense(IMAGES)
    model = fec_fast.prune(dense.eval(), IMAGES[:1], ratio=0.5, recover=None).model
    before = of_model(model)
    done = fec_fast.export_pt2e(model, tmp_path / "a.pt2", IMAGES)
    assert of_model(model) == before and os.listdir(tmp_path) == ["a.pt2"]
    assert done.bytes == done.file.stat().st_size and done.agreement.images == 40 and done.int8_layers == 10
    with torch.no_grad():
        expected, found = model(IMAGES), torch.export.load(done.file).module()(IMAGES)
    error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    assert 0 < error < 0.1 and done.agreement.error == pytest.approx(error, rel=1e-3)
    with zipfile.ZipFile(done.file) as archive:  # int8 weights alone, neither images nor paths of this machine
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert os.path.dirname(torch.__file__).encode() not in content
    assert IMAGES[0].numpy().tobytes()[:64] not in content
    assert sum(tensor.numel() for tensor in model.parameters()) * 4 > done.bytes
    monkeypatch.setattr(pt2e.np, "array_equal", lambda *_: False)
    with pytest.raises(fec_fast.FecError, match="computes something else after it was read"):
        fec_fast.export_pt2e(model, tmp_path / "b.pt2", IMAGES)
    assert os.listdir(tmp_path) == ["a.pt2"]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="torchao's int8 kernels are those of x86")
def test_the_file_runs_in_int8_as_its_message_says(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)]
    done = fec_fast.export_pt2e(nn.Sequential(*layers).eval(), tmp_path / "a.pt2", IMAGES)
    imported, call = re.findall(r"=1, after `import (\S+)`, under torch.no_grad\(\), by (.*)", str(done))[0]
    importlib.import_module(imported)
    program = torch.export.load(done.file).module()
    network = eval(call, {"torch": torch, "file": done.file})  # the words that the user reads
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):  # as the environment variable sets it
        for count in (40, 1, 7):
            found, expected = network(IMAGES[:count]), program(IMAGES[:count])
            assert float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < 0.02
        with torch.profiler.profile() as profile:
            network(IMAGES)
    operators = {event.key: event.count for event in profile.key_averages()}
    assert sum(count for name, count in operators.items() if name.startswith("onednn::qconv")) == 2
    assert sum(count for name, count in operators.items() if name.startswith("onednn::qlinear")) == 1
    assert not [name for name in operators if "conv2d" in name and not name.startswith("onednn::q")]


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization.pt2e.quantize_pt2e", None)
    with pytest.raises(
        fec_fast.MissingExtraError, match=r"export_pt2e needs torchao: pip install 'fec_fast\[torchao\]'"
    ):
        fec_fast.export_pt2e(fec_fast.zoo.build("zoo:resnet-digits"), tmp_path / "a.pt2", IMAGES)


def test_a_torchao_that_does_not_fit_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "elsewhere" / "torchao"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import torch\ntorch.utils.no_such_function()\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(errors, "is_installed", lambda _: True)  # as where pip puts it
    model = fec_fast.zoo.build("zoo:resnet-digits").eval()
    with pytest.raises(
        fec_fast.MissingExtraError, match="cannot be imported with torch .*no_such_function.*--upgrade torchao"
    ):
        fec_fast.export_pt2e(model, tmp_path / "a.pt2", IMAGES)
    assert not (tmp_path / "a.pt2").exists()
