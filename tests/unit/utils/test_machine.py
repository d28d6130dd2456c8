"""The description of the machine tells processors of one name apart."""

from __future__ import annotations

import json
from pathlib import Path

from fec_fast.utils import machine

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 7

processor\t: 1
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 7
"""


def test_processor_of_linux(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert machine._processor(tmp_path / "cpuinfo") == {
        "processor": "Intel(R) Xeon(R) Processor",
        "processor_family": 6,
        "processor_model": 85,
        "processor_stepping": 7,
    }


def test_processor_of_other_systems(tmp_path: Path) -> None:
    facts = machine._processor(tmp_path / "absent")
    assert list(facts) == ["processor"] and facts["processor"]


def test_description_is_json() -> None:
    facts = machine.describe_machine()
    assert {"processor", "cores", "threads", "system", "python", "torch", "device"} <= set(facts)
    assert json.loads(json.dumps(facts)) == facts
