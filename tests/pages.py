"""Pages of single files, as dropping all of the machine's would disturb others."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def drop_pages(path: Path) -> None:
    """Have the kernel forget what it has of a file in memory, if there is such a file."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        with contextlib.suppress(OSError):  # a FUSE file has nothing to be synchronised
            os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
