"""`python -m soaklib`, as scripts/soak runs it."""

import sys

from .cli import main

sys.exit(main())
