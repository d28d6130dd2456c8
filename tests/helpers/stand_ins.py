"""Forty-odd small stand-ins for the networks of known packages, and how much of each can be removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .divided import BLOCKS, ConvNorm, divided_network
from .networks import draw_norms
from .stand_in_backbones import (
    Attention,
    BiT,
    BlurPool,
    Cell,
    Classifier,
    ConvLSTM,
    ConvMixer,
    ConvNeXt,
    Dense,
    Fire,
    Ghost,
    Inception,
    InvertedResidual,
    NonLocal,
    RepVGG,
    ScalingResNet,
    Siamese,
    SqueezeExcite,
    TemporalBlock,
    WaveNet,
)
from .stand_in_dense import (
    ASPP,
    DCGAN,
    EDSR,
    ESPCN,
    SPPF,
    BiFPN,
    Detector,
    DiffusionUNet,
    Discriminator,
    HRNet,
    StyleTransfer,
    UNet,
)

_DIVIDED = ("C2f by chunk", "C2f by split", "C3k2", "NAFNet", "Res2Net by chunk", "SKNet", "ResNeSt", "GLU")
_DIVIDED += ("LightCNN", "FasterNet", "DPN", "MixNet", "ShuffleNet", "pixel shuffle by hand")
_IMAGES, _SIGNAL = (2, 3, 16, 16), (2, 4, 24)


@dataclass(frozen=True)
class StandIn:
    """A small network.

    Attributes:
        make: Makes it.
        shapes: Of its inputs.
        norms: See :func:`fec_fast.prune`.
        kept: Part of the reason why most channels of the convolutions are kept; ``None`` where 60 % can be removed.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = (_IMAGES,)
    norms: str = "exact"
    kept: str | None = None

    def built(self) -> tuple[nn.Module, Any]:
        """The network with weights as if it were trained, in evaluation mode, and its inputs."""
        torch.manual_seed(0)
        model = self.make()
        draw_norms(model)
        return model.eval(), tuple(torch.randn(shape) for shape in self.shapes)


STAND_INS: dict[str, StandIn] = {
    **{name: StandIn(lambda name=name: divided_network(name)) for name in BLOCKS if name in _DIVIDED},
    "SENet": StandIn(lambda: Classifier(SqueezeExcite(16))),
    "MobileNetV3": StandIn(lambda: Classifier(InvertedResidual(), InvertedResidual())),
    "EfficientNet, stochastic depth": StandIn(lambda: Classifier(InvertedResidual(drop=0.2))),
    "DenseNet": StandIn(lambda: Classifier(Dense())),
    "GhostNet": StandIn(lambda: Classifier(Ghost())),
    "ConvNeXt": StandIn(lambda: Classifier(ConvNeXt()), norms="renormalise"),
    "ConvMixer": StandIn(lambda: Classifier(ConvMixer())),
    "RepVGG": StandIn(lambda: Classifier(RepVGG())),
    "MobileOne": StandIn(lambda: Classifier(RepVGG(3))),
    "Inception": StandIn(lambda: Classifier(Inception(), channels=32)),
    "SqueezeNet": StandIn(lambda: Classifier(Fire())),
    "PNASNet": StandIn(lambda: Classifier(Cell(), channels=24)),
    "blur pool": StandIn(lambda: Classifier(BlurPool())),
    "CBAM": StandIn(lambda: Classifier(Attention()), norms="renormalise"),
    "non-local": StandIn(lambda: Classifier(ConvNorm(16, 16, 3), NonLocal())),
    "BiT": StandIn(lambda: Classifier(BiT()), norms="renormalise"),
    "ResNeXt": StandIn(lambda: Classifier(ScalingResNet(), channels=24)),
    "siamese": StandIn(Siamese, (_IMAGES, _IMAGES)),
    "TCN": StandIn(TemporalBlock, (_SIGNAL,)),
    "WaveNet": StandIn(WaveNet, (_SIGNAL,)),
    "ConvLSTM": StandIn(ConvLSTM, ((2, 3, 3, 8, 8),), kept="a tensor of fixed width"),
    "U-Net": StandIn(UNet),
    "attention U-Net": StandIn(lambda: UNet(gated=True)),
    "nnU-Net in 3d": StandIn(lambda: UNet(3), ((1, 3, 8, 8, 8),)),
    "SPPF": StandIn(SPPF),
    "BiFPN": StandIn(BiFPN),
    "RetinaNet": StandIn(lambda: Detector(True)),
    "SSD": StandIn(lambda: Detector(False)),
    "HRNet": StandIn(HRNet),
    "DeepLab": StandIn(ASPP),
    "EDSR": StandIn(lambda: EDSR(False)),
    "RRDB": StandIn(lambda: EDSR(True)),
    "ESPCN": StandIn(ESPCN),
    "DCGAN": StandIn(DCGAN, ((2, 8, 1, 1),)),
    "spectral norm": StandIn(Discriminator, kept="spectral norm"),
    "style transfer": StandIn(StyleTransfer),
    "diffusion": StandIn(DiffusionUNet, (_IMAGES, (2,)), norms="renormalise"),
}
