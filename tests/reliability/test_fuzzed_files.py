"""Damaged files: every reader raises documented errors, and believes nothing impossible.

``FEC_FUZZ=1000000 python -m pytest -n0 -s tests/reliability/test_fuzzed_files.py`` tries so many inputs over all
readers and prints figures; without the variable it is about 10,000.
"""

from __future__ import annotations

import os
import resource
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fec_fast.utils.errors import FecError
from helpers.fuzzing import KINDS, Target, mutated, targets
from helpers.fuzzing_boxes import BOX_NAMES, box_targets

INPUTS = int(os.environ.get("FEC_FUZZ", "10000"))
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 1 << 24), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz")) | box_targets(tmp_path_factory.mktemp("boxes"))


NAMES = [
    *("plan", "scores", "checkpoint checkpoint.json", "checkpoint plan.json", "checkpoint model.safetensors"),
    *("training training.json", "training state-0001.safetensors", "sensitivity cache", "recipe"),
    *(f"picture {kind}" for kind in ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "PNG with a palette")),
    *("VOC Annotations/a.xml", "VOC ImageSets/Main/train.txt", "VOC JPEGImages/a.jpg", "VOC zip", "image folder zip"),
    *("weights new", "weights old", "weights safetensors"),
    *BOX_NAMES,
]


def test_every_reader_is_tried(readers: dict[str, Target]) -> None:
    assert list(readers) == NAMES
    for reader in readers.values():
        reader.read(reader.sound)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_give_documented_errors(readers: dict[str, Target], name: str) -> None:
    reader, figures, slowest = readers[name], Counter[str](), 0.0

    @settings(
        max_examples=INPUTS // len(NAMES),
        deadline=None,
        database=None,
        derandomize="FEC_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(STEPS)
    def attempt(steps: list[tuple[str, int, bytes]]) -> None:
        nonlocal slowest
        content = mutated(reader.sound, steps)
        start = time.process_time()
        try:
            reader.read(content)
            figures["believed"] += 1
        except (FecError, OSError):
            figures["refused"] += 1
        slowest = max(slowest, time.process_time() - start)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempt()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"\n{name}: {figures.total():,} inputs, {dict(figures)}, slowest {slowest:.2f} s, process {memory} MB")
    assert figures["refused"] > 0


def test_the_readers_files_stay_where_they_are(readers: dict[str, Target], tmp_path: Path) -> None:
    """Nothing is written beside the files that are read."""
    before = sorted(Path.cwd().iterdir())
    for reader in readers.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                reader.read(mutated(reader.sound, [("cut", len(reader.sound) // 2, b"x")]))
            except (FecError, OSError):
                continue
    assert sorted(Path.cwd().iterdir()) == before
