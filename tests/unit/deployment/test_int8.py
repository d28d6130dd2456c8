"""export_int8: a file in int8 that onnxruntime runs, near to the float network, or no file at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fec_fast
from fec_fast.deployment import int8
from fec_fast.utils import onnx_files
from helpers.everything import of_model
from helpers.optional import skip_without

onnx = skip_without("onnxscript", "onnx")
onnxruntime = skip_without("onnxruntime")
pytestmark = pytest.mark.slow
IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pruned() -> nn.Module:
    torch.manual_seed(0)
    model = fec_fast.zoo.build("zoo:resnet-digits")
    for _ in range(3):
        model(IMAGES)  # running statistics of these images
    return fec_fast.prune(model.eval(), IMAGES[:1], ratio=0.5, recover=None).model


def outputs(file: Path, images: Tensor) -> Any:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def test_int8_is_near_the_float_network_and_smaller(pruned: nn.Module, tmp_path: Path) -> None:
    before = of_model(pruned.train())
    done = fec_fast.export_int8(pruned, tmp_path / "a.onnx", IMAGES, images=48)
    assert of_model(pruned) == before
    pruned.eval()
    assert os.listdir(tmp_path) == ["a.onnx"] and done.file.stat().st_size == done.bytes < 0.4 * done.float_bytes
    assert done.agreement.images == 48 and done.difference < 1e-4 and not done.float_layers
    layers = {name for name, module in pruned.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert set(done.int8_layers) == layers
    with torch.no_grad():
        expected = pruned(IMAGES).numpy()
    found = outputs(done.file, IMAGES)  # another number of images than the example had
    assert 0 < np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) < 0.1
    same = (found[:48].argmax(1) == expected[:48].argmax(1)).mean()
    assert done.agreement.same == pytest.approx(same) and same > 0.9
    weights = {tensor.name: tensor for tensor in onnx.load(done.file).graph.initializer}
    scales = {
        tuple(tensor.dims) for name, tensor in weights.items() if name.startswith("conv1.weight") and "scale" in name
    }
    assert scales == {(pruned.conv1.out_channels,)}  # one per channel


def test_layers_stay_in_float32(pruned: nn.Module, tmp_path: Path) -> None:
    done = fec_fast.export_int8(pruned, tmp_path / "a.onnx", IMAGES, method="percentile", float_layers=["layer1", "fc"])
    assert set(done.float_layers) == {"layer1.0.conv1", "layer1.0.conv2", "fc"}
    assert "conv1" in done.int8_layers and not set(done.float_layers) & set(done.int8_layers)
    kept = {tensor.name: tensor.data_type for tensor in onnx.load(done.file).graph.initializer}
    assert kept["fc.weight"] == onnx.TensorProto.FLOAT


def test_nothing_is_left_where_it_fails(pruned: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"the old file")
    with monkeypatch.context() as patch, pytest.raises(fec_fast.LayerError, match="no layer 'fcc'; nearest: 'fc'"):
        patch.setattr(int8, "write_onnx", None)  # it is refused before the long part
        fec_fast.export_int8(pruned, file, IMAGES, float_layers=["fcc"])
    with pytest.raises(fec_fast.LayerError, match="no layer 'bn1'; nearest: "):
        fec_fast.export_int8(pruned, file, IMAGES, float_layers=["bn1"])
    monkeypatch.setattr(onnx_files, "PARITY", -1.0)
    with pytest.raises(fec_fast.FecError, match="export_int8: onnxruntime computes other outputs than torch"):
        fec_fast.export_int8(pruned, file, IMAGES)
    monkeypatch.undo()
    with pytest.raises(fec_fast.WeightError, match="conv1.weight is torch.float16; .* call model.float"):
        fec_fast.export_int8(fec_fast.zoo.build("zoo:resnet-digits").half(), file, IMAGES)
    with pytest.raises(fec_fast.ArgumentError, match="method='entropy': give one of minmax, percentile"):
        fec_fast.export_int8(pruned, file, IMAGES, method="entropy")

    def broken(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(int8, "agreement_of", broken)
    with pytest.raises(OSError, match="No space left"):
        fec_fast.export_int8(pruned, file, IMAGES)
    assert os.listdir(tmp_path) == ["a.onnx"] and file.read_bytes() == b"the old file"


class Spread(nn.Module):
    """Numbers of which one is so large that 8 bits leave nothing of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        big = self.conv(x) * 1e6
        return torch.cat([big[:, :1], big[:, 1:] * 1e-9], 1).mean((2, 3))[:, 1:]


def test_a_poor_agreement_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.warns(fec_fast.FecWarning, match="a.onnx is far from the float network: .* try more images"):
        done = fec_fast.export_int8(Spread().eval(), tmp_path / "a.onnx", IMAGES)
    assert done.agreement.same < 0.95 or done.agreement.error > 0.25
