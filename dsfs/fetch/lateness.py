"""When an answer of a source is late, by how long its others took: pure.

One that takes twice as long as nearly all others is more likely lost than slow, and worth asking for once more. Of few
requests only: a source that is slow as a whole is not given twice as much to do. (J. Dean and L. A. Barroso, "The Tail
at Scale", CACM 56(2), 2013: hedged requests.)
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

LEAST_S: Final = 0.5
_TIMES: Final = 2.0  # what 95 of 100 answers took
_KEPT: Final = 128
_KNOWN: Final = 8
_SHARE: Final = 0.05  # of all requests
_MOST: Final = 4.0  # one after the other
_OWN_PAUSE_S: Final = 0.1  # whoever looks at the clock so late has stood still, and not the source


class Lateness:
    """What is late for one source, and how many second requests it may be sent. For one thread."""

    __slots__ = ("_budget", "_late_s", "_took_s")

    def __init__(self) -> None:
        self._took_s: deque[float] = deque(maxlen=_KEPT)
        self._late_s = math.inf
        self._budget = _MOST

    def came(self, seconds: float) -> None:
        """An answer got somewhere after so long."""
        self._took_s.append(seconds)
        self._budget = min(_MOST, self._budget + _SHARE)
        self._late_s = 0.0  # to be found anew

    @property
    def late_s(self) -> float:
        """After how long another request is worth it; infinity while little is known."""
        if not self._late_s:
            known = sorted(self._took_s)
            usual_s = known[math.ceil(0.95 * len(known)) - 1]
            self._late_s = max(LEAST_S, _TIMES * usual_s) if len(known) >= _KNOWN else math.inf
        return self._late_s

    def take(self) -> bool:
        """Whether there may be one more second request; then it counts."""
        if self._budget < 1:
            return False
        self._budget -= 1
        return True


def stood_still(due_s: float, now_s: float) -> bool:
    """Whether a look at the clock came so late that the answer may wait to be heard."""
    return now_s > due_s + _OWN_PAUSE_S
