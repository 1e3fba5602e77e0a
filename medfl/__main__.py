"""`python -m medfl`."""

from medfl.cli.main import main

main()
