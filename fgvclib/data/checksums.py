"""Which photos: SHA-256 over all of them, looked up where no file has changed, or the version that drew them."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress

from fgvclib.config import Config, data_root, results_root
from fgvclib.utils.files import atomic_path
from synthbirds import GENERATOR_VERSION

DRAWN = "synthbirds, version "


def files_checksum(paths: Iterable[str], head: bytes = b"") -> str:
    """SHA-256 in hex digits over `head` and the bytes of the files, in their order.

    Kept in `.cache/checksums` of the data root, or of the results where that cannot be written, under a name that
    changes with the path, size and dates of any file.
    """
    paths = list(paths)
    files = [(path, file.st_size, file.st_mtime_ns, file.st_ctime_ns) for path in paths for file in [os.stat(path)]]
    name = hashlib.sha256(head + repr(files).encode()).hexdigest()
    entries = [root / ".cache" / "checksums" / name for root in (data_root(), results_root())]
    for entry in entries:
        with suppress(OSError):  # there is none yet
            if len(known := entry.read_text()) == 64:
                return known
    digest = hashlib.sha256(head)
    for path in paths:
        with open(path, "rb") as file:
            digest.update(file.read())
    for entry in entries:
        with suppress(OSError), atomic_path(entry) as temporary:  # where none can be written, it is computed each time
            temporary.write_text(digest.hexdigest())
            break
    return digest.hexdigest()


def photos_checksum(paths: Iterable[str], config: Config, head: bytes = b"") -> str:
    """SHA-256 over `head` and the photos' bytes; of drawn photos the generator's version, and that of `head` alone.

    On some processors now and then a value of a drawn photo is one higher or lower, and it is the same photo.
    """
    if config.dataset != "synthbirds":
        return files_checksum(paths, head)
    return f"{DRAWN}{GENERATOR_VERSION}" + (f", {hashlib.sha256(head).hexdigest()}" if head else "")


def are_other_data(there: str | None, now: str) -> bool:
    """Whether two `photos_checksum` differ; earlier releases recorded the bytes of drawn photos, which tell nothing."""
    recorded = there is not None and (there.startswith(DRAWN) or not now.startswith(DRAWN))
    return recorded and there != now
