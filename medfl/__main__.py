"""`python -m medfl`."""

from medfl.cli.main import app

app()
