"""Label sets against a plain union-find that handles one label at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fec_fast.graph.label_sets import LabelSets, Pin
from fec_fast.graph.labels import FIXED, FREE


class OneByOne:
    """Sets of labels as lists, and the number of the first reason to keep each."""

    def __init__(self, labels: int) -> None:
        self.set_of = {label: {label} for label in range(1, labels + 1)}
        self.reason_of: dict[int, int] = {}

    def pin(self, label: int, number: int) -> bool:
        new = self.reason(label) is None
        if new:
            self.reason_of[label] = number
        return new

    def unite(self, left: int, right: int, number: int) -> None:
        if FREE in (left, right) or left == right:
            return
        if FIXED in (left, right):
            self.pin(max(left, right), number)
            return
        joined = self.set_of[left] | self.set_of[right]
        for label in joined:
            self.set_of[label] = joined

    def reason(self, label: int) -> int | None:
        return min((self.reason_of[other] for other in self.set_of[label] if other in self.reason_of), default=None)


LABELS = 12
VECTORS = st.lists(st.integers(FREE, LABELS), min_size=1, max_size=4)
STEPS = st.lists(st.tuples(st.sampled_from(["unite", "pin", "look"]), VECTORS, VECTORS), max_size=25)


@settings(max_examples=300)
@given(steps=STEPS, later=st.lists(VECTORS, max_size=4))
def test_unions_and_pins_in_any_order(steps, later) -> None:
    sets, plain = LabelSets(), OneByOne(LABELS)
    sets.new_labels(LABELS)
    for number, (kind, first, second) in enumerate(steps):
        length = min(len(first), len(second))
        left, right = np.array(first[:length]), np.array(second[:length])
        if kind == "unite":
            sets.unite(left, right, str(number))
            for pair in zip(left.tolist(), right.tolist(), strict=True):
                plain.unite(*pair, number)
        elif kind == "pin":
            changed = [plain.pin(label, number) for label in first if label > FIXED]
            assert sets.pin(np.array(first), str(number)) == any(changed)
        else:
            sets.partition()
    partition = sets.partition()
    for number, labels in enumerate(later):
        for label in labels:
            if label > FIXED:
                plain.pin(label, len(steps) + number)
    with_pins = partition.with_pins([Pin(np.array(v), str(len(steps) + number)) for number, v in enumerate(later)])
    assert with_pins.roots.tolist() == [FIXED] + [min(plain.set_of[label]) for label in range(1, LABELS + 1)]
    for label in range(1, LABELS + 1):
        reason = plain.reason(label)
        assert with_pins.reason(label) == (None if reason is None else str(reason))
        assert with_pins.pinned[label] == (reason is not None)


def test_a_pin_within_a_vector_that_is_united_counts_for_the_whole_set() -> None:
    sets = LabelSets()
    one, two = sets.new_labels(3), sets.new_labels(3)
    sets.pin(two[1:2], "first")
    sets.unite(one, two, "")
    assert sets.partition().pinned.tolist() == [True, False, True, False, False, True, False]
    assert not sets.pin(one[1:2], "second")
    assert sets.partition().reason(int(one[1])) == "first"
