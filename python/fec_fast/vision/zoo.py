"""Networks by name: the small ones of the pruning literature, torchvision's, and any factory in a Python file."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..utils.errors import CheckpointError, InputError, LayerError, missing_extra, nearest
from .ssd import ssd_small
from .user_file import from_file


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut of the CIFAR ResNets: every second pixel, zero channels added on both sides.

    Attributes:
        padding: Channels of zeros added before, and as many after.
    """

    def __init__(self, padding: int) -> None:
        """Remembers the padding."""
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C + 2 * padding, ceil(H/2), ceil(W/2)]``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut; names as in torchvision.

    ``downsample`` is the shortcut where the shape changes and ``None`` where it does not.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, *, projection: bool) -> None:
        """Builds the layers; ``projection`` chooses a 1x1 convolution over zero padding for the shortcut."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            if projection:
                conv = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(planes))
            else:
                self.downsample = PaddedShortcut((planes - in_planes) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, in_planes, H, W]`` to ``[B, planes, ceil(H/stride), ceil(W/stride)]``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(out + shortcut)


class SmallResNet(nn.Module):
    """A residual network of basic blocks with a 3x3 stem, for small images.

    Args:
        blocks: Number of blocks in each stage; every stage but the first halves the image.
        widths: Number of channels of each stage; the first is also the stem's.
        head: Name of the last linear layer, so that published weights load unchanged.
        projection: Shortcuts between stages are 1x1 convolutions with batch norm; otherwise padded with zeros.
        num_classes: Outputs.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        head: str,
        projection: bool,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        """Builds the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self._stages: list[str] = []
        self._head = head
        planes = widths[0]
        for number, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            stage = []
            for block in range(count):
                stride = 2 if block == 0 and number > 1 else 1
                stage.append(BasicBlock(planes, width, stride, projection=projection))
                planes = width
            self._stages.append(f"layer{number}")
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.add_module(head, nn.Linear(planes, num_classes))
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[B, in_channels, H, W]`` to logits ``[B, num_classes]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.get_submodule(self._head)(x)
        return logits


class SmallVGG(nn.Module):
    """3x3 convolutions with batch norm and max pooling, a global pooling, and a classifier.

    Args:
        layers: Widths of the convolutions in order, ``"M"`` for a 2x2 max pooling.
        classifier: Takes ``[B, last width]``.
        in_channels: Channels of the images.
    """

    def __init__(self, layers: Sequence[int | str], classifier: nn.Module, *, in_channels: int = 3) -> None:
        """Builds the layers."""
        super().__init__()
        modules: list[nn.Module] = []
        planes = in_channels
        for layer in layers:
            if isinstance(layer, int):
                modules += [nn.Conv2d(planes, layer, 3, padding=1), nn.BatchNorm2d(layer), nn.ReLU(inplace=True)]
                planes = layer
            else:
                modules.append(nn.MaxPool2d(2))
        modules.append(nn.AdaptiveMaxPool2d(1))
        self.features = nn.Sequential(*modules)
        self.classifier = classifier
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[B, in_channels, H, W]`` to logits ``[B, num_classes]``."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def vgg16_cifar(num_classes: int = 10) -> nn.Module:
    """VGG-16 with batch norm for 32x32 images; ``features.*`` named as in torchvision's ``vgg16_bn``.

    Args:
        num_classes: Outputs of the one linear layer, ``classifier``.

    Returns:
        The network, randomly initialised, 14.7 million parameters.
    """
    layers: list[int | str] = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
    return SmallVGG(layers, nn.Linear(512, num_classes))


def resnet20_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-20 of He et al. for 32x32 images, parameter-free shortcuts, last layer ``linear``.

    Args:
        num_classes: Outputs.

    Returns:
        The network, randomly initialised, 0.27 million parameters.
    """
    return SmallResNet([3, 3, 3], [16, 32, 64], head="linear", projection=False, num_classes=num_classes)


def resnet56_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-56 of He et al. for 32x32 images, parameter-free shortcuts, last layer ``linear``.

    Args:
        num_classes: Outputs.

    Returns:
        The network, randomly initialised, 0.85 million parameters.
    """
    return SmallResNet([9, 9, 9], [16, 32, 64], head="linear", projection=False, num_classes=num_classes)


def resnet34_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet-34 with a 3x3 stem and no max pooling, for 32x32 images; named as torchvision's ``resnet34``.

    Args:
        num_classes: Outputs.

    Returns:
        The network, randomly initialised, 21.3 million parameters.
    """
    return SmallResNet([3, 4, 6, 3], [64, 128, 256, 512], head="fc", projection=True, num_classes=num_classes)


def vgg_digits(num_classes: int = 10) -> nn.Module:
    """A small VGG-style network for the 8x8 one-channel digits, with a hidden linear layer.

    Args:
        num_classes: Outputs.

    Returns:
        The network, randomly initialised, 0.3 million parameters.
    """
    head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(inplace=True), nn.Linear(128, num_classes))
    return SmallVGG([32, 32, "M", 64, 64, "M", 128, 128], head, in_channels=1)


def resnet_digits(num_classes: int = 10) -> nn.Module:
    """A small ResNet with projection shortcuts for the 8x8 one-channel digits.

    Args:
        num_classes: Outputs.

    Returns:
        The network, randomly initialised, 0.3 million parameters.
    """
    return SmallResNet([1, 1, 1], [32, 64, 128], head="fc", projection=True, num_classes=num_classes, in_channels=1)


_ZOO: dict[str, Callable[..., nn.Module]] = {
    "vgg16-cifar": vgg16_cifar,
    "resnet20-cifar": resnet20_cifar,
    "resnet34-cifar": resnet34_cifar,
    "resnet56-cifar": resnet56_cifar,
    "vgg-digits": vgg_digits,
    "resnet-digits": resnet_digits,
    "ssd-small": ssd_small,
}


def names() -> list[str]:
    """The networks of the zoo.

    Returns:
        Names such as ``"zoo:vgg16-cifar"``, as :func:`build` takes them.
    """
    return [f"zoo:{name}" for name in _ZOO]


def input_shape(name: str) -> tuple[int, ...]:
    """The shape of the images that a network of this name is made for.

    Args:
        name: As for :func:`build`.

    Returns:
        One image: ``(1, 1, 8, 8)`` for the zoo's digits networks, ``(1, 3, 32, 32)`` for the rest of the zoo, and
        ``(1, 3, 224, 224)`` for all others.
    """
    if not name.startswith("zoo:"):
        return 1, 3, 224, 224
    return (1, 1, 8, 8) if "digits" in name else (1, 3, 32, 32)


def build(name: str, **kwargs: Any) -> nn.Module:
    """Builds a network from its name, with fresh weights. Nothing is downloaded.

    Args:
        name: ``"torchvision:resnet50"``, ``"zoo:vgg16-cifar"`` or ``"path/to/file.py:factory"``. The file is
            executed, so name only files you trust.
        **kwargs: Handed to the factory.

    Returns:
        The network, in the mode its factory left it in.

    Raises:
        InputError: A name of another form, an unknown network, a file or factory that does not exist, or a factory
            that raises or returns something else than a module.
        MissingExtraError: ``torchvision:`` without torchvision.
    """
    prefix, colon, rest = name.rpartition(":")
    if not colon or not prefix or not rest:
        raise InputError(
            f"model {name!r}: write torchvision:NAME, zoo:NAME or path/to/file.py:factory; {nearest(name, names())}"
        )
    if prefix == "zoo":
        factory = _ZOO.get(rest.replace("_", "-"))
        if factory is None:
            raise InputError(f"model {name!r}: the zoo has no {rest!r}; {nearest(rest.replace('_', '-'), _ZOO)}")
    elif prefix == "torchvision":
        factory, kwargs = _torchvision_factory(rest, kwargs)
    else:
        factory = from_file(f"model {name!r}", Path(prefix), rest)
    try:
        model = factory(**kwargs)
    except Exception as error:
        raise InputError(f"model {name!r}: its factory raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r}: its factory returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _torchvision_factory(rest: str, kwargs: dict[str, Any]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    try:
        from torchvision import models
    except ImportError as error:
        raise missing_extra("torchvision", "vision", f"model 'torchvision:{rest}'") from error
    known = models.list_models()
    if rest not in known:
        raise InputError(f"model 'torchvision:{rest}': torchvision has no {rest!r}; {nearest(rest, known)}")
    factory: Callable[..., nn.Module] = models.get_model_builder(rest)
    # The detection and segmentation builders fetch their backbone's weights unless told not to.
    if "weights_backbone" in inspect.signature(factory).parameters:
        kwargs = {"weights_backbone": None, **kwargs}
    return factory, {"weights": None, **kwargs}


def load_weights(model: nn.Module, file: str | Path) -> nn.Module:
    """Fills a network with the weights of a file, all of them or none.

    Args:
        model: The network, changed in place; keeps its dtype and device.
        file: A safetensors file, or a .pth or .pt file with a state dict (read with ``weights_only=True``), plain or
            under the key ``"state_dict"``; names may begin with ``"module."``, as DataParallel writes them.
            ``num_batches_tracked`` may be missing, as in files of old.

    Returns:
        The same network.

    Raises:
        CheckpointError: The file is missing, cannot be read, or does not fit; the model is unchanged.
        LayerError: The model has parameters on the meta device, which hold no values.
    """
    path = Path(file)
    state = _read_state(path)
    own = model.state_dict()
    meta = next((key for key, value in own.items() if isinstance(value, Tensor) and value.is_meta), None)
    if meta is not None:
        raise LayerError(f"{meta!r} is on the meta device and cannot hold weights: call model.to_empty(device='cpu')")
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    if missing or unexpected:
        parts = [f"lacks {_some(missing)}"] if missing else []
        if unexpected:
            parts.append(f"has {_some(unexpected)} that the model has not ({nearest(unexpected[0], own)})")
        raise CheckpointError(f"{path} is not for this {type(model).__name__}: it {' and '.join(parts)}")
    for key, value in own.items():
        if key in state and isinstance(value, Tensor) and not is_lazy(value) and state[key].shape != value.shape:
            raise CheckpointError(
                f"{path} is not for this {type(model).__name__}: {key!r} is {list(state[key].shape)} in the file and "
                f"{list(value.shape)} in the model"
            )
    # A plain dictionary without version metadata: batch norm then accepts a missing num_batches_tracked.
    model.load_state_dict(state, strict=True)
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    loaded: Any
    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors (or is damaged) and is not read, since that could run code; save "
            "model.state_dict(), best as safetensors"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read, it may be truncated: {error}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict, that is no mapping of names to tensors")
    return dict(_plain_names(loaded))


def _plain_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    wrapped = all(key.startswith("module.") for key in state)
    for key, value in state.items():
        yield (key.removeprefix("module.") if wrapped else key), value


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(repr(key) for key in keys[:3]) + more
