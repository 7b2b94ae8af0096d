"""Who serves, and who is next: stand-bys are asked to take over, servers come and go, one at a time.

A stand-by (``standbys.py``) forks a server when it is told to. The keeper starts stand-bys itself (``argv``), or waits
for those that somebody else starts.
"""

from __future__ import annotations

import signal
import time
from typing import Any, Protocol

from daemon.keeping.loop import Loop, say
from daemon.keeping.peers import Fork, Peer
from daemon.keeping.silence import Watch
from daemon.keeping.standbys import StandBy, StandBys
from daemon.keeping.starter import Starter
from daemon.keeping.upgrade import Upgrade

STEADY_S = 1.0  # a server that was ready for so long did not fail at its start
_LONGEST_WAIT_S = 10.0
_FRESH_AFTER = 3  # servers that failed at their start, one after the other: the next is of what is installed by then
_TAKE_S = 15.0  # from being told to take over to saying hello
_SILENT_S = 60.0  # from saying hello to the first word about a connection, which takes a fraction of a second
_HEIR_S = 1.0  # how long the successor of a server that was finishing may take to show up at a new keeper


class Owner(Protocol):
    """What the keeper does when this has decided."""

    def be_found(self) -> None: ...

    def hand_out(self, server: Peer) -> None: ...

    def server_lost(self) -> None: ...

    def first_answer(self, message: dict[str, Any]) -> None: ...

    def give_up(self, reason: dict[str, Any]) -> None: ...


class Succession:
    """``ends``: in what order the kernel ends servers for want of memory (daemon/process.py)."""

    def __init__(self, loop: Loop, owner: Owner, argv: list[str] | None, ends: int) -> None:
        self._loop = loop
        self._owner = owner
        self._starter = Starter(argv, self._start_failed, ends)
        self.standbys = StandBys()
        self.upgrade = Upgrade(loop, self, self._starter, self.standbys)
        self.watch = Watch(loop, lambda peer: peer is self.server, self._end_silent)
        self.server: Peer | None = None
        self.ready = False
        self.restarts = -1
        self.failures = 0
        self.problem = ""  # of the last server that failed; what it said itself is better than its status
        self._said_why = False
        self.told = False  # somebody has heard how the start went
        self.stopping = False
        self.well_at = time.monotonic()  # when a server was last known to be well
        self._ready_at = 0.0
        self.not_before = 0.0
        self._taking: StandBy | None = None
        self._unwanted: StandBy | None = None  # was asked to take over when the mount ended

    def state(self) -> str:
        """One word for ``dsfs status``."""
        if self.server is not None:
            return "serving" if self.ready else "starting"
        return "waiting" if self.not_before > time.monotonic() else "starting"

    # -- the next server ------------------------------------------------------------------------------------------

    def consider(self) -> None:
        """Have somebody serve, if nobody does and it is time."""
        if self.stopping or (self.server or self._taking or self._unwanted) is not None:
            return
        wait_s = self.not_before - time.monotonic()
        if wait_s > 0:
            self._loop.after(wait_s, self.consider)
            return
        self._owner.be_found()
        chosen = self._choose()
        if chosen is not None:
            self._take(chosen)
        elif self._starter.ours and not self._starter.busy:
            self._starter.start()

    def be_found(self) -> None:
        """See ``Owner``: before anybody is started."""
        self._owner.be_found()

    def begin_anew(self) -> None:
        """What has failed so far counts no more."""
        self.failures, self.not_before = 0, 0.0

    def _choose(self) -> StandBy | None:
        if self.upgrade.waits_for_heir:
            return self.upgrade.take()
        chosen = self.standbys.newest(even_stale=not self._starter.ours)
        if chosen is None and self._starter.failures:
            return self.standbys.newest(even_stale=True)  # better the version that ran than none
        return chosen

    def _take(self, standby: StandBy) -> None:
        self._taking, standby.fork = standby, Fork(standby.peer)
        standby.asked.append(standby.fork)
        standby.peer.send({"op": "take", "stale": standby.stale})

        def look() -> None:
            if self._taking is standby:
                self._taking = None
                say(f"stand-by {standby.peer.pid} does not take over")
                standby.peer.signal(signal.SIGKILL)
                self.standbys.drop(standby)
                if self.upgrade.was_taken:
                    self.upgrade.heir_failed("its stand-by does not take over")
                else:
                    self.upgrade.nobody_serves()
                self.consider()

        self._loop.after(_TAKE_S, look)

    def _start_failed(self, problem: str, unexpected: bool) -> None:
        self.problem = problem
        if not self.told:
            self._owner.give_up({"error": problem, **({"unexpected": True} if unexpected else {})})
            return
        if self.upgrade.waits_for_start:
            self.upgrade.fail(f"the new version does not start, the old one stays: {problem}")
        if self.server is None:
            if not self.standbys:
                self._note_failure()
            self.consider()
        else:
            self._loop.after(self._pause(self._starter.failures), self._have_a_standby)

    def _have_a_standby(self) -> None:
        if self._starter.ours and not self.standbys.fresh and not self._starter.busy and not self.stopping:
            self._owner.be_found()
            self._starter.start()

    @staticmethod
    def _pause(failures: int) -> float:
        return 0.0 if failures <= 1 else min(0.1 * 2.0 ** min(failures - 1, 10), _LONGEST_WAIT_S)

    def _note_failure(self) -> None:
        self.upgrade.nobody_serves()
        self.failures += 1
        self.not_before = time.monotonic() + self._pause(self.failures)
        if self.failures >= _FRESH_AFTER and self._starter.ours:
            self.standbys.dismiss_all()

    def look_after_children(self) -> None:
        """After a SIGCHLD."""
        self._starter.look_after_children()

    # -- what peers say -------------------------------------------------------------------------------------------

    def standby(self, peer: Peer, started: float, children: list[int], *, takes_over: bool) -> None:
        """A stand-by is ready to fork servers, or has (``children``); ``takes_over``: it wants to, as an upgrade."""
        standby = StandBy(peer, started, fork=Fork(peer, children[0]) if len(children) == 1 else None)
        self.standbys.add(standby)
        self.upgrade.registers(standby, started_here=self._starter.has_started(peer.pid), takes_over=takes_over)
        self._thin_out()
        self.consider()

    def expect_adoption(self, within_s: float) -> None:
        """A server lives and is about to hand over what it has: nobody else may serve before that."""
        if self.server is None:
            self.not_before = max(self.not_before, time.monotonic() + within_s)

    def stale(self, peer: Peer) -> None:
        """A stand-by was asked to take over, and has seen that another version is installed by now."""
        standby = self.standbys.of(peer)
        if standby is not None:
            standby.stale = True
            standby.answers()
            if self._taking is standby:
                self._taking = None
        self.consider()

    def forked(self, peer: Peer, pid: int) -> None:
        standby = self.standbys.of(peer)
        fork = standby.answers() if standby is not None else None
        if fork is not None:
            fork.pid = pid  # its server may have said hello by now, or even have handed over to the next

    def forked_ended(self, peer: Peer, pid: int, status: int) -> None:
        """A stand-by tells how its server has ended."""
        say(f"server {pid} ended with status {status}")
        what = f"the server ended with status {status}"
        if status and not self._said_why:
            self.problem = what
        standby = self.standbys.of(peer)
        before_hello = False
        if standby is not None and standby.fork is not None and standby.fork.pid == pid:
            standby.fork, before_hello = None, self._taking is standby
        if before_hello:
            self._taking = None
            self._lost_before_ready(what)
        elif self.server is None and self._taking is None and not self.failures:
            self.not_before = 0.0  # it will not hand anything over any more
            self.consider()

    def hello(self, peer: Peer) -> bool:
        """A server wants the descriptors; False when another one has them."""
        if self._unwanted is not None or (self.server is not None and self.server.alive()):
            return False
        if self.server is not None:
            self.gone(self.server)
        peer.fork, self._taking = self._taking.fork if self._taking is not None else None, None
        self.server, self.ready, self._said_why = peer, False, False
        self.restarts += 1
        self._owner.hand_out(peer)
        self._loop.after(_SILENT_S, lambda heard=peer.heard: self._look_at_start(peer, heard))  # type: ignore[misc]
        return True

    def _look_at_start(self, server: Peer, heard: int) -> None:
        """End a server that hangs: while one starts, nobody else answers those who wait."""
        if self.server is server and not self.ready and server.heard == heard:
            self._end_silent(server, f"the server said nothing for {_SILENT_S:g} s")

    def _end_silent(self, server: Peer, problem: str) -> None:
        self.problem, self._said_why = problem, True
        say(f"{problem}: pid {server.pid} is ended")
        self.kill(server)

    def kill(self, server: Peer) -> None:
        """SIGKILL: from here, or from the stand-by that has forked it where signals of ours do not get to."""
        if server.signal(signal.SIGKILL):
            return
        fork = server.fork or self.standbys.only_fork
        if fork is not None and fork.pid and fork.parent.send({"op": "kill", "pid": fork.pid}):
            say(f"its stand-by is asked to end it (pid {fork.pid} there)")
        else:
            say("nobody can end it")

    def adopted(self, peer: Peer, *, ready: bool, finished: bool) -> None:
        """A server that outlived the keeper before this one has handed everything over."""
        self.told = True
        if finished:
            self.upgrade.leaves(peer)
            self.not_before = time.monotonic() + _HEIR_S
            self.consider()
            return
        self.server, self.ready, self._taking, self.not_before = peer, ready, None, 0.0
        self._ready_at = self.well_at = time.monotonic()
        self._loop.after(STEADY_S, self._have_a_standby)

    def is_ready(self, peer: Peer) -> None:
        if peer is not self.server:
            return
        self.ready, self.told = True, True
        self._ready_at = time.monotonic()
        self._owner.first_answer({"ok": True})
        self.upgrade.is_ready()
        self._thin_out()
        self._loop.after(STEADY_S, self._have_a_standby)

    def has_failed(self, peer: Peer, error: str) -> None:
        """A server says why it cannot serve."""
        if peer is self.server:
            self.problem, self._said_why = error, True
            if not self.told:
                self._owner.give_up({"error": error})

    def has_finished(self, peer: Peer) -> None:
        """The old server answers no more, and waits with its descriptors for the next one."""
        if peer is self.server:
            say("server handed over")
            self._lose()
            self.upgrade.leaves(peer)
            self._loop.after(0, self.consider)

    def gone(self, peer: Peer) -> None:
        """A process has ended, or its connection where nothing else tells."""
        standby = self.standbys.of(peer)
        if standby is not None:
            self.standbys.drop(standby)
            self.upgrade.standby_gone(standby)
            if self._taking is standby:
                self._taking = None
                self._lost_before_ready("the stand-by ended before it took over")
            elif self.server is not None:
                self._loop.after(STEADY_S, self._have_a_standby)
        self.upgrade.gone(peer)
        if self._unwanted is not None and self._unwanted.peer is peer:  # and it has taken its server along
            self._unwanted = None
            self.consider()
        if peer is not self.server:
            return
        was_ready, steady = self.ready, self._lose()
        if self.upgrade.waits_for_heir:  # it was asked to finish, and has ended
            self._owner.server_lost()
            self.consider()
            return
        if was_ready:
            if not steady:
                self._note_failure()
            self._owner.server_lost()
            self.consider()
        else:
            self._lost_before_ready("the server ended")

    def _lose(self) -> bool:
        """Nobody serves now. Whether who did was well: then that is since when somebody may wait."""
        now = time.monotonic()
        steady = self.ready and now - self._ready_at >= STEADY_S
        if steady:
            self.begin_anew()
            self.well_at, self.problem = now, ""
        self.server = None
        return steady

    def _lost_before_ready(self, what: str) -> None:
        if not self.told:

            def tell() -> None:  # whoever has forked it says with which status it ended
                problem = self.problem or what
                self._owner.give_up({"error": f"{problem} before it was ready", "unexpected": True})

            self._loop.after(0.2, tell)
            return
        if self.upgrade.was_taken:
            self.upgrade.heir_failed(self.problem or what)
        else:
            self._note_failure()
        self._owner.server_lost()
        self.consider()

    # -- the end ----------------------------------------------------------------------------------------------------

    def _thin_out(self) -> None:
        """One stand-by of ours is enough, while somebody serves."""
        if self._starter.ours and self.server is not None and not self.upgrade.going_on:
            self.standbys.thin_out()

    def end(self) -> None:
        """The mount has ended; stand-bys have nothing to wait for."""
        self.upgrade.forget()
        self._unwanted, self._taking = self._taking, None
        self.standbys.dismiss_all()

    def stop(self, patience_s: float) -> None:
        """End the server, and all stand-bys of ours. Waits."""
        self.stopping = True
        server = self.server
        if server is not None:
            server.send({"op": "end"}) if server.version >= 2 else None
            server.signal(signal.SIGTERM)
            if not server.wait(patience_s):
                self.kill(server)
                server.wait(patience_s)
        self.standbys.dismiss_all()
        self.upgrade.stop()
        self._starter.stop()
