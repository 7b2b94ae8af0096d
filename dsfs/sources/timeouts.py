"""How long a source waits before it calls an origin unreachable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. ``connect_s`` until a connection stands, ``idle_s`` without a single byte on one that stands.

    There is no limit on a whole request: eight MiB over a slow wire may take long and still be right.
    """

    connect_s: float = 5.0
    idle_s: float = 10.0


DEFAULT_TIMEOUTS: Final = Timeouts()
