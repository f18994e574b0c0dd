"""`python -m edgeserve`."""

from edgeserve.cli.main import main

main()
