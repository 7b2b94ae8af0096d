"""How long the kernel waits for a FUSE server before it ends the whole connection (FUSE_REQUEST_TIMEOUT, 7.43).

A request's age counts from its creation, and repeating it to another server does not make it younger. So a read and a
take-over together have to stay below what the administrator has set.
"""

from __future__ import annotations

TAKE_OVER_S = 15.0  # another server, and the kernel's own clock, which ticks every 15 s (FUSE_TIMEOUT_TIMER_FREQ)
_DIRECTORY = "/proc/sys/fs/fuse"
_LEAST_S = 15


def kernel_patience_s(directory: str = _DIRECTORY) -> float | None:
    """The age at which a request ends its connection, for those that ask for none; None when there is no limit."""
    default_s, longest_s = (_read(f"{directory}/{name}") for name in ("default_request_timeout", "max_request_timeout"))
    limits = [limit for limit in (default_s, longest_s) if limit]
    return float(max(min(limits), _LEAST_S)) if limits else None


def within_patience(wanted_s: float, patience_s: float | None) -> float:
    """A time limit for what somebody waits for in the mount, cut so that the kernel does not end the connection."""
    if patience_s is None:
        return wanted_s
    return min(wanted_s, max(patience_s - TAKE_OVER_S, patience_s / 2))


def _read(path: str) -> int:
    """0: no limit, or a kernel that knows none."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        return 0
