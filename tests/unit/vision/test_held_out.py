"""The share held out: the same images in every call, whatever their order, and few others when images are added."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fec_fast.utils.errors import FecWarning
from fec_fast.vision.held_out import take_share

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=60, unique=True)


def divided(names: list[str], share: float | None) -> tuple[list[str], list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FecWarning)
        return take_share(names, names, share, "data 'x'", "has no list")


@given(NAMES, st.floats(0.01, 0.99), st.randoms())
def test_names_decide_not_their_order(names: list[str], share: float, random: object) -> None:
    train, held_out = divided(names, share)
    assert sorted(train + held_out) == sorted(names) and train and held_out
    assert len(held_out) == pytest.approx(share * len(names), abs=1)
    mixed = list(names)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert set(divided(mixed, share)[1]) == set(held_out)


@given(NAMES, st.text(min_size=9, max_size=12))
def test_one_more_image_moves_one_at_most(names: list[str], new: str) -> None:
    before, after = set(divided(names, None)[1]), set(divided([*names, new], None)[1])
    assert len(before - after) <= 1


def test_it_is_said() -> None:
    names = [str(number) for number in range(10)]
    with pytest.warns(FecWarning, match=r"data 'x' has no list: 2 of its 10 images, .*held_out=SHARE"):
        take_share(names, names, None, "data 'x'", "has no list")
