"""Compiles the Triton kernels that run most for one target, without a GPU; prints each one's resources as JSON.

python tests/kernels/triton_compiled.py cuda 90 32
"""

from __future__ import annotations

import json
import sys

from benchmarks.gpu.triton_resources import FREQUENT, resources

name, architecture, lanes = sys.argv[1:4]
target = (name, int(architecture) if architecture.isdigit() else architecture, int(lanes))
print(json.dumps({str(build): resources(build, target) for build in FREQUENT}))
