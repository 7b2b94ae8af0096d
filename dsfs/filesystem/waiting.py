"""Requests that wait: for an origin, for a disk, or for what never comes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many requests have no answer yet, and how long the oldest of them has none, in seconds."""

    requests: int
    oldest_s: float

    @classmethod
    def of(cls, since_s: Iterable[float]) -> Waiting:
        """From when each came, on the clock of time.perf_counter."""
        since = list(since_s)
        return cls(len(since), max(0.0, time.perf_counter() - min(since)) if since else 0.0)
