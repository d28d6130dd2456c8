"""Reads damaged files in processes of their own, and measures each: ``python -m helpers.fuzz_process SHARE``.

One process is forked per reader. A crash, or a file that takes more than ``HANG_SECONDS`` of a core, ends that process
alone: which file it had is in a shared memory. Every file can be made again from its reader's name and its number.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2  # noqa: F401  imported once, and not in every forked process

from fec_fast.utils.errors import FecError
from helpers.fuzzing import Target
from helpers.fuzzing_boxes import ALL_READERS
from helpers.mutations import Step, mutated, steps_of

HANG_SECONDS = 20
MOST_SECONDS, MOST_MEGABYTES = 1.0, 256
_FAULTS_SHOWN = 5
_MEMORY_FOLDER = Path("/dev/shm")  # a folder in memory where there is one: nothing waits for a disk


def file_of(target: Target, name: str, number: int) -> tuple[bytes, list[Step]]:
    """The sound file and the mutations of a number."""
    return target.sounds[number % len(target.sounds)], steps_of(target.form, f"{name}/{number}")


def _memory() -> tuple[int, int]:
    """The largest amounts of memory that this process has had: resident, and of addresses, in bytes."""
    status = Path("/proc/self/status").read_text()
    peaks = (status.split(f"{entry}:", 1)[1].split(None, 1)[0] for entry in ("VmHWM", "VmPeak"))
    resident, addresses = (int(peak) << 10 for peak in peaks)
    return resident, addresses


def _fault(target: Target, content: bytes) -> str | None:
    """What is wrong with how a file is read: another exception than the documented ones, or a belief that cannot be."""
    try:
        target.read(content)
    except (FecError, OSError):
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _amount(pair: tuple[float, int]) -> float:
    return pair[0]


def _smallest(target: Target, sound: bytes, steps: list[Step]) -> str:
    """Leaves out mutations while the fault stays, and describes it."""
    for step in list(steps):
        fewer = [other for other in steps if other is not step]
        if _fault(target, mutated(sound, target.form, fewer)[0]):
            steps = fewer
    content = mutated(sound, target.form, steps)[0]
    return f"{_fault(target, content)}; mutations {steps}; content {content[:300]!r}"


def read_damaged(name: str, numbers: Iterable[int], folder: Path, in_hand: Any) -> dict[str, Any]:
    """Reads the damaged files of some numbers by one reader.

    Args:
        name: The reader.
        numbers: The numbers of the files.
        folder: An empty folder.
        in_hand: Eight bytes of shared memory for the number of the file that is being read.

    Returns:
        What :func:`main` prints of a reader.
    """
    target = ALL_READERS[name](folder)
    for sound in target.sounds * 3:  # imports, caches and allocations that every later call finds
        target.read(sound)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory is now what it is
    resident, addresses = _memory()
    figures, kinds, faults = Counter[str](), Counter[str](), list[str]()
    slowest, most, widest = (0.0, -1), (0.0, -1), (0.0, -1)
    for number in numbers:
        in_hand[:] = number.to_bytes(8, "little")
        sound, steps = file_of(target, name, number)
        content, effective = mutated(sound, target.form, steps)
        kinds.update(effective)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)  # its signal ends the process
        start = time.process_time()
        try:
            target.read(content)
            figures["believed"] += 1
        except (FecError, OSError):
            figures["refused"] += 1
        except Exception:
            figures["faults"] += 1
            if len(faults) < _FAULTS_SHOWN:
                faults.append(f"{number}: {_smallest(target, sound, steps)}")
        seconds = time.process_time() - start
        peaks = _memory()
        for _ in range(2 if seconds > MOST_SECONDS / 2 else 0):  # a busy machine only ever adds to the time
            start = time.process_time()
            _fault(target, content)
            seconds = min(seconds, time.process_time() - start)
        # The first number that is larger than all before: peaks of memory never fall.
        slowest = max(slowest, (seconds, number), key=_amount)
        most = max(most, (peaks[0] - resident, number), key=_amount)
        widest = max(widest, (peaks[1] - addresses, number), key=_amount)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "reader": name,
        "inputs": figures.total(),
        **{outcome: figures[outcome] for outcome in ("believed", "refused")},
        "seconds": slowest,
        "megabytes": (int(most[0]) >> 20, most[1]),
        "addresses": (int(widest[0]) >> 20, widest[1]),
        "kinds": kinds,
        "faults": faults,
    }


def main(share: str) -> None:
    """Prints a line of JSON per reader.

    Args:
        share: JSON: names of readers; the number of the first file, that behind the last, and the step to the next.
    """
    names, first, end, step = json.loads(share)
    torch.set_num_threads(1)
    in_hand = mmap.mmap(-1, 8)
    for name in names:
        with tempfile.TemporaryDirectory(dir=_MEMORY_FOLDER if _MEMORY_FOLDER.is_dir() else None) as folder:
            answer = Path(folder) / "answer"
            child = os.fork()
            if child == 0:
                # libtiff writes about every damaged picture, and ultralytics about new settings, between our lines.
                for stream in (1, 2):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
                warnings.simplefilter("ignore")
                files = Path(folder) / "files"
                files.mkdir()
                answer.write_text(json.dumps(read_damaged(name, range(first, end, step), files, in_hand)))
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:
                print(answer.read_text(), flush=True)
            else:
                number = int.from_bytes(in_hand[:], "little")
                print(
                    json.dumps({"reader": name, "faults": [f"{number}: the process ended with {status}"]}), flush=True
                )


if __name__ == "__main__":
    main(sys.argv[1])
