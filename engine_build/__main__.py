"""``python -m engine_build``."""

from engine_build.cli import main

main()
