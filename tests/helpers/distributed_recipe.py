"""A recipe that is run twice in the same processes: the program that tests/integration/test_processes.py starts.

``python -m helpers.distributed_recipe RECIPE OUT`` in each process. Both runs are ``python -m fec_fast run``. By the
second time the folder holds a run, so that one must be refused; its exit code is that of the process.
"""

from __future__ import annotations

import runpy
import sys


def run(recipe: str, out: str) -> int:
    """Runs the command and returns its exit code."""
    sys.argv = ["fec-fast", "run", recipe, "--out", out]
    try:
        runpy.run_module("fec_fast", run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


if __name__ == "__main__":
    recipe, out = sys.argv[1:]
    assert run(recipe, out) == 0
    print("the first run is done", file=sys.stderr, flush=True)
    sys.exit(run(recipe, out))
