"""Progress bars where somebody watches; executed copies of notebooks get one line per epoch instead."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

HEADLESS = "FGVC_HEADLESS"  # environment variable: the runner sets it to the notebook's name, for the kernels it starts
VOILA = "VOILA_REQUEST_URL"  # set by Voilà; where a bar was removed, its page says "Error displaying widget"


LINE_SECONDS = 30.0  # between two lines of `photo_progress`


def progress(items: Iterable, description: str, **options: Any) -> Iterable:
    """Iterate with a bar in a terminal or JupyterLab. A bar in a saved notebook would stay frozen at 0 %."""
    return tqdm(items, description, leave=False, disable=not _watched(), **options)


def photo_progress(batches: Iterable, description: str, total: int, count: Callable = len) -> Iterator:
    """Iterate over batches of `total` photos with a bar; where nobody would see one, with a line now and then.

    Such a line reads "teacher maps: 1200 of 5394 photos, 9.8 photos/s". `count` tells how many photos a batch has.
    """
    if _watched():
        with tqdm(total=total, desc=description, leave=False, unit="photo") as bar:
            for batch in batches:
                yield batch
                bar.update(count(batch))
        return
    started = last = time.monotonic()
    done = 0
    for batch in batches:
        yield batch
        done += count(batch)
        now = time.monotonic()
        if now - last >= LINE_SECONDS and _is_first_process():
            print(f"{description}: {done} of {total} photos, {done / (now - started):.1f} photos/s", flush=True)
            last = now


def _watched() -> bool:
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    return interactive and HEADLESS not in os.environ and VOILA not in os.environ and _is_first_process()


def _is_first_process() -> bool:
    """Among those of `accelerate launch`, which all iterate."""
    return os.environ.get("RANK", "0") == "0"
