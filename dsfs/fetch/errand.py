"""What a server and its courier (``fetch/courier.py``) tell each other, over a socket pair that keeps messages apart.

The requests hold credentials: they go over that socket and nowhere else.
"""

from __future__ import annotations

import marshal
from enum import IntEnum
from typing import Any, Final, NamedTuple

LARGEST_MESSAGE: Final = 192 * 1024  # the kernel's default for a socket's buffer is 208 KiB
LARGEST_DOCUMENT: Final = 16 * 1024
DESCRIPTORS_MAX: Final = 200  # in one message; SCM_MAX_FD is 253


class Errand(NamedTuple):
    """One small object to be fetched and stored.

    ``request`` is all that is sent; ``proof`` and ``tells`` as in ``WireRequest``; ``path`` and ``key`` say where it is
    stored. ``digest``: algorithm, hex and "git" or nothing, of what the source lists or may mean, if anything.
    ``wants_fd``: somebody is going to read it at once.
    """

    number: int
    host: str
    port: int
    request: bytes
    proof: tuple[tuple[str, tuple[str, ...]], ...]
    size_bytes: int
    path: str
    key: str
    connect_s: float
    idle_s: float
    wants_fd: bool
    tells: str
    digest: tuple[str, str, bool] | None


class Outcome(IntEnum):
    """What became of an errand."""

    STORED = 0
    NOT_SO = 1
    """Not the plain case, or not just now: nothing was stored, and whoever sent it does it in another way."""
    SAID = 2
    """The server answered with something else than the object."""
    TIMEOUT = 3


class Report(NamedTuple):
    """``descriptor``: one came along for it. ``head`` and ``document`` are of an answer that was SAID. ``second``:
    whether what came was of the second request; None: one was enough."""

    number: int
    outcome: int
    space_bytes: int = 0
    replaced: bool = False
    descriptor: bool = False
    reason: str = ""
    head: bytes = b""
    document: bytes = b""
    second: bool | None = None


def packed(message: Any) -> bytes:
    """Tuples of plain values, as the two sides run the same Python: 2 µs where JSON takes 20."""
    return marshal.dumps(message)


def unpacked(raw: bytes) -> Any:
    """What ``packed`` made."""
    return marshal.loads(raw)
