"""Direct calls of the compiled extension, and of the public operator, with arguments that no caller should give."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import fec_fast  # noqa: F401  registers the operator
from fec_fast.utils.errors import FecError

# Run in a process of its own, which prints each call before it makes it: a crash is then a failure that names a call.
SCRIPT = """
import json, sys
import torch
from fec_fast.scoring.backends import _native
weight, result = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.float64)
for line in sys.stdin:
    changes = json.loads(line)
    print(line.strip(), flush=True)
    row = [weight.data_ptr(), "float32", False, 1, 4, 3, 4, 0, 12, 4, 1]
    words = dict(compress="none", entropy="similarity", axis="filters", tau=0.0, tau_scale=1.0, threads=1)
    results = [result.data_ptr()]
    for key, value in changes.items():
        if key == "results":
            results = value
        elif key == "result":
            results = [value if value < 4096 else result.data_ptr() + value - 4096]
        elif key == "offset":
            row[0] += value
        elif key.isdigit():
            row[int(key)] = value
        else:
            words[key] = float(value) if key.startswith("tau") else value
    try:
        _native.entropies([tuple(row)], results, **words)
        print("accepted", flush=True)
    except (ValueError, TypeError) as error:
        print(repr(error)[:200], flush=True)
"""
BEYOND = [-1, 1 << 47, 1 << 62, (1 << 63) - 1, -(1 << 63), 1 << 63]


def bad_calls() -> Iterator[dict[str, Any]]:
    yield from ({"0": pointer} for pointer in (0, 1, 8, 4095, 1 << 63, (1 << 64) - 4, -1, 1 << 64))
    yield from ({"offset": offset} for offset in (1, 2, 3))  # not aligned
    yield from ({"1": dtype} for dtype in ("", "int8", "float128", "F32", 3, None))
    yield {"1": "float64", "offset": 4}
    yield {"2": True}  # sorted, on the filter axis
    yield {"2": True, "axis": "channels"}  # sorted, four numbers per channel
    for size in range(3, 7):
        yield from ({str(size): value} for value in BEYOND)
    for stride in range(8, 11):
        yield from ({str(stride): value} for value in BEYOND if value > 1 << 50 or value < 0)
    yield from ({str(a): 1 << 24, str(b): 1 << 25} for a, b in itertools.combinations(range(3, 7), 2))
    yield from ({"result": pointer} for pointer in (0, 1, 8, 4095, 4097, 4100))
    yield from ({"results": value} for value in ([], [0, 0], None, 3, "x", [-1], [1 << 64]))
    for word in ("compress", "entropy", "axis"):
        yield from ({word: value} for value in ("", "both", "RMS", "x" * 1000, None, 3, "\0"))
    yield from ({"tau": value} for value in ("nan", "inf", "-inf", "-1e-300"))
    yield from ({"tau_scale": value} for value in ("nan", "inf", "0", "-1"))
    yield from ({"threads": value} for value in (0, -1, 1 << 20, (1 << 31) - 1, 1 << 31, -(1 << 40), None, "2"))
    yield from ({"instruction_set": value} for value in ("avx1024", "x" * 1000, "AVX2", None))


def test_bad_calls_of_the_extension_are_refused() -> None:
    calls = list(bad_calls())
    assert len(calls) > 100
    lines = "".join(json.dumps(call) + "\n" for call in calls)
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=lines, capture_output=True, text=True, timeout=300)
    printed = done.stdout.splitlines()
    assert done.returncode == 0, f"exit {done.returncode} at the call {printed[-1]}: {done.stderr[-2000:]}"
    answers = dict(zip(printed[::2], printed[1::2], strict=True))
    assert len(answers) == len({json.dumps(call) for call in calls})
    assert not [call for call, answer in answers.items() if answer == "accepted"]


def test_sound_calls_of_the_extension_are_made() -> None:
    calls = [{}, {"threads": 65536}, {"axis": "channels"}, {"axis": "channels", "compress": "rms", "2": True}]
    calls += [{"3": 0}, {"4": 0}, {"5": 0}, {"6": 0}, {"tau": "0.5"}, {"9": 0}, {"1": "float16"}]
    lines = "".join(json.dumps(call) + "\n" for call in calls)
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.splitlines()[1::2] == ["accepted"] * len(calls), done.stdout


SOUND: dict[str, Any] = {
    "weights": [torch.rand(4, 3, 2, 2)],
    "axes": [0],
    "groups": [1],
    "compress": "none",
    "entropy": "similarity",
    "axis": "filters",
    "tau": None,
    "tau_scale": 1.0,
    "algorithm": "auto",
    "backend": "auto",
}
NAN, INF = float("nan"), float("inf")
CHANGES: list[tuple[str, list[Any]]] = [
    ("axes", [[], [0, 0], [2], [-1], [1 << 62]]),
    ("groups", [[], [1, 1], [0], [-1], [3], [1 << 62]]),
    ("weights", [[], [torch.rand(4)], [torch.rand(())], [torch.ones(4, 3, dtype=torch.int32)]]),
    ("weights", [[torch.full((4, 3), NAN)], [torch.full((4, 3), INF)]]),
    ("weights", [[torch.ones(4, 3, dtype=torch.complex64)], [torch.ones(4, 3, dtype=torch.bool)]]),
    ("compress", ["", "RMS", "both"]),
    ("entropy", ["", "shannon"]),
    ("axis", ["", "rows"]),
    ("tau", [0.0, -1.0, NAN, INF]),
    ("tau_scale", [0.0, -1.0, NAN, INF]),
    ("algorithm", ["", "quick", "sorted"]),
    ("backend", ["", "tpu", "cuda", "triton"]),
]
ROWS = [(name, value) for name, values in CHANGES for value in values if (name, value) != ("weights", [])]


@pytest.mark.parametrize(("name", "value"), ROWS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(ROWS)])
@pytest.mark.parametrize("meta", [False, True], ids=["cpu", "meta"])
def test_bad_calls_of_the_operator_are_refused(name: str, value: Any, meta: bool) -> None:
    """With meta tensors the shapes alone are seen: what depends on values, dtypes or devices is not."""
    arguments = {**SOUND, name: value}
    if meta:
        if (name == "weights" and value[0].dim() == 2) or value in ("cuda", "triton", "sorted"):
            pytest.skip("not seen without values")
        arguments["weights"] = [weight.to("meta") for weight in arguments["weights"]]
    with pytest.raises(FecError):
        torch.ops.fec_fast.entropy(**arguments)


def test_the_operator_answers_a_sound_call() -> None:
    (result,) = torch.ops.fec_fast.entropy(**SOUND)
    assert result.shape == (4,) and bool(torch.isfinite(result).all())
    (traced,) = torch.ops.fec_fast.entropy(**{**SOUND, "weights": [SOUND["weights"][0].to("meta")]})
    assert traced.shape == (4,) and traced.is_meta
