"""Pictures of docs/ssd.md: annotations and detections on two test images.

    python -m benchmarks.detection.pictures --data bccd-voc.zip

Needs the trained networks of seed 0, which ``python -m benchmarks.detection`` keeps in runs/ssd.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common.environment import ROOT
from benchmarks.common.pages import DOCS
from benchmarks.detection.page import SHOWN
from benchmarks.detection.run import RESULT, SETTINGS, Study
from benchmarks.detection.stages import DENSE, DENSE_TRAINED, PRUNED_TRAINED

COLOURS = ("#ffb000", "#d02020", "#1040ff")  # by class
HEIGHT, WIDTH = 240, 320


def picture(data: Path, work: Path, file: Path) -> None:
    """Two test images, one row each: the annotations, the detections of the dense and of the pruned network."""
    from PIL import Image
    from torchvision.transforms.v2.functional import resize

    study = Study(data, RESULT, work, SETTINGS)
    dense = study.build()
    dense.load_state_dict(load_file(study.file(0, DENSE)))
    networks = [study.build(), study.prune(dense).model]
    for network, stage in zip(networks, (DENSE_TRAINED, PRUNED_TRAINED), strict=True):
        network.load_state_dict(load_file(study.file(0, stage)))
        network.eval()
    dataset = study.loaders(0, "test")[1].dataset
    rows = []
    for index in range(2):
        image, target = dataset[index]
        with torch.no_grad():
            detections = [network([image])[0] for network in networks]
        shown = [{key: value[each["scores"] >= SHOWN] for key, value in each.items()} for each in detections]
        canvas = resize((image * 255).to(torch.uint8), [HEIGHT, WIDTH], antialias=True)
        rows.append(torch.cat([drawn(canvas, boxes, image.shape[1:]) for boxes in (target, *shown)], 2))
    pixels = torch.cat(rows, 1)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, quality=82, optimize=True)


def drawn(canvas: Tensor, boxes: dict[str, Tensor], size: torch.Size) -> Tensor:
    """An image with boxes, and white lines at its right and bottom.

    Args:
        canvas: The image, uint8 [3, H, W].
        boxes: ``boxes`` in pixels of the network's input, and ``labels``.
        size: The height and width of the network's input.
    """
    from torchvision.utils import draw_bounding_boxes

    scale = torch.tensor([canvas.shape[2] / size[1], canvas.shape[1] / size[0]]).repeat(2)
    colours = [COLOURS[label - 1] for label in boxes["labels"].tolist()]
    image = draw_bounding_boxes(canvas, boxes["boxes"] * scale, colors=colours, width=2)
    image[:, :, -2:] = 255
    image[:, -2:] = 255
    return image


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder or zip file in the layout of VOC")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ssd", help="the folder of trained networks")
    arguments = parser.parse_args()
    picture(arguments.data, arguments.work, DOCS / "ssd.jpg")


if __name__ == "__main__":
    main()
