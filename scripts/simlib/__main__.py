"""`python -m simlib`, as scripts/simulate runs it."""

import sys

from .cli import main

sys.exit(main())
