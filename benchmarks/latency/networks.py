"""Networks of the latency benchmark: 40 of torchvision and timm, in an order that mixes kinds and sizes.

A run that is stopped has seen something of everything.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import get_model

_NAMES = """
resnet18 mobilenet_v2 shufflenet_v2_x1_0 squeezenet1_1 mobilenet_v3_large efficientnet_b0 regnet_y_400mf mnasnet1_0
timm/ghostnet_130 googlenet timm/resnet26 resnet34 mobilenet_v3_small resnet50 timm/repvgg_b0 densenet121
timm/lcnet_050 convnext_tiny timm/tf_efficientnet_lite0 timm/selecsls42b resnext50_32x4d shufflenet_v2_x0_5 alexnet
timm/dla60 regnet_x_400mf timm/mobilenetv4_conv_small vgg11_bn timm/hrnet_w18_small_v2 regnet_x_1_6gf timm/rexnet_100
squeezenet1_0 timm/vovnet39a inception_v3 mnasnet0_5 timm/cspresnet50 timm/res2net50_26w_4s timm/dpn68
efficientnet_v2_s timm/seresnet50 wide_resnet50_2
"""
NAMES = tuple(_NAMES.split())

# The side of the image where it is not 224 pixels.
SIZES = {"inception_v3": 299}


def build(name: str) -> nn.Module:
    """A network with random weights, in evaluation mode.

    Args:
        name: One of :data:`NAMES`; ``timm/...`` is timm's, others are torchvision's.
    """
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name.removeprefix("timm/"), pretrained=False).eval()
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return get_model(name, weights=None, **options).eval()
