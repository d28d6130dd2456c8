"""Networks by name, and weights from files."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fec_fast.utils.errors import CheckpointError, InputError, LayerError, WeightError
from fec_fast.vision import networks, zoo
from fec_fast.vision.weights import load_weights


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "image", "parameters"),
    [
        # 14,723,136 of the published vgg16_bn features, plus 5,130 of the linear layer, less nothing.
        ("zoo:vgg16-cifar", (3, 32, 32), 14_728_266),
        ("zoo:resnet20-cifar", (3, 32, 32), 269_722),
        ("zoo:resnet56-cifar", (3, 32, 32), 853_018),
        ("zoo:resnet34-cifar", (3, 32, 32), 21_282_122),
        ("zoo:mobilenetv2-cifar", (3, 32, 32), 2_236_682),  # torchvision's 3,504,872, less 990 classes of 1,280 + 1
        ("zoo:vgg-digits", (1, 8, 8), None),
        ("zoo:resnet_digits", (1, 8, 8), None),
    ],
)
def test_zoo_network_has_published_size_and_ten_logits(
    name: str, image: tuple[int, ...], parameters: int | None
) -> None:
    model = zoo.build(name).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *image)).shape == (2, 10)
    if parameters is not None:
        assert _parameters(model) == parameters


def test_names_lists_what_build_takes() -> None:
    assert len(zoo.names()) == 8
    assert all(isinstance(zoo.build(name), nn.Module) for name in zoo.names())


def test_networks_take_images_of_the_shape_that_is_named() -> None:
    for name in zoo.names():
        if name != "zoo:ssd-small":  # a detector: it takes a list of images
            assert zoo.build(name).eval()(torch.randn(zoo.input_shape(name))).shape == (1, 10)
    assert zoo.input_shape("zoo:resnet_digits") == zoo.input_shape("zoo:resnet-digits") == (1, 1, 8, 8)
    assert zoo.input_shape("torchvision:resnet18") == (1, 3, 224, 224)
    with pytest.raises(InputError, match="nearest: 'vgg-digits'"):
        zoo.input_shape("zoo:vgg-digit")


def test_vgg16_cifar_is_named_as_torchvision_and_takes_other_image_sizes() -> None:
    models = pytest.importorskip("torchvision").models
    ours = {k: v.shape for k, v in networks.vgg16_cifar().state_dict().items() if k.startswith("features")}
    with torch.device("meta"):
        theirs = models.vgg16_bn().state_dict()
    assert ours == {k: v.shape for k, v in theirs.items() if k.startswith("features")}
    assert networks.vgg16_cifar(num_classes=3).eval()(torch.randn(1, 3, 16, 24)).shape == (1, 3)


def test_resnet34_cifar_is_named_as_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        theirs = {k: v.shape for k, v in models.resnet34(num_classes=10).state_dict().items()}
    ours = {k: v.shape for k, v in networks.resnet34_cifar().state_dict().items()}
    assert set(ours) == set(theirs)
    assert {key for key in ours if ours[key] != theirs[key]} == {"conv1.weight"}


def test_padded_shortcut_is_every_second_pixel_between_zeros() -> None:
    x = torch.randn(2, 4, 5, 6)
    out = networks.PaddedShortcut(2)(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out.shape == (2, 8, 3, 3)
    assert not out[:, :2].any() and not out[:, 6:].any()


def test_resnet56_has_no_parameters_in_shortcuts() -> None:
    assert not [key for key in networks.resnet56_cifar().state_dict() if "downsample" in key]
    assert [key for key in networks.resnet_digits().state_dict() if "downsample" in key]


def test_build_torchvision_and_forwards_arguments() -> None:
    pytest.importorskip("torchvision")
    assert zoo.build("torchvision:resnet18", num_classes=7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_build_torchvision_detector_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    assert _parameters(zoo.build("torchvision:ssd300_vgg16")) > 30_000_000


def test_build_from_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\ndef net(width=3):\n    return nn.Linear(width, 2)\ndef bad():\n    return 5\n"
    )
    assert zoo.build(f"{file}:net", width=4).in_features == 4
    with pytest.raises(InputError, match="returned a int"):
        zoo.build(f"{file}:bad")
    with pytest.raises(InputError, match="nearest: 'net'"):
        zoo.build(f"{file}:nett")
    with pytest.raises(InputError, match="unexpected keyword"):
        zoo.build(f"{file}:net", depth=4)


def test_build_from_file_that_raises(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module_at_all\n")
    with pytest.raises(InputError, match="ModuleNotFoundError"):
        zoo.build(f"{file}:net")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50", "write torchvision:NAME"),
        ("zoo:", "write torchvision:NAME"),
        ("zoo:vgg16-cifer", "nearest: 'vgg16-cifar'"),
        ("zooo:vgg16-cifar", "neither 'torchvision', nor 'zoo'"),
        ("no/such/file.py:net", "there is no file"),
    ],
)
def test_build_names_what_is_wrong(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        zoo.build(name)


def test_build_unknown_torchvision_name() -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match="nearest: 'resnet50'"):
        zoo.build("torchvision:resnet5O")


@pytest.mark.parametrize("form", ["plain.pth", "module.pth", "nested.pth", "plain.safetensors", "old.pth"])
def test_load_weights_reads_every_form(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    source, target = networks.vgg_digits(), networks.vgg_digits()
    state = dict(source.state_dict())
    file = tmp_path / form
    if form.endswith("safetensors"):
        save_file(state, file)
    elif form == "nested.pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 93.0}, file)
    elif form == "module.pth":
        torch.save({f"module.{k}": v for k, v in state.items()}, file)
    elif form == "old.pth":
        torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, file)
    else:
        torch.save(state, file)
    assert load_weights(target, file) is target
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())


def test_load_weights_converts_to_the_models_dtype(tmp_path: Path) -> None:
    source = networks.vgg_digits().half()
    torch.save(source.state_dict(), tmp_path / "half.pth")
    target = load_weights(networks.vgg_digits(), tmp_path / "half.pth")
    assert {p.dtype for p in target.parameters()} == {torch.float32}
    assert torch.equal(target.features[0].weight, source.features[0].weight.float())


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo this must not run",)


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "safetensors", "pickle", "lacks", "extra", "shape", "empty"]
)
def test_load_weights_refuses_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    model = networks.vgg_digits()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    file = tmp_path / "weights.pth"
    words = {
        "missing": "there is no weights file",
        "truncated": "cannot be read|more than tensors",
        "safetensors": "cannot be read",
        "pickle": "could run code",
        "lacks": "lacks 'classifier.2.bias'",
        "extra": "has 'classifier.2.bais', which the model does not have .*nearest: 'classifier.2.bias'",
        "shape": r"'classifier.2.bias' is \[11\] in the file and \[10\] in the model",
        "empty": "no state dict",
    }[damage]
    if damage == "lacks":
        del state["classifier.2.bias"]
    elif damage == "extra":
        state["classifier.2.bais"] = torch.zeros(10)
    elif damage == "shape":
        state["classifier.2.bias"] = torch.zeros(11)
    elif damage == "empty":
        state = {}
    torch.save(state, file)
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-2000])
    elif damage == "safetensors":
        file = tmp_path / "weights.safetensors"
        save_file(state, file)
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "pickle":
        file.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(CheckpointError, match=words):
        load_weights(model, file)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised"])
def test_load_weights_refuses_tensors_whose_values_cannot_be_copied(tmp_path: Path, kind: str) -> None:
    model = networks.vgg_digits()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    key = list(state)[-2]  # after all others have been copied
    if kind == "sparse":
        state[key] = state[key].to_sparse()
    elif kind == "meta":
        state[key] = state[key].to("meta")
    else:
        state[key] = torch.quantize_per_tensor(state[key], 0.1, 0, torch.qint8)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=rf"'{key}' is|cannot be read"):
        load_weights(model, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_load_weights_is_undone_where_a_module_refuses_its_part(tmp_path: Path) -> None:
    class Refusing(nn.Linear):
        def _load_from_state_dict(self, *arguments: Any) -> None:
            raise RuntimeError("not for me")

    def chain(last: type[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), last(2, 2))

    torch.save(chain(nn.Linear).state_dict(), tmp_path / "weights.pth")
    model = chain(Refusing)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="cannot be loaded into this Sequential: not for me"):
        load_weights(model, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_load_weights_into_a_model_of_inference_mode_is_refused(tmp_path: Path) -> None:
    torch.save(networks.vgg_digits().state_dict(), tmp_path / "weights.pth")
    with torch.inference_mode():
        model = networks.vgg_digits()
    with pytest.raises(WeightError, match="inference_mode"):
        load_weights(model, tmp_path / "weights.pth")


def test_load_weights_into_meta_model_is_refused(tmp_path: Path) -> None:
    torch.save(networks.vgg_digits().state_dict(), tmp_path / "weights.pth")
    with torch.device("meta"):
        model = networks.vgg_digits()
    with pytest.raises(LayerError, match="meta device"):
        load_weights(model, tmp_path / "weights.pth")


@pytest.mark.skipif("FEC_DATA" not in os.environ, reason="FEC_DATA does not name the folder with the CIFAR weights")
@pytest.mark.parametrize(
    ("name", "file"), [("zoo:resnet56-cifar", "cifar-resnet56.pth"), ("zoo:vgg16-cifar", "cifar-vgg16bn.pth")]
)
def test_published_weights_fit(name: str, file: str) -> None:
    model = zoo.build(name)
    load_weights(model, Path(os.environ["FEC_DATA"]) / file)
    assert all(torch.isfinite(p).all() for p in model.parameters())
