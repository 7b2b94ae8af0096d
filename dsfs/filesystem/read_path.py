"""Which read path a dataset uses, and which mode an inode is in: pure decisions over plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dsfs.catalog.lookup import SMALL_FILE_BYTES
from dsfs.model import ReadPath

OPEN_COSTS_BYTES = 100_000
"""Of large files, for each file there is: so much comes through the daemon in the time that OPEN and RELEASE take. What
has more in large files is read faster in passthrough, and at random much faster."""
MEMORY_SHARE = 0.5
"""Openless is for what fits in the page cache beside the training job."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this kernel, session and user can do."""

    passthrough: bool
    openless: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """What is known of a dataset when the decision is due; sizes in bytes, ``large_bytes`` in files that are larger
    than SMALL_FILE_BYTES."""

    files: int
    total_bytes: int
    large_bytes: int
    sealed: bool


def choose_read_path(wanted: ReadPath, abilities: Abilities, listing: Listing, memory_bytes: int) -> ReadPath:
    """The path for the next OPEN of a connection that is not openless yet.

    A wish that cannot be had falls back to what comes nearest; ``status`` shows what it came to.
    """
    if wanted is ReadPath.DAEMON:
        return ReadPath.DAEMON
    if wanted is ReadPath.OPENLESS and abilities.openless:
        return ReadPath.OPENLESS
    if wanted is ReadPath.PASSTHROUGH and abilities.passthrough:
        return ReadPath.PASSTHROUGH
    mixed = abilities.passthrough and listing.large_bytes > listing.files * OPEN_COSTS_BYTES
    if abilities.openless and not mixed and _suits_openless(listing, memory_bytes):
        return ReadPath.OPENLESS
    return ReadPath.PASSTHROUGH if abilities.passthrough else ReadPath.DAEMON


def _suits_openless(listing: Listing, memory_bytes: int) -> bool:
    """Only what is sealed can be judged: a connection that has turned openless can never turn back."""
    return (
        listing.sealed
        and listing.files > 0
        and listing.total_bytes <= memory_bytes * MEMORY_SHARE
        and listing.total_bytes <= listing.files * SMALL_FILE_BYTES  # else OPEN and RELEASE cost less than copying
    )


class InodeMode(Enum):
    """How the open handles of one inode read. The kernel answers EIO to a mix of the two (FACTS)."""

    CACHED = "cached"
    PASSTHROUGH = "passthrough"


def mode_for_open(path: ReadPath, current: InodeMode | None, complete: bool) -> InodeMode:
    """The mode of a new handle: that of those that are open, else passthrough for what is wholly here."""
    if current is not None:
        return current
    return InodeMode.PASSTHROUGH if path is ReadPath.PASSTHROUGH and complete else InodeMode.CACHED
