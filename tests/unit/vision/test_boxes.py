"""Boxes are clipped to their image, and those that float32 would flatten are dropped and reported."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fec_fast.vision.boxes import BoxCheck
from fec_fast.vision.picture_files import LONGEST_SIDE

SIDES = st.integers(1, LONGEST_SIDE)
EDGES = st.one_of(st.floats(-1e6, 1e6), st.floats(-2, 2), st.floats(LONGEST_SIDE - 1, LONGEST_SIDE + 1))
THIN = st.sampled_from([0.0, 5e-324, 1e-7, 0.009, 0.011, 1.0])


@given(width=SIDES, height=SIDES, left=EDGES, top=EDGES, across=THIN | EDGES, down=THIN | EDGES, scale=SIDES)
@example(width=40, height=20, left=20.5, top=0.0, across=1e-7, down=20.0, scale=1)
@example(width=40, height=20, left=0.0, top=0.0, across=20.0, down=5e-324, scale=1)
def test_a_box_that_is_kept_has_an_area_in_its_image_in_float32(
    width: int, height: int, left: float, top: float, across: float, down: float, scale: int
) -> None:
    check = BoxCheck()
    box = check.clip((left, top, left + across, top + down), (width, height), "a box")
    if box is None:
        assert check.dropped == ["a box"]
        return
    assert not check.dropped
    kept = torch.tensor(box) * torch.tensor([scale / width, scale / height] * 2)  # as the pictures are scaled
    assert bool((kept[2:] > kept[:2]).all() and (kept >= 0).all() and (kept <= scale * (1 + 1e-6)).all())


@pytest.mark.parametrize(("across", "kept"), [(0.009, False), (0.011, True)])
def test_a_hundredth_of_a_pixel_is_the_least(across: float, kept: bool) -> None:
    assert (BoxCheck().clip((3.0, 3.0, 3.0 + across, 9.0), (10, 10), "") is not None) is kept
