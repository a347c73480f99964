"""Progress bars where somebody watches; executed copies of notebooks get one line per epoch instead."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

HEADLESS = "FGVC_HEADLESS"  # environment variable; the runner sets it for the kernels it starts


def progress(items: Iterable, description: str, **options: Any) -> Iterable:
    """Iterate with a bar in a terminal or JupyterLab. A bar in a saved notebook would stay frozen at 0 %."""
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(items, description, leave=False, disable=HEADLESS in os.environ or not interactive, **options)
