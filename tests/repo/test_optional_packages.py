"""Optional packages are imported when they are used: without them, every module of the package can be imported."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys

OPTIONAL = ["accelerate", "torchmetrics", "torchvision", "PIL", "pycocotools", "defusedxml", "sklearn", "tensorboard"]
OPTIONAL += ["yaml", "jsonschema"]
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


def test_the_package_imports_a_public_name_when_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", FACE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["scoring", "utils"]
