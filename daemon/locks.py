"""Locks of whole files between processes (flock(2)): gone with the process that holds them. Standard library only."""

from __future__ import annotations

import fcntl
import time


def is_held(fd: int) -> bool:
    """Whether another open file holds it. Takes it shared for a moment. Raises OSError where there are no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def take_within(fd: int, patience_s: float) -> bool:
    """Take it alone; False when others hold it for so long, in seconds."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(0.02)  # a lock can be waited for, but not for so long and no longer
