"""Which objects go when room is needed: values in, decision out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cached:
    """What is known of one cached object. ``last_used_s`` is a wall-clock time; ``cached_bytes`` is space on disk,
    ``content_bytes`` what of a file is in it."""

    key: str
    cached_bytes: int
    last_used_s: float
    owners: tuple[str, ...] = ()
    content_bytes: int = 0
    priority: int = 0


def choose_victims(oldest_first: Iterable[Cached], need_bytes: int) -> list[Cached]:
    """The least recently used objects, until ``need_bytes`` are covered; all of them when that is not enough."""
    victims: list[Cached] = []
    freed_bytes = 0
    for entry in oldest_first:
        if freed_bytes >= need_bytes:
            break
        victims.append(entry)
        freed_bytes += entry.cached_bytes
    return victims
