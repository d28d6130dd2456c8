"""Small networks of the pruning literature for CIFAR and for the digits."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import missing_extra


class PaddedShortcut(nn.Module):
    """Parameter-free shortcut of the CIFAR ResNets: every second pixel, with channels of zeros before and behind.

    Attributes:
        padding: Number of channels of zeros added before, and of those added behind.
    """

    def __init__(self, padding: int) -> None:
        """Stores the padding."""
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C + 2 * padding, ceil(H/2), ceil(W/2)]``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Block of two 3x3 convolutions with batch norm and a shortcut; named as in torchvision.

    ``downsample`` is the shortcut where the shape changes and ``None`` where it does not.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, *, projection: bool) -> None:
        """Builds the layers. The shortcut is a 1x1 convolution with ``projection``, otherwise zero padding."""
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
    """Residual network of basic blocks with a 3x3 stem, for small images.

    Args:
        blocks: Number of blocks in each stage; every stage but the first halves the image.
        widths: Number of channels of each stage; the first is also the stem's.
        head: Name of the last linear layer; it differs between published weights.
        projection: Whether shortcuts between stages are 1x1 convolutions with batch norm, or zero padding.
        num_classes: Number of outputs.
        in_channels: Number of channels of the images.
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
    """Network of 3x3 convolutions with batch norm and max pooling, a global max pooling, and a classifier.

    Args:
        layers: The output channels of each convolution in order, and ``"M"`` for a 2x2 max pooling.
        classifier: Module that takes ``[B, last width]``.
        in_channels: Number of channels of the images.
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
    """Builds VGG-16 with batch norm for 32x32 images; ``features.*`` named as in torchvision's ``vgg16_bn``.

    Args:
        num_classes: Number of outputs of the one linear layer, ``classifier``.

    Returns:
        The network, randomly initialised, 14.7 million parameters.
    """
    layers: list[int | str] = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
    return SmallVGG(layers, nn.Linear(512, num_classes))


def resnet20_cifar(num_classes: int = 10) -> nn.Module:
    """Builds ResNet-20 of He et al. for 32x32 images, parameter-free shortcuts, last layer ``linear``.

    Args:
        num_classes: Number of outputs.

    Returns:
        The network, randomly initialised, 0.27 million parameters.
    """
    return SmallResNet([3, 3, 3], [16, 32, 64], head="linear", projection=False, num_classes=num_classes)


def resnet56_cifar(num_classes: int = 10) -> nn.Module:
    """Builds ResNet-56 of He et al. for 32x32 images, parameter-free shortcuts, last layer ``linear``.

    Args:
        num_classes: Number of outputs.

    Returns:
        The network, randomly initialised, 0.85 million parameters.
    """
    return SmallResNet([9, 9, 9], [16, 32, 64], head="linear", projection=False, num_classes=num_classes)


def resnet34_cifar(num_classes: int = 10) -> nn.Module:
    """Builds ResNet-34 with a 3x3 stem and no max pooling, for 32x32 images; named as torchvision's ``resnet34``.

    Args:
        num_classes: Number of outputs.

    Returns:
        The network, randomly initialised, 21.3 million parameters.
    """
    return SmallResNet([3, 4, 6, 3], [64, 128, 256, 512], head="fc", projection=True, num_classes=num_classes)


def vgg_digits(num_classes: int = 10) -> nn.Module:
    """Builds a small VGG-style network for the 8x8 one-channel digits, with a hidden linear layer.

    Args:
        num_classes: Number of outputs.

    Returns:
        The network, randomly initialised, 0.3 million parameters.
    """
    head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(inplace=True), nn.Linear(128, num_classes))
    return SmallVGG([32, 32, "M", 64, 64, "M", 128, 128], head, in_channels=1)


def resnet_digits(num_classes: int = 10) -> nn.Module:
    """Builds a small ResNet with projection shortcuts for the 8x8 one-channel digits.

    Args:
        num_classes: Number of outputs.

    Returns:
        The network, randomly initialised, 0.3 million parameters.
    """
    return SmallResNet([1, 1, 1], [32, 64, 128], head="fc", projection=True, num_classes=num_classes, in_channels=1)


def mobilenetv2_cifar(num_classes: int = 10) -> nn.Module:
    """Builds torchvision's MobileNetV2 for 32x32 images: the first convolution has stride 1.

    Args:
        num_classes: Number of outputs.

    Returns:
        The network, randomly initialised, 2.2 million parameters.

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    try:
        from torchvision.models import mobilenet_v2
    except (ImportError, AttributeError) as error:
        raise missing_extra("torchvision", "vision", "model 'zoo:mobilenetv2-cifar'", error) from error
    model: nn.Module = mobilenet_v2(num_classes=num_classes)
    stem = model.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return model
