"""Processes that tests start: the environment in which they find what the test's process imports, and launchers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def child_environment(**changes: str) -> dict[str, str]:
    """Returns this process's environment, with PYTHONPATH set to its search path: helpers, benchmarks, the package."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | changes


def run_python(*arguments: str | Path, timeout: float = 600, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs this Python with these arguments and captures what it prints."""
    command = [sys.executable, *map(str, arguments)]
    environment = child_environment(**changes)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


def start_python(*arguments: str | Path, **changes: str) -> subprocess.Popen[str]:
    """Starts this Python with these arguments; what it prints is read from ``stdout``."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment(**changes))


def accelerate_launch(*command: str | Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Runs a script, or ``-m`` and a module, in two processes on the CPU (gloo).

    ``accelerate launch --cpu --num_processes 2`` starts one process only, unless there is MPI.
    """
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    changes = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    return run_python(*launcher, *command, timeout=timeout, **changes)


def torchrun(*command: str | Path, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """Runs a script, or ``-m`` and a module, in two processes: what ``accelerate launch`` runs underneath."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return run_python(*launcher, *command, timeout=timeout, OMP_NUM_THREADS="1")
