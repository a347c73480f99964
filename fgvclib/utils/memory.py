"""Memory in large pages: a training step takes and frees gigabytes, and a small page costs time whenever it is new.

Linux gives large pages to those who ask; glibc asks where this variable is set as a process begins. Processes that are
started inherit it. Where it means nothing (macOS, Windows, another C library), nothing changes.
"""

import os
import sys

VARIABLE, LARGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
ASKED = "FGVC_LARGE_PAGES_ASKED"  # set as well, as glibc drops the other where Python has rights of its own (setcap)


def restart_with_large_pages() -> None:
    """Begin this process again, with the same arguments; return where that was done, or the user has set the variable.

    To be called before anything else is done: what the process holds by then is lost.
    """
    if sys.platform == "linux" and not {VARIABLE, ASKED} & set(os.environ):
        os.environ |= {VARIABLE: LARGE_PAGES, ASKED: "1"}
        os.execv(sys.executable, sys.orig_argv)
