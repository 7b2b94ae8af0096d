"""What df shows."""

from __future__ import annotations

from typing import NamedTuple


class Statfs(NamedTuple):
    """Of a read-only file system: everything is in use, nothing is free. Sizes in bytes."""

    total_bytes: int
    files: int
