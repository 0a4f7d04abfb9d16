"""``python -m mitoscan.cli``."""

from mitoscan.cli import main

main()
