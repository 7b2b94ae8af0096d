"""Rounds of listing a source: who asks for one, and who waits for it."""

from __future__ import annotations

import math
import time

import trio

from dsfs.errors import DsfsError, SourceMissing, SourceUnavailable

_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_READER_PAUSE_S = 30.0  # between rounds that nobody asked for but by reading
_REFUSED_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 600.0  # and before those for what is refused, and may be so for good
_REST = 10  # times what a round takes, before one for that


class Rounds:
    """One round at a time; those who ask while none has begun get the same one."""

    def __init__(self) -> None:
        self._asked = trio.Event()
        self._begun = self._ended = 0
        self._end_of_one = trio.Event()
        self._error: DsfsError | None = None
        self._began_s = self._took_s = 0.0
        self._for_reader_s = -math.inf
        self._refused_pause_s = _REFUSED_PAUSE_S
        self._stopped = False
        self.failures = 0
        """In a row."""
        self.listed_s = 0.0
        """When the last good one ended, under this server or one before it (Unix time); 0: there was none."""

    def ask(self) -> None:
        """Have a round begin, soon."""
        self._asked.set()

    def ask_for_reader(self) -> None:
        """As ``ask``, for somebody who was told that what is shown is not there any more; but not all the time."""
        now_s = trio.current_time()
        if now_s - self._for_reader_s > _READER_PAUSE_S:
            self._for_reader_s = now_s
            self.ask()

    def ask_for_refused(self) -> None:
        """As ``ask``, for somebody who wants what the source refused when it was listed: a while after the last round,
        and ever more seldom, until ``refuses_other``."""
        is_over = self._ended == self._begun and not self._asked.is_set()
        rested_s = trio.current_time() - self._began_s - self._took_s
        if is_over and rested_s > max(self._refused_pause_s, _REST * self._took_s):
            self._refused_pause_s = min(2 * self._refused_pause_s, _LONGEST_PAUSE_S)
            self.ask()

    def refuses_other(self) -> None:
        """The last round has found that other names are refused, or cannot be read, than before."""
        self._refused_pause_s = _REFUSED_PAUSE_S

    async def asked(self) -> None:
        """Wait until somebody asks."""
        await self._asked.wait()

    def begin(self) -> None:
        self._asked = trio.Event()
        self._begun += 1
        self._began_s = trio.current_time()

    def end(self, error: DsfsError | None) -> None:
        """The round that has begun is over; ``error`` is what those who wait for it get."""
        self._error = error
        self.failures = 0 if error is None else self.failures + 1
        if error is None:
            self.listed_s = time.time()
        self._took_s = trio.current_time() - self._began_s
        self._ended = self._begun
        ended, self._end_of_one = self._end_of_one, trio.Event()
        ended.set()

    @property
    def pause_s(self) -> float:
        """How long to wait for somebody to ask before the next try, in seconds: ever longer while rounds fail."""
        return max(_PAUSES_S[min(self.failures, len(_PAUSES_S)) - 1], self._took_s)

    @property
    def heals_within_s(self) -> float:
        """As ``pause_s`` where the last one failed as its source was not there; infinite else. What is refused, or does
        not fit into the cache, is not listed again and again for that."""
        return self.pause_s if isinstance(self._error, SourceUnavailable | SourceMissing) else math.inf

    def stop(self, error: DsfsError) -> None:
        """There is no round any more: ``error`` is what all get who wait for one now, or later."""
        self._stopped = True
        self.end(error)

    async def one_more(self) -> None:
        """Ask, and wait for the end. Raises the error of the round.

        A round that has begun already does not count: it may have looked before the change that one asks about.
        """
        wanted = self._begun + 1
        self.ask()
        while self._ended < wanted and not self._stopped:
            await self._end_of_one.wait()
        if self._error is not None:
            raise self._error
