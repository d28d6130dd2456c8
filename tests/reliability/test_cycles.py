"""A long-lived process: what a cycle of pruning, training, saving and loading leaves behind does not add up.

The fast part makes a few cycles; ``pytest -m sweep -s tests/reliability/test_cycles.py`` 300, and looks at memory too.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.cycles import PROCESS
from helpers.processes import run_python

CYCLES = [4, pytest.param(300, marks=(pytest.mark.slow, pytest.mark.sweep))]
MOST_GROWTH = 16 << 20  # bytes: a leak of 56 kB per cycle

pytestmark = pytest.mark.skipif(not PROCESS.exists(), reason="open files and memory are read from Linux's /proc")


@pytest.mark.parametrize("cycles", CYCLES)
def test_cycles_leave_nothing_behind(tmp_path: Path, cycles: int) -> None:
    pytest.importorskip("accelerate")
    done = run_python("-m", "helpers.cycles", str(tmp_path), str(cycles), timeout=3600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["after"] == found["before"]
    print(f"{cycles} cycles: {found['before']} as before, memory grew by {found['growth'] / 2**20:.1f} MB")
    if cycles > 100:
        assert found["growth"] < MOST_GROWTH
