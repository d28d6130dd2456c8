"""Prints what CHANGELOG.md says of one version: ``python .ci/changelog.py 1.2.3``."""

import re
import sys
from pathlib import Path

text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
version = sys.argv[1]
found = re.search(
    rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
)
if found is None:
    sys.exit(f"CHANGELOG.md has no section '## [{version}] - YEAR-MONTH-DAY'")
print(found[1].strip())
