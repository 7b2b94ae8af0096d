"""Whether to ask again for pages that are on their way from the disk, or to have a thread wait for them: pure.

A fast disk has them within a tenth of a millisecond, which is less than a thread takes that is woken, wants Python's
lock and gives it back: 200 to 500 us of processor time for a file of 110 kB, against 100 for asking again.
"""

from __future__ import annotations

from typing import Final

PATIENCE_S: Final = 0.001
"""What is not there within this is left to a thread."""
LARGEST_BYTES: Final = 256 * 1024
"""A longer read comes from the disk in several steps, and each time that it is asked for copies those that are here."""
_MOST: Final = 16
_LOST: Final = 4
_PROBE_EVERY: Final = 64


class Polling:
    """How it went lately, on one disk."""

    def __init__(self) -> None:
        self._credit = _MOST
        self._since_probe = 0

    def pays(self) -> bool:
        """Whether to ask again for the next read; seldom, where that came to nothing lately."""
        if self._credit > 0:
            return True
        self._since_probe += 1
        if self._since_probe < _PROBE_EVERY:
            return False
        self._since_probe = 0
        return True

    def came(self) -> None:
        """What was asked again for was there in time."""
        self._credit = min(_MOST, self._credit + 1)

    def did_not_come(self) -> None:
        """It was not."""
        self._credit = max(0, self._credit - _LOST)
