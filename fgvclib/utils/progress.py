"""Progress bars where somebody watches; executed copies of notebooks get one line per epoch instead."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

HEADLESS = "FGVC_HEADLESS"  # environment variable: the runner sets it to the notebook's name, for the kernels it starts
VOILA = "VOILA_REQUEST_URL"  # set by Voilà; where a bar was removed, its page says "Error displaying widget"


def progress(items: Iterable, description: str, **options: Any) -> Iterable:
    """Iterate with a bar in a terminal or JupyterLab. A bar in a saved notebook would stay frozen at 0 %."""
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    hidden = not interactive or HEADLESS in os.environ or VOILA in os.environ
    return tqdm(items, description, leave=False, disable=hidden, **options)
