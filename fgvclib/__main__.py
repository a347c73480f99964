"""`python -m fgvclib` is the command `fgvc`."""

import sys

from fgvclib.tools.cli import main

sys.exit(main())
