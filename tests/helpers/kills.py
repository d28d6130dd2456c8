"""Processes that are killed at a random moment: forked from this one, so that they need not import torch again."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch


def in_child(work: Callable[[], Any], seconds: float | None = None) -> int:
    """Runs a function in a child process, and kills that after some seconds.

    Args:
        work: The function. What it raises becomes the exit status 1.
        seconds: When the child gets SIGKILL; ``None`` lets it end.

    Returns:
        The exit status, or -9 if it was killed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: this process has threads that only wait
        child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # the threads of a pool do not exist in a forked process
            work()
            status = 0
        except BaseException:
            traceback.print_exc()  # the exit status alone does not say what was wrong
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_random(work: Callable[[], Any], check: Callable[[], Any], kills: int, within: float) -> int:
    """Kills children at random moments of a function, one after another, and checks what each leaves.

    Args:
        work: What each child does.
        check: Is called after each kill.
        kills: How many children are killed before they end.
        within: Seconds below which the moments lie.

    Returns:
        How many children ended before they were killed.
    """
    moments, killed, ended = random.Random(0), 0, 0
    while killed < kills:
        status = in_child(work, moments.uniform(0, within))
        assert status in (0, -9), f"the child failed with {status}"
        killed += status == -9
        ended += status == 0
        check()
    return ended
