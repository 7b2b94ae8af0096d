"""Reads at equal distances in one file, forwards or backwards: the next ones are known before they come."""

from __future__ import annotations

from dsfs.ranges import ByteRange, KiB, MiB

MOST_STEPS, MOST_BYTES = 16, 16 * MiB
_BELIEVED = 2  # equal distances in a row
_LARGEST_RUN_BYTES = 8 * MiB  # longer runs are a reader that goes forward
_JOIN_BYTES = 4 * KiB


class Strides:
    """One reader of one file. What a program reads at once the kernel may ask for in pieces: they make one run."""

    __slots__ = ("_asked", "_asked_bytes", "_distance", "_equal", "_missed_bytes", "_start", "_steps", "_stop")

    def __init__(self) -> None:
        self._start = self._stop = -1
        self._distance = 0
        self._equal = 0
        self._steps = 1
        self._asked: int | None = None  # start of the last run that was asked for
        self._asked_bytes = 0
        self._missed_bytes = 0  # asked for in a row that ended before it was come to

    def used_bytes(self) -> int:
        """Of what was asked for, how much was come to."""
        return self._asked_bytes - self.unread_bytes()

    def unread_bytes(self) -> int:
        """Of what was asked for, how much was not come to."""
        steps = 0
        if self._asked is not None and self._distance:
            steps = max(0, (self._asked - self._start) // self._distance)
        return min(self._asked_bytes, self._missed_bytes + steps * (self._stop - self._start))

    def on_read(self, wanted: ByteRange, size_bytes: int) -> list[ByteRange]:
        """A range was read; what to bring in for the next steps, nearest first."""
        if self._start >= 0 and self._start <= wanted.start <= self._stop + _JOIN_BYTES:
            self._stop = max(self._stop, wanted.stop)
            return []
        distance, length = wanted.start - self._start, self._stop - self._start
        first = self._start < 0
        ends = distance != self._distance or not 0 < length <= _LARGEST_RUN_BYTES
        if ends:
            self._missed_bytes = self.unread_bytes()
        self._start, self._stop = wanted
        if first:
            return []
        if ends:
            self._distance, self._equal, self._steps, self._asked = distance, 1, 1, None
            return []
        self._equal += 1
        if self._equal < _BELIEVED:
            return []
        self._steps = min(self._steps * 2, MOST_STEPS, max(1, MOST_BYTES // length))
        ahead = []
        for step in range(1, self._steps + 1):
            start = wanted.start + step * distance
            if not 0 <= start < size_bytes:
                break
            if self._asked is None or (start - self._asked) * distance > 0:
                ahead.append(ByteRange(start, start + length).clipped(size_bytes))
                self._asked = start
                self._asked_bytes += ahead[-1].length
        return ahead
