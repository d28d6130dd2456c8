"""The package loads nothing from the network: every public function runs where no connection can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# An audit hook sees what C code does too. Sockets between processes of one machine are no network.
SCRIPT = """
import sys, tempfile, warnings
from pathlib import Path

NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"}
seen = []

def watch(event, arguments):
    if event in NETWORK or event.startswith(("http.", "ftplib.", "smtplib.")):
        seen.append((event, repr(arguments)))
        raise RuntimeError(f"the network was used: {event} {arguments!r}")

sys.addaudithook(watch)
import socket
for used in (lambda: socket.create_connection(("127.0.0.1", 9)), lambda: socket.getaddrinfo("localhost", 80)):
    try:
        used()
    except RuntimeError:
        continue
    raise SystemExit("the hook does not see connections")
assert len(seen) == 2
seen.clear()

import pkgutil, importlib
import fec_fast
for module in pkgutil.walk_packages(fec_fast.__path__, "fec_fast."):
    if module.name != "fec_fast.__main__" and not module.name.startswith("fec_fast.integrations."):
        importlib.import_module(module.name)

from helpers.bad_method_calls import subjects

warnings.simplefilter("ignore")
for name, subject in subjects().items():
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject.call(**subject.sound(Path(folder)))
        except fec_fast.FecError as error:  # some are sound up to the argument that is varied
            print(name, "refused:", error, file=sys.stderr)
            continue
    print(name)
assert not seen, seen
"""


def test_public_functions_make_no_connection() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    ran = done.stdout.splitlines()
    assert {"score_model", "prune", "finetune", "load"} <= set(ran), ran
