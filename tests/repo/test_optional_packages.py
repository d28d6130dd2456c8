"""Packages are imported when they are used: optional ones, and parts of torch that take seconds to import."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys

OPTIONAL = ["accelerate", "torchmetrics", "torchvision", "PIL", "pycocotools", "defusedxml", "sklearn", "tensorboard"]
OPTIONAL += ["yaml", "jsonschema", "matplotlib"]
for name in OPTIONAL:
    sys.modules[name] = None  # makes `import NAME` raise ImportError

import fec_fast

for module in pkgutil.walk_packages(fec_fast.__path__, "fec_fast."):
    # Running __main__ is the command line; an integration is about one optional package and names the extra.
    if module.name != "fec_fast.__main__" and not module.name.startswith("fec_fast.integrations."):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_every_module_is_imported_without_optional_packages() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"fec_fast.training.engine", "fec_fast.training.tasks.detection", "fec_fast.vision.voc"} <= imported


FACE = """
import sys
import fec_fast, torch
torch.ops.fec_fast.entropy
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("fec_fast.")}
for name in fec_fast.__all__:
    assert getattr(fec_fast, name).__module__.startswith("fec_fast."), name
print(*sorted(rooms))
"""


SHORT = """
import sys
import fec_fast
assert "fec_fast.vision.zoo" not in sys.modules
assert {"zoo", "data", "detection", "voc", "prune", "sweep", "__version__"} <= set(dir(fec_fast))
from fec_fast import zoo
import fec_fast.vision.zoo, fec_fast.vision.data, fec_fast.vision.voc, fec_fast.training.tasks.detection
assert zoo is fec_fast.zoo is fec_fast.vision.zoo and fec_fast.data is fec_fast.vision.data
assert fec_fast.voc is fec_fast.vision.voc and fec_fast.detection.Detection().name == "detection"
assert fec_fast.__version__[0].isdigit() or fec_fast.__version__ == "unknown (not installed)"
assert not set(fec_fast.__all__) & {"zoo", "data", "voc"}  # a star import leaves these names to the caller
try:
    fec_fast.nothing
except AttributeError as error:
    print(error)
"""


def test_modules_have_short_addresses() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing" in done.stdout


def test_the_package_imports_a_public_name_when_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", FACE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["scoring", "utils"]


FIRST_CALL = """
import sys
import torch
from torch import nn

torch.set_num_threads(1)
before = set(sys.modules)
import fec_fast


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.grouped = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.grouped(self.norm(self.conv(x))).relu()
        x = nn.functional.interpolate(x, scale_factor=2).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x)[0].mean(1))


image = torch.randn(1, 3, 12, 12)
for memory_format in (torch.contiguous_format, torch.channels_last):
    fec_fast.prune(Network().eval().to(memory_format=memory_format), image.to(memory_format=memory_format))
print(*sorted(set(sys.modules) - before))
"""


def test_the_first_call_of_prune_imports_no_part_of_torch_that_takes_seconds() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    packages = {".".join(name.split(".")[:2]) for name in done.stdout.split()}
    assert "fec_fast.graph" in packages
    assert not packages & {"torch._dynamo", "torch.fx", "torch._functorch", "torch._subclasses", "triton", "sympy"}
