"""``python -m infer``."""

from infer.cli import main

main()
