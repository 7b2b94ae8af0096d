"""How a source is best asked, from how its answers come: pure.

Small objects: how many at once before they wait for each other, by the rule of TCP Vegas on whole requests. When a
median answer takes hardly longer than at its best there is room for more, when it takes much longer they are in each
other's way. Medians, as single answers of object stores differ by a factor of ten when nothing else is asked of them.
(L. Brakmo and L. Peterson, "TCP Vegas: End to End Congestion Avoidance on a Global Internet", 1995.)

Large ones: how long a range, from what one connection brings while it shares the way with few. Where that is little,
shorter ranges put more connections to work for the same bytes in flight; where it is much, each request costs more than
it is worth. What many bring at once says nothing of that: shorter ranges would make them more still.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Final

from dsfs.ranges import MiB

BEGIN: Final = 8
LEAST: Final = 4
MOST: Final = 96
SMALL_BYTES: Final = MiB
_ROUND: Final = 16  # answers that a median is taken of
_FREE: Final = 1.3  # times the best median
_IN_THE_WAY: Final = 1.8
_LOOK_AGAIN: Final = 64  # rounds, then the best is looked for anew, with few in flight: a way may become longer
_FEW: Final = 6  # beside it: what a connection brings then is limited by the way it takes, not by the others
_KNOWN: Final = 4  # answers: a reader that begins has about so many before it has many in flight
_RANGE_S: Final = 0.08
"""What a range of a large object shall take, round trip included: long beside most of those, and a reader behind it
does not wait for long."""


class Pace:
    """What is known of one source."""

    __slots__ = ("_at_once", "_best_s", "_bytes_per_s", "_doubling", "_held", "_rounds", "_skip", "_until_look")

    def __init__(self) -> None:
        self._at_once = float(BEGIN)
        self._doubling = True
        self._rounds: dict[int, list[float]] = {}  # by the binary logarithm of the size
        self._best_s: dict[int, float] = {}
        self._until_look = _LOOK_AGAIN
        self._held = 0.0  # what is allowed again after such a look; 0 when there is none
        self._skip = 0  # answers to requests that were sent before it
        self._bytes_per_s: deque[float] = deque(maxlen=_ROUND)

    @property
    def at_once(self) -> int:
        """Requests for small objects that may be in flight together; the queue grants readers more than few of them."""
        return int(self._at_once)

    @property
    def range_bytes(self) -> float:
        """How long a range of a large object should be; infinity while nothing is known."""
        return median(self._bytes_per_s) * _RANGE_S if len(self._bytes_per_s) >= _KNOWN else math.inf

    def answered(self, size_bytes: int, seconds: float, in_flight: int) -> None:
        """A request brought so much in so long, and so many were in flight with it."""
        if size_bytes > SMALL_BYTES:
            if in_flight <= _FEW:
                self._bytes_per_s.append(size_bytes / max(seconds, 1e-6))
            return
        if self._skip:
            self._skip -= 1
            return
        kind = size_bytes.bit_length()
        a_round = self._rounds.setdefault(kind, [])
        a_round.append(seconds)
        if len(a_round) < _ROUND:
            return
        middle_s = median(a_round)
        a_round.clear()
        known_s = self._best_s.get(kind)
        best_s = self._best_s[kind] = middle_s if known_s is None else min(known_s, middle_s)
        self._until_look -= 1
        if self._held:
            self._at_once, self._held = self._held, 0.0
        elif self._until_look <= 0:
            self._look(in_flight)
        elif middle_s > best_s * _IN_THE_WAY:
            self.refused()
        elif known_s is not None and middle_s < best_s * _FREE and in_flight >= self._at_once / 2:
            # the first round of a size, or one with few in flight, says nothing of more
            self._at_once = min(MOST, self._at_once * (2 if self._doubling else 1.1))

    def _look(self, in_flight: int) -> None:
        self._held, self._at_once = self._at_once, LEAST
        self._skip, self._until_look = in_flight, _LOOK_AGAIN
        self._rounds.clear()
        self._best_s.clear()

    def refused(self) -> None:
        """The source has, or says that it has, too much to do."""
        self._doubling = False
        self._at_once = max(LEAST, self._at_once * 0.8)
