"""``python -m fec_fast`` is the command line, for launchers that start modules."""

from .cli.app import app

app()
