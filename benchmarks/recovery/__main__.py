"""All tables of the recovery benchmark, one after the other: accuracy, detector, cost, start for training.

    pip install '.[bench,train,detection,demo]' && python -m benchmarks.recovery --data FOLDER

Each is a command of its own: ``python -m benchmarks.recovery.accuracy``, and so on. The folder holds
``cifar10-jpeg.zip``, ``cifar-resnet56.pth``, ``cifar-vgg16bn.pth`` and ``bccd-voc.zip``; the other weights are in
benchmarks/results/dense. Finished rows are in benchmarks/results/recovery.json at once: an interrupted run continues.
"""

import subprocess
import sys

from benchmarks.common.environment import ROOT
from benchmarks.recovery.rows import parser_of, started

ON_ANY_DEVICE, ON_CPU = ("accuracy", "training"), ("detector", "cost")


def main() -> None:
    """The command line."""
    arguments = started(parser_of(__doc__, devices=True))
    for part in (*ON_ANY_DEVICE, *ON_CPU):
        command = [sys.executable, "-m", f"benchmarks.recovery.{part}", "--data", str(arguments.data)]
        command += ["--output", str(arguments.output)]
        command += ["--device", arguments.device] if part in ON_ANY_DEVICE else []
        subprocess.run(command, cwd=ROOT, check=True)


main()
