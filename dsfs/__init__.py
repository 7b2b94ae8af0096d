"""dsfs: remote datasets as one read-only tree, cached at the speed of the local disk. See ARCHITECTURE.md.

``dsfs.hint(dataset, paths)`` is for training jobs; importing this package imports nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any


def hint(
    dataset: str, paths: Iterable[str | os.PathLike[str]], *, mountpoint: str | None = None, timeout_s: float = 30.0
) -> dict[str, Any]:
    """Say in which order files of a dataset will be read, to have them fetched ahead in that order.

    ``dataset`` is ``[NAMESPACE/]DATASET``; ``paths`` are relative to it, or below its place in the mount. A newer hint
    for a dataset replaces the one before, also while that is being sent: its ``state`` is "replaced" then. Does not
    wait for the fetching; returns a dictionary with ``files`` and ``unknown`` counted. Raises
    ``dsfs.errors.MountError``.
    """
    from dsfs.client import send_hint, to_mount  # with the HTTP client of the standard library

    return send_hint(to_mount(mountpoint, timeout_s), dataset, paths)
