"""`python -m soaklib`: scripts/soak runs this."""

import sys

from .cli import main

sys.exit(main())
