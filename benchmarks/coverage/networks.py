"""Networks of the coverage benchmark, each with the smallest inputs that it accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

IMAGE_SIZES = {  # of torchvision classifiers that reject 64 x 64, by the start of their names
    "alexnet": 96,
    "inception_v3": 299,
    "maxvit_t": 224,
    "squeezenet": 96,
    "swin": 224,
    "vit": 224,
    "googlenet": 224,
    "vgg": 64,
}


@dataclass(frozen=True)
class Network:
    """A network to prune.

    Attributes:
        name: Its name in the table.
        family: The section of the page.
        build: Returns a new instance with random weights.
        inputs: Example inputs for ``fec_fast.prune``.
        targets: The annotations that a detector needs in training mode; ``None`` for other networks.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Any
    targets: list[dict[str, Tensor]] | None = None

    def call(self, model: nn.Module, inputs: Any = None) -> Any:
        """Calls an instance on the example inputs, or on others of the same structure."""
        inputs = self.inputs if inputs is None else inputs
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)

    def call_training(self, model: nn.Module) -> Any:
        """Calls an instance as its training does: a detector with targets."""
        return model(self.inputs, self.targets) if self.targets else self.call(model)


def _image(size: int, *, frames: int = 0, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *([frames] if frames else []), size, size, generator=generator)


def classifiers() -> Iterator[Network]:
    """All classifiers of torchvision."""
    for name in list_models(module=torchvision.models):
        size = next((size for start, size in IMAGE_SIZES.items() if name.startswith(start)), 64)
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name == "vit_h_14":
            options = {"image_size": 56}
            size = 56
        build = partial(get_model, name, weights=None, **options)
        yield Network(name, "torchvision, classification", build, _image(size))


def detectors() -> Iterator[Network]:
    """All detectors of torchvision."""
    generator = torch.Generator().manual_seed(0)
    for name in list_models(module=torchvision.models.detection):
        images = [torch.rand(3, 96, 96, generator=generator), torch.rand(3, 96, 96, generator=generator)]
        target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
        if name.startswith("maskrcnn"):
            target["masks"] = torch.ones(1, 96, 96, dtype=torch.uint8)
        if name.startswith("keypointrcnn"):
            target["keypoints"] = torch.rand(1, 17, 3, generator=generator) * 60 + 8
            target["keypoints"][..., 2] = 1
        options: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
        if "rcnn" in name:  # the default of 2000 proposals takes long and covers no other code
            options |= {f"rpn_{when}_nms_top_n_{mode}": 16 for when in ("pre", "post") for mode in ("train", "test")}
        build = partial(get_model, name, weights=None, weights_backbone=None, **options)
        yield Network(name, "torchvision, detection", build, images, [target, target])


def others() -> Iterator[Network]:
    """Segmentation, video and optical flow of torchvision."""
    for name in list_models(module=torchvision.models.segmentation):
        build = partial(get_model, name, weights=None, weights_backbone=None, aux_loss=not name.startswith("lraspp"))
        yield Network(name, "torchvision, segmentation", build, _image(64))
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t"):
        frames = 16 if name in ("s3d", "mvit_v2_s") else 8
        size = 224 if name in ("mvit_v2_s", "s3d") else 56
        yield Network(name, "torchvision, video", partial(get_model, name, weights=None), _image(size, frames=frames))
    for name in ("raft_small", "raft_large"):
        pair = (_image(128), _image(128).flip(3))
        yield Network(name, "torchvision, optical flow", partial(get_model, name, weights=None), pair)


# 150 networks of timm's convolutional and hybrid families, at most 60 million parameters each, with an image size: the
# smallest of 64, 96, 128, 160, 192 and the network's own that it accepts in both modes.
TIMM = """
eca_botnext26ts_256:256 halonet_h1:256 lamhalobotnet50ts_256:256 gcresnext26ts:64 regnetz_b16:64 repvgg_b0:64
resnet50_clip_gap:64 resnet101_clip:224 coat_lite_mini:224 coat_small:224 convmixer_768_32:64 convmixer_1536_20:64
convnext_femto:64 convnext_pico_ols:64 convnextv2_atto:64 convnextv2_tiny:64 cpubone_b1_dwnorm:64 cpubone_nano:64
csatv2:64 csatv2_21m:64 cs3darknet_m:64 cspresnext50:64 cspnext_m:64 cspnext_tiny:64 densenet161:64
densenetblur121d:64 dla60:64 dla102x:64 dpn68:64 dpn92:64 edgenext_small:64 edgenext_x_small:64 efficientformer_l1:224
efficientformer_l3:224 efficientformerv2_s0:224 efficientformerv2_s2:224 efficientnet_b2_pruned:64 efficientnet_el:64
efficientnetv2_m:64 mnasnet_075:64 mobilenetv2_075:64 tf_efficientnet_b1:64 tf_efficientnet_lite0:64 tf_mixnet_l:64
efficientvim_m2:64 efficientvim_m4:64 efficientvit_b1:64 efficientvit_l1:64 efficientvit_m1:224 efficientvit_m4:224
fasternet_m:64 fasternet_t1:64 fastvit_mci2:64 fastvit_sa36:64 focalnet_small_lrf:64 focalnet_tiny_srf:64
gcvit_small:224 gcvit_xtiny:224 ghostnet_130:64 ghostnetv3_100:64 hardcorenas_b:64 hardcorenas_e:64 hgnet_tiny:64
hgnetv2_b4:64 hrnet_w18_small_v2:64 hrnet_w40:64 iformer_l2:64 iformer_m_distilled:64 inception_next_small:64
inception_next_tiny:64 inception_resnet_v2:96 inception_v3:96 inception_v4:96 lcnetv2_base:64 lcnetv2_small:64
levit_384:224 levit_conv_384:224 lowformer_b2:64 lowformer_e2:64 mambaout_femto:64 mambaout_small_rw:64
coatnet_bn_0_rw_224:224 coatnet_rmlp_nano_rw_224:224 maxvit_pico_rw_256:256 maxvit_tiny_pm_256:256
maxxvitv2_nano_rw_256:256 convformer_m36:64 poolformerv2_m36:64 lcnet_035:64 mobilenetv3_large_100:64
mobilenetv4_conv_aa_medium:64 mobilenetv4_hybrid_large:64 tf_mobilenetv3_large_minimal_100:64 mobilevit_xxs:64
mobilevitv2_150:64 nextvit_base:64 nextvit_small:64 eca_nfnet_l0:64 nf_ecaresnet101:64 nf_resnet101:64 nfnet_l0:64
rdnet_small:64 rdnet_tiny:64 regnetx_004_tv:64 regnetx_160:64 regnety_040:64 regnetz_005:64 repghostnet_080:64
repghostnet_150:64 repvit_m1_0:64 repvit_m2_3:64 res2net50_26w_6s:64 res2net101_26w_4s:64 resnest50d:64 resnest101e:64
ecaresnet101d_pruned:64 resnet26:64 resnet50t:64 resnetaa34d:64 resnext50_32x4d:64 seresnet18:64 seresnetaa50d:64
test_resnet:64 resnetv2_50d:64 resnetv2_101x1_bit:64 rexnet_150:64 rexnetr_150:64 selecsls42b:64 selecsls60b:64
legacy_seresnet34:64 legacy_seresnext26_32x4d:64 shvit_s2:64 shvit_s4:64 skresnet34:64 skresnet50d:64 starnet_s2:64
starnet_s100:64 swiftformer_l3:224 swiftformer_xs:224 tiny_vit_11m_224:64 tiny_vit_21m_384:64 tresnet_m:64
tresnet_v2_l:64 visformer_small:224 visformer_tiny:224 vit_small_r26_s32_224:224 vit_small_resnet50d_s16_224:224
vitamin_small_224:224 ese_vovnet19b_slim:64 vovnet39a:64
"""


def timm_networks() -> Iterator[Network]:
    """The networks listed in ``TIMM``."""
    import timm

    for entry in TIMM.split():
        name, size = entry.split(":")
        yield Network(f"timm/{name}", "timm", partial(timm.create_model, name, pretrained=False), _image(int(size)))


def networks() -> Iterator[Network]:
    """All networks of the coverage benchmark."""
    yield from classifiers()
    yield from detectors()
    yield from others()
    yield from timm_networks()
