"""`python -m fgvclib` is the command `fgvc`."""

import sys

from fgvclib.cli import main

sys.exit(main())
