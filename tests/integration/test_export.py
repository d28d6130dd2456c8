"""Pruned networks in torch.export, ONNX and torch.compile: equal outputs."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import fec_fast
from helpers.optional import skip_without

models = pytest.importorskip("torchvision").models

pytestmark = pytest.mark.slow


def ssd_backbone() -> nn.Module:
    return models.detection.ssd300_vgg16(weights=None, weights_backbone=None).backbone


NETWORKS = {
    "resnet18": (models.resnet18, 64),
    "mobilenet_v3_small": (models.mobilenet_v3_small, 64),
    "ssd300_vgg16 backbone": (ssd_backbone, 300),  # smaller images leave its last maps empty
}


class Listed(nn.Module):
    """Returns its outputs as a list: ONNX has no dictionaries."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> list[Tensor]:
        return torch.utils._pytree.tree_leaves(self.inner(x))


@pytest.fixture(scope="module", params=NETWORKS)
def pruned(request):
    torch.manual_seed(0)
    factory, size = NETWORKS[request.param]
    model, image = factory().eval(), torch.randn(1, 3, size, size)
    result = fec_fast.prune(model, image, ratio=0.5, verify=False, recover=None)
    assert result.after.parameters < 0.6 * result.before.parameters
    network = Listed(result.model).eval()
    with torch.no_grad():
        return network, image, network(image)


def relative_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def test_torch_export(pruned) -> None:
    network, image, expected = pruned
    with torch.no_grad():
        exported = torch.export.export(network, (image,))
        assert relative_difference(exported.module()(image), expected) == 0


def test_onnx(pruned, tmp_path) -> None:
    runtime = skip_without("onnxscript", "onnxruntime")
    network, image, expected = pruned
    path = str(tmp_path / "pruned.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter itself
        torch.onnx.export(network, (image,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(array) for array in session.run(None, {session.get_inputs()[0].name: image.numpy()})]
    assert relative_difference(found, expected) < 1e-4


def test_torch_compile(pruned) -> None:
    network, image, expected = pruned
    torch.compiler.reset()
    # This backend captures and traces like the default one, and needs no C++ compiler.
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert relative_difference(compiled(image), expected) < 1e-5
