"""An upgrade: the server hands over to one of another version, and keeps its descriptors until that is ready.

A fresh stand-by proves that the new version can start; then the old server finishes, and the new one is asked to serve.
Should that fail, the old stand-by serves again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from daemon.keeping.loop import Loop, say
from daemon.keeping.peers import Peer
from daemon.keeping.standbys import StandBy, StandBys
from daemon.keeping.starter import Starter

Answer = Callable[[dict[str, Any]], object]

_REGISTER_S = 60.0
_FINISH_S = 8.0
_RELEASED_S = 3.0


class Serving(Protocol):
    """Who serves, and what has to be done about it."""

    server: Peer | None

    def consider(self) -> None: ...

    def be_found(self) -> None: ...

    def begin_anew(self) -> None: ...

    def kill(self, server: Peer) -> None: ...


@dataclass(eq=False)
class _Handover:
    """``heir`` is who takes over, once it has registered; ``took``: it was asked to; ``problem``: why it did not."""

    answer_to: list[Answer] = field(default_factory=list)
    heir: StandBy | None = None
    took: bool = False
    problem: str = ""


class Upgrade:
    def __init__(self, loop: Loop, serving: Serving, starter: Starter, standbys: StandBys) -> None:
        self._loop = loop
        self._serving = serving
        self._starter = starter
        self._standbys = standbys
        self._handover: _Handover | None = None
        self._leaving: Peer | None = None  # has finished, and still has the descriptors
        self._failed: _Handover | None = None  # its heir did not serve, and nobody does yet
        self.possible = True

    @property
    def going_on(self) -> bool:
        return self._handover is not None

    @property
    def waits_for_heir(self) -> bool:
        """The server is asked to finish, or about to be: whoever serves next is the heir."""
        return self._handover is not None and not self._handover.took

    @property
    def waits_for_start(self) -> bool:
        return self._handover is not None and self._handover.heir is None

    @property
    def was_taken(self) -> bool:
        """The heir was asked to serve, and is not ready yet."""
        return self._handover is not None and self._handover.took

    def restart(self, answer: Answer) -> None:
        """Have a server of what is installed now take over; ``answer`` is told how that went."""
        if not self.possible:
            answer({"error": "the pyfuse3 session cannot hand over: unmount, and mount again"})
        elif not self._starter.ours:
            answer({"error": "its servers are started by others: start the new version's dsfs serve, it takes over"})
        elif self._handover is not None:
            self._handover.answer_to.append(answer)
        else:
            self._handover = _Handover([answer])
            self._start_heir(self._handover)

    def _start_heir(self, handover: _Handover) -> None:
        if self._serving.server is None:  # nobody serves: whoever waits is of a version that fails
            self._standbys.dismiss_all()
            self._serving.begin_anew()
        self._starter.kill()  # of what was installed before
        self._serving.be_found()
        self._starter.start()

        def look() -> None:
            if self._handover is handover and handover.heir is None:
                self._starter.kill()
                self.fail(f"the new version does not start within {_REGISTER_S:g} s, the old one stays")

        self._loop.after(_REGISTER_S, look)

    def registers(self, standby: StandBy, *, started_here: bool, takes_over: bool) -> None:
        """A stand-by is there: the heir that was waited for, or one that comes as an upgrade."""
        if started_here and self._handover is not None and self._handover.heir is None:
            self._handover.heir = standby
            self._ask_to_finish()
        elif takes_over and self._serving.server is not None and self._handover is None:
            self._handover = _Handover(heir=standby)
            self._ask_to_finish()

    def _ask_to_finish(self) -> None:
        old = self._serving.server
        if old is None:
            self._serving.consider()
            return
        if old.version >= 2:
            old.send({"op": "finish"})
        else:
            old.signal(signal.SIGTERM)

        def look() -> None:
            if self._serving.server is old:
                say(f"server {old.pid} does not finish")
                self._serving.kill(old)

        self._loop.after(_FINISH_S, look)

    def leaves(self, server: Peer) -> None:
        """The old server answers no more; it keeps its descriptors until it is told to go."""
        self._leaving = server

    def take(self) -> StandBy | None:
        """The heir, which is asked to serve now; None while it has not registered."""
        assert self._handover is not None
        self._handover.took = self._handover.heir is not None
        return self._handover.heir

    def is_ready(self) -> None:
        """The next server is."""
        self._tell_failed("the old one serves again")
        handover, self._handover = self._handover, None
        for each in handover.answer_to if handover else ():
            each({"ok": True})
        leaving = self._leaving
        if leaving is None:
            return
        leaving.send({"op": "go"})

        def look() -> None:
            if self._leaving is leaving:
                self._serving.kill(leaving)

        self._loop.after(_RELEASED_S, look)

    def fail(self, problem: str) -> None:
        handover, self._handover = self._handover, None
        say(problem)
        for each in handover.answer_to if handover else ():
            each({"error": problem})

    def heir_failed(self, what: str) -> None:
        """It was asked to serve, and its server ended before it was ready. Who asked is told once somebody serves."""
        failed, self._handover = self._handover, None
        if failed is None:
            return
        say(f"the new version does not start: {what}")
        failed.problem, self._failed = what, failed
        if failed.heir is not None and len(self._standbys) > 1:
            self._standbys.dismiss(failed.heir)

    def nobody_serves(self) -> None:
        """Nor does the one that served before."""
        self._tell_failed("nor does the old one")

    def _tell_failed(self, and_now: str) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            for each in failed.answer_to:
                each({"error": f"the new version does not start, {and_now}: {failed.problem}"})

    def standby_gone(self, standby: StandBy) -> None:
        """A stand-by has ended; should it be the heir that is still to serve, somebody else has to."""
        if self.waits_for_heir and self._handover is not None and self._handover.heir is standby:
            self.fail("the new version's stand-by has ended before it took over, the old one serves on")

    def gone(self, peer: Peer) -> None:
        """A process has ended."""
        if peer is self._leaving:
            self._leaving = None

    def forget(self) -> None:
        """The mount has ended."""
        self._handover = self._failed = None

    def stop(self) -> None:
        if self._leaving is not None:
            self._leaving.signal(signal.SIGKILL)
