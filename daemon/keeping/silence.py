"""A server that was ready and answers no more: it was stopped, or the loop that answers the kernel hangs.

Servers say from that loop, as often as the keeper looks, that they are alive.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from daemon.keeping.loop import Loop
from daemon.keeping.peers import Peer

TICK_S = 5.0
LONGEST = 4  # ticks: longer than a debugger stops a process to look at it
LONGEST_OF_PYFUSE3 = 12  # ticks, of a pyfuse3 session: every file that is open is lost with its server


@dataclass(slots=True)
class Silence:
    """Counted in ticks of the keeper's own, in each of which the server had its time too: while the machine sleeps and
    while the keeper is stopped there are none. A late one does not count: nobody gets any time then."""

    heard: int  # messages
    ticked: float  # monotonic s
    longest: int = LONGEST
    ticks: int = 0

    def is_too_long(self, heard: int, now: float) -> bool:
        """At a tick, with what was heard by then."""
        late = now - self.ticked >= 2 * TICK_S
        self.ticks = 0 if heard != self.heard else self.ticks + (not late)
        self.heard, self.ticked = heard, now
        return self.ticks >= self.longest


class Watch:
    """On one server at a time; ``end`` is what to do about one that is silent."""

    def __init__(self, loop: Loop, serves: Callable[[Peer], bool], end: Callable[[Peer, str], None]) -> None:
        self._loop = loop
        self._serves = serves
        self._end = end
        self._watched: Peer | None = None
        self.longest = LONGEST

    def alive(self, server: Peer) -> None:
        """It has said so, and goes on with that; older ones never do, and are not watched."""
        if self._watched is not server and self._serves(server):
            self._watched = server
            self._listen(server, Silence(server.heard, time.monotonic(), self.longest))

    def _listen(self, server: Peer, silence: Silence) -> None:
        def tick() -> None:
            if not self._serves(server) or server.closed:  # one that has hung up ends, or looks for another keeper
                self._forget(server)
            elif silence.is_too_long(server.heard, time.monotonic()) and not server.has_spoken():
                self._forget(server)
                self._end(server, f"the server was ready, and has said nothing for {silence.longest * TICK_S:g} s")
            else:
                self._listen(server, silence)

        self._loop.after(TICK_S, tick)

    def _forget(self, server: Peer) -> None:
        """Until it says again that it is alive, should nothing have ended it; by then it may be another that serves."""
        if self._watched is server:
            self._watched = None
