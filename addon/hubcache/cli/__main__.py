"""Runs the command line: `python -m hubcache.cli`."""

from .main import main

main()
