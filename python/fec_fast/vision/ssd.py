"""Small SSD: torchvision's detector on a narrow backbone with batch norm, for a laptop."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..utils.errors import missing_extra

# The channels of the feature maps. The maps have 1/8, 1/16, 1/32 and 1/64 of the image's sides.
_WIDTHS = (96, 192, 256, 192)
# The sides of the default boxes of each map, as shares of the image, and one more, which DefaultBoxGenerator combines
# with the last.
_SCALES = [0.08, 0.18, 0.34, 0.5, 0.8]


def _layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SmallExtractor(nn.Module):
    """Backbone of convolutions with batch norm that returns four feature maps; named as in torchvision's SSD.

    Attributes:
        features: The layers up to the first map.
        extra: The layers from each map to the next.
        out_channels: The channels of the maps.
    """

    def __init__(self) -> None:
        """Builds the layers."""
        super().__init__()
        first, second, third, fourth = _WIDTHS
        self.out_channels = list(_WIDTHS)
        self.features = nn.Sequential(
            _layer(3, 24, stride=2),
            _layer(24, 48, stride=2),
            _layer(48, 48),
            _layer(48, first, stride=2),
            _layer(first, first),
        )
        self.extra = nn.ModuleList(
            [
                nn.Sequential(_layer(first, second, stride=2), _layer(second, second)),
                nn.Sequential(_layer(second, third, stride=2), _layer(third, third)),
                nn.Sequential(_layer(third, third // 2, kernel=1), _layer(third // 2, fourth, stride=2)),
            ]
        )

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Maps images ``[B, 3, H, W]`` to feature maps of 1/8, 1/16, 1/32 and 1/64 of their sides."""
        x = self.features(x)
        maps = [x]
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return OrderedDict((str(number), feature_map) for number, feature_map in enumerate(maps))


def ssd_small(num_classes: int = 21, image_size: int = 192) -> nn.Module:
    """Builds torchvision's SSD on a backbone of eleven convolutions with batch norm, for small images.

    Args:
        num_classes: Number of classes including the background, which is class 0.
        image_size: Height and width in pixels that every image is resized to.

    Returns:
        The network, randomly initialised, 2.1 million parameters at 4 classes. It takes and returns what torchvision's
        detectors do: a list of images ``[3, H, W]`` in [0, 1], and in training mode a list of targets.

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    try:
        from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
        from torchvision.models.detection.ssd import SSD
    except (ImportError, AttributeError) as error:
        raise missing_extra("torchvision", "detection", "model 'zoo:ssd-small'", error) from error
    boxes = DefaultBoxGenerator([[2] for _ in _WIDTHS], scales=_SCALES)
    side = (image_size, image_size)
    model: nn.Module = SSD(SmallExtractor(), boxes, side, num_classes, detections_per_img=100, score_thresh=0.02)
    return model
