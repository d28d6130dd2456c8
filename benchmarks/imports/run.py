"""Import time: what `import fec_fast` adds to `import torch`, in new processes.

    python -m benchmarks.imports [--runs 9]

Each process imports torch, then fec_fast, and reports the wall time and the CPU seconds of both. The medians are
written to benchmarks/results/imports.json. The aim is a median of at most 0.15 CPU seconds for fec_fast;
other work on the machine changes the wall time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.common.results import RESULTS, run_number, write_result
from benchmarks.common.tables import markdown_table

RESULT = RESULTS / "imports.json"
AIM = 0.15  # CPU seconds
FEWEST_RUNS = 9
PROGRAM = """
import json, time
clocks = lambda: (time.perf_counter(), time.process_time())
start = clocks()
import torch
middle = clocks()
import fec_fast
end = clocks()
seconds = lambda earlier, later: dict(zip(("wall", "cpu"), (b - a for a, b in zip(earlier, later))))
print(json.dumps({"torch": seconds(start, middle), "fec_fast": seconds(middle, end)}))
"""


def import_times() -> dict[str, dict[str, float]]:
    """Seconds of ``import torch`` and of ``import fec_fast`` after it, ``wall`` and ``cpu``, in a new process."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    times: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return times


def medians(times: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The medians of what :func:`import_times` returned, in seconds.

    Args:
        times: One element per process.
    """
    return {
        package: {
            clock: round(statistics.median(each[package][clock] for each in times), 4) for clock in ("wall", "cpu")
        }
        for package in ("torch", "fec_fast")
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=FEWEST_RUNS, help=f"processes, at least {FEWEST_RUNS}")
    runs = parser.parse_args().runs
    if runs < FEWEST_RUNS:
        parser.error(f"--runs {runs}: at least {FEWEST_RUNS}")
    import_times()  # reads the files from the disk once
    times = [import_times() for _ in range(runs)]
    result: dict[str, Any] = {"timings": runs, "medians": medians(times), "rows": times}
    result["run"] = run_number(result)
    write_result(RESULT, result)
    rows = [(package, seconds["wall"], seconds["cpu"]) for package, seconds in result["medians"].items()]
    print(markdown_table(("import", "wall, s", "CPU, s"), rows), end="")
    added = result["medians"]["fec_fast"]["cpu"]
    print(f"aim of at most {AIM} CPU seconds for fec_fast: {'met' if added <= AIM else 'missed'}")


if __name__ == "__main__":
    main()
