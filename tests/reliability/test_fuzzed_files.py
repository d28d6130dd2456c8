"""Damaged files: every reader raises documented errors, believes nothing impossible, and takes little time and memory.

The files are made by :mod:`helpers.mutations`. 10,000 are read with all other tests, and 1,000,000 in the long part:
``python -m pytest -n0 -m sweep -s tests/reliability/test_fuzzed_files.py``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fec_fast.utils.errors import FecError
from helpers.fuzz_process import HANG_SECONDS, MOST_MEGABYTES, MOST_SECONDS
from helpers.fuzzing_boxes import ALL_READERS
from helpers.mutations import BYTES, FORMATS, mutated
from helpers.processes import start_python

MEGABYTES_OF_ADDRESSES = 1024  # what is asked for and not used; the arena of a thread is 64 MB


def read_damaged_files(inputs: int, processes: int) -> list[dict[str, Any]]:
    """Reads so many damaged files, the same number by each reader, and prints figures.

    After each tenth of a large number all readers have had their part.

    Returns:
        The figures of each reader: see :func:`helpers.fuzz_process.read_damaged`.
    """
    names, each = list(ALL_READERS), -(-inputs // len(ALL_READERS))
    rounds = 10 if inputs > 100_000 else 1
    edges = [each * part // rounds for part in range(rounds + 1)]
    shares = [
        json.dumps([names, start + first, end, processes])
        for start, end in zip(edges, edges[1:], strict=False)
        for first in range(processes)
    ]
    parts: list[dict[str, Any]] = []
    with ThreadPoolExecutor(processes) as pool:  # a thread per process, that waits for its lines
        list(pool.map(lambda share: parts.extend(_lines_of(share)), shares))
    figures = [_joined([part for part in parts if part["reader"] == name]) for name in names]
    for reader in figures:
        print(
            "\n{reader}: {inputs:,} inputs, {believed:,} believed, {refused:,} refused, slowest {seconds[0]:.2f} s, "
            "most {megabytes[0]} MB ({addresses[0]} MB of addresses), {kinds}".format(**reader),
            *reader["faults"],
            sep="\n  ",
        )
    print(f"\nall readers: {sum(reader['inputs'] for reader in figures):,} inputs")
    return figures


def _lines_of(share: str) -> Iterator[dict[str, Any]]:
    """Reads one share of the files in a process, which answers after each reader: each answer is shown at once."""
    with start_python("-m", "helpers.fuzz_process", share, OMP_NUM_THREADS="1") as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            yield json.loads(line)
    assert process.returncode == 0


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one reader from several processes."""
    whole: dict[str, Any] = {"reader": parts[0]["reader"]}
    for name in ("inputs", "believed", "refused"):
        whole[name] = sum(part.get(name, 0) for part in parts)
    for name in ("seconds", "megabytes", "addresses"):
        whole[name] = max(tuple(part.get(name, (0, -1))) for part in parts)
    kinds = sum((Counter(part.get("kinds", {})) for part in parts), Counter[str]())
    return {**whole, "kinds": dict(kinds), "faults": [fault for part in parts for fault in part["faults"]]}


def check(figures: list[dict[str, Any]], inputs: int, most_seconds: float) -> None:
    """Checks what every input must meet: each number names the reader's input that has it."""
    assert not {reader["reader"]: reader["faults"] for reader in figures if reader["faults"]}
    assert sum(reader["inputs"] for reader in figures) >= inputs
    assert all(reader["refused"] and reader["believed"] for reader in figures)
    over = [reader for reader in figures if reader["seconds"][0] > most_seconds]
    over += [reader for reader in figures if reader["megabytes"][0] >= MOST_MEGABYTES]
    over += [reader for reader in figures if reader["addresses"][0] >= MEGABYTES_OF_ADDRESSES]
    assert not over
    changed = sum((Counter(reader["kinds"]) for reader in figures), Counter[str]())
    assert set(changed) == set(BYTES).union(*FORMATS.values()), "a kind of mutation changed nothing"


pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")


@pytest.mark.slow
def test_damaged_files_give_documented_errors() -> None:
    check(read_damaged_files(10_000, 1), 10_000, HANG_SECONDS)


@pytest.mark.slow
@pytest.mark.sweep
def test_a_million_damaged_files_give_documented_errors_in_a_second_each() -> None:
    check(read_damaged_files(1_000_000, len(os.sched_getaffinity(0))), 1_000_000, MOST_SECONDS)


def test_nothing_is_written_beside_the_files_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for number, make in enumerate(ALL_READERS.values()):
        (tmp_path / str(number)).mkdir()
        target = make(tmp_path / str(number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                target.read(mutated(target.sounds[0], target.form, [("cut", number)])[0])
            except (FecError, OSError):
                continue
    assert not list(Path.cwd().iterdir())
