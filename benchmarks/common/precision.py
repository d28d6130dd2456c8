"""The number format of trainings."""

from __future__ import annotations

import torch


def quick_precision() -> str:
    """What to train in, as ``finetune(mixed_precision=...)`` takes it: bfloat16 where there are instructions for it."""
    return "bf16" if torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() else "no"
