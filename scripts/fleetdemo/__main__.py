"""`python -m fleetdemo`: scripts/serve runs this for `--fleet-demo`."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))
