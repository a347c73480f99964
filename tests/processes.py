"""Looking after processes that a test has started."""

import time
from collections.abc import Callable

import psutil


def alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended may wait for its parent to ask."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, ten minutes at most."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
