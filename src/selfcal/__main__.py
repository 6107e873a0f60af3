"""`python -m selfcal` is the command `selfcal`."""

from selfcal.cli import main

main()
