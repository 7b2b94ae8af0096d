"""Who serves, and who is next: stand-bys are asked to take over, servers come and go, one at a time.

A *stand-by* is a process that has imported all that a server needs and forks one when it is told to. The keeper starts
stand-bys itself (``argv``), or waits for those that somebody else starts. An upgrade is a fresh stand-by: it proves
that the new version can start; then the old server finishes, keeps its descriptors until the new one is ready, and
should that fail, the old stand-by serves again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from daemon.keeping.loop import Loop, say
from daemon.keeping.peers import Peer

STEADY_S = 1.0  # a server that was ready for so long did not fail at its start
_LONGEST_WAIT_S = 10.0
_FRESH_AFTER = 3  # servers that failed at their start, one after the other: the next is of what is installed by then
_TAKE_S = 15.0  # from being told to take over to saying hello
_FINISH_S = 8.0
_REGISTER_S = 60.0
_RELEASED_S = 3.0
_HEIR_S = 1.0  # how long the successor of a server that was finishing may take to show up at a new keeper


class Owner(Protocol):
    """What the keeper does when this has decided."""

    def hand_out(self, server: Peer) -> None: ...

    def server_lost(self) -> None: ...

    def first_answer(self, message: dict[str, Any]) -> None: ...

    def give_up(self, reason: dict[str, Any]) -> None: ...


@dataclass(eq=False)
class StandBy:
    peer: Peer
    started: float  # of the process, monotonic s: the newest is the newest version
    stale: bool = False  # what is installed has changed since
    forked: int = 0  # pid of the latest server


@dataclass(eq=False)
class Handover:
    """An upgrade on its way. ``heir`` is who takes over, once it has registered; ``took``: it was asked to."""

    answer_to: list[Peer] = field(default_factory=list)
    heir: StandBy | None = None
    took: bool = False


class Succession:
    def __init__(self, loop: Loop, owner: Owner, argv: list[str] | None) -> None:
        self._loop = loop
        self._owner = owner
        self._argv = argv
        self.can_hand_over = True
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
        self._standbys: list[StandBy] = []
        self._leaving: Peer | None = None
        self._handover: Handover | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._starting: subprocess.Popen[bytes] | None = None
        self._failed_starts = 0
        self._said = -1  # what the one that is starting writes to its stderr

    def state(self) -> str:
        """One word for ``dsfs status``."""
        if self.server is not None:
            return "serving" if self.ready else "starting"
        return "waiting" if self.not_before > time.monotonic() else "starting"

    # -- the next server ------------------------------------------------------------------------------------------

    def consider(self) -> None:
        """Have somebody serve, if nobody does and it is time."""
        if self.stopping or self.server is not None or self._taking is not None:
            return
        wait_s = self.not_before - time.monotonic()
        if wait_s > 0:
            self._loop.after(wait_s, self.consider)
            return
        chosen = self._choose()
        if chosen is not None:
            self._take(chosen)
        elif self._argv is not None and self._starting is None:
            self._start()

    def _choose(self) -> StandBy | None:
        if self._handover is not None and not self._handover.took:
            if self._handover.heir is not None:
                self._handover.took = True
            return self._handover.heir
        usable = [each for each in self._standbys if not each.stale or self._argv is None]
        if not usable and self._failed_starts:
            usable = self._standbys  # better the version that ran than none
        return max(usable, key=lambda each: each.started, default=None)

    def _take(self, standby: StandBy) -> None:
        self._taking, standby.forked = standby, 0
        standby.peer.send({"op": "take", "stale": standby.stale})

        def look() -> None:
            if self._taking is standby:
                self._taking = None
                say(f"stand-by {standby.peer.pid} does not take over")
                standby.peer.signal(signal.SIGKILL)
                self._drop(standby)
                self.consider()

        self._loop.after(_TAKE_S, look)

    def _start(self) -> None:
        """Start a stand-by of what is installed now."""
        assert self._argv is not None
        # What it says before it can run code of ours is the reason why it cannot: it goes where we can read it, and the
        # stand-by writes into our log from there on.
        self._close_said()
        self._said = os.memfd_create("stderr", os.MFD_CLOEXEC)
        log = os.dup(2)
        try:
            argv = [*self._argv, f"--log={log}"]
            self._starting = subprocess.Popen(argv, stderr=self._said, pass_fds=[log])
        except OSError as error:  # no memory, or an installation that is just being replaced
            self._start_failed(f"no server can be started: {error}", unexpected=False)
            return
        finally:
            os.close(log)
        self._children.append(self._starting)

    def _close_said(self) -> str:
        """The last line of what a stand-by said while it started; all of it goes to the log."""
        if self._said < 0:
            return ""
        os.lseek(self._said, 0, os.SEEK_SET)
        with open(self._said, encoding="utf-8", errors="replace") as file:
            text = file.read().strip()
        self._said = -1
        if text:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        return text.rpartition("\n")[2]

    def _start_failed(self, problem: str, *, unexpected: bool) -> None:
        self._failed_starts += 1
        self.problem = problem
        say(problem)
        if not self.told:
            self._owner.give_up({"error": problem, **({"unexpected": True} if unexpected else {})})
            return
        if self._handover is not None and self._handover.heir is None:
            self._end_handover(f"the new version does not start, the old one stays: {problem}")
        if self.server is None:
            if not self._standbys:
                self._note_failure()
            self.consider()
        else:
            self._loop.after(self._pause(self._failed_starts), self._have_a_standby)

    def _have_a_standby(self) -> None:
        fresh = any(not each.stale for each in self._standbys)
        if self._argv is not None and not fresh and self._starting is None and not self.stopping:
            self._start()

    @staticmethod
    def _pause(failures: int) -> float:
        return 0.0 if failures <= 1 else min(0.1 * 2.0 ** min(failures - 1, 10), _LONGEST_WAIT_S)

    def _note_failure(self) -> None:
        self.failures += 1
        self.not_before = time.monotonic() + self._pause(self.failures)
        if self.failures >= _FRESH_AFTER and self._argv is not None:
            for standby in list(self._standbys):
                self._dismiss(standby)

    def look_after_children(self) -> None:
        """After a SIGCHLD."""
        for child in list(self._children):
            if child.poll() is None:
                continue
            self._children.remove(child)
            if child is self._starting:
                self._starting = None
                said = self._close_said()
                what = f"the server ended with status {child.returncode} before it was ready"
                self._start_failed(f"{what}: {said}" if said else what, unexpected=True)

    # -- what peers say -------------------------------------------------------------------------------------------

    def standby(self, peer: Peer, started: float, *, takes_over: bool) -> None:
        """A stand-by is ready to fork servers; ``takes_over``: it wants to, as an upgrade."""
        standby = StandBy(peer, started)
        self._standbys.append(standby)
        mine = self._starting is not None and self._starting.pid == peer.pid
        if mine:
            self._starting = None
            self._close_said()
            self._failed_starts = 0
        handover = self._handover
        if handover is not None and handover.heir is None and mine:
            handover.heir = standby
            self._ask_to_finish()
        elif takes_over and self.server is not None and handover is None:
            self._handover = Handover(heir=standby)
            self._ask_to_finish()
        elif self._argv is not None and self.server is not None:
            self._thin_out()
        self.consider()

    def expect_adoption(self, within_s: float) -> None:
        """A server lives and is about to hand over what it has: nobody else may serve before that."""
        if self.server is None:
            self.not_before = max(self.not_before, time.monotonic() + within_s)

    def stale(self, peer: Peer) -> None:
        """A stand-by was asked to take over, and has seen that another version is installed by now."""
        for standby in self._standbys:
            if standby.peer is peer:
                standby.stale = True
                if self._taking is standby:
                    self._taking = None
        self.consider()

    def forked(self, peer: Peer, pid: int) -> None:
        if self._taking is not None and self._taking.peer is peer:
            self._taking.forked = pid

    def forked_ended(self, peer: Peer, pid: int, status: int) -> None:
        """A stand-by tells how its server has ended."""
        say(f"server {pid} ended with status {status}")
        what = f"the server ended with status {status}"
        if status and not self._said_why:
            self.problem = what
        if self._taking is not None and self._taking.forked == pid:  # before it said hello
            self._taking = None
            self._lost_before_ready(what)
        elif self.server is None and self._taking is None and not self.failures:
            self.not_before = 0.0  # it will not hand anything over any more
            self.consider()

    def hello(self, peer: Peer) -> bool:
        """A server wants the descriptors; False when another one has them."""
        if self.server is not None and self.server.alive():
            return False
        if self.server is not None:
            self.gone(self.server)
        self._taking = None
        self.server, self.ready, self._said_why = peer, False, False
        self.restarts += 1
        self._owner.hand_out(peer)
        return True

    def adopted(self, peer: Peer, *, ready: bool, finished: bool) -> None:
        """A server that outlived the keeper before this one has handed everything over."""
        self.told = True
        if finished:
            self._leaving = peer
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
        if self._handover is not None:
            handover, self._handover = self._handover, None
            for each in handover.answer_to:
                each.send({"ok": True})
        if self._leaving is not None:
            self._release(self._leaving)
        self._thin_out()
        self._loop.after(STEADY_S, self._have_a_standby)

    def has_failed(self, peer: Peer, error: str) -> None:
        """A server says why it cannot serve."""
        if peer is self.server:
            self.problem, self._said_why = error, True
            if not self.told:
                self._owner.give_up({"error": error})

    def has_finished(self, peer: Peer) -> None:
        """The old server answers no more; it keeps its descriptors until it is told to go."""
        if peer is self.server:
            say("server handed over")
            self.server, self._leaving = None, peer
            self._loop.after(0, self.consider)

    def gone(self, peer: Peer) -> None:
        """A process has ended, or its connection where nothing else tells."""
        for standby in [each for each in self._standbys if each.peer is peer]:
            self._drop(standby)
            if self._taking is standby:
                self._taking = None
                self._lost_before_ready("the stand-by ended before it took over")
            elif self.server is not None:
                self._loop.after(STEADY_S, self._have_a_standby)
        if peer is self._leaving:
            self._leaving = None
        if peer is not self.server:
            return
        now = time.monotonic()
        was_ready, self.server = self.ready, None
        steady = was_ready and now - self._ready_at >= STEADY_S
        if self._handover is not None and not self._handover.took:  # it was asked to finish, and has ended
            self._owner.server_lost()
            self.consider()
            return
        if steady:
            self.failures, self.not_before, self.well_at = 0, 0.0, now
            self.problem = ""
        if was_ready:
            if not steady:
                self._note_failure()
            self._owner.server_lost()
            self.consider()
        else:
            self._lost_before_ready("the server ended")

    def _lost_before_ready(self, what: str) -> None:
        if not self.told:

            def tell() -> None:  # whoever has forked it says with which status it ended
                problem = self.problem or what
                self._owner.give_up({"error": f"{problem} before it was ready", "unexpected": True})

            self._loop.after(0.2, tell)
            return
        if self._handover is not None and self._handover.took:
            heir = self._handover.heir
            self._end_handover(f"the new version does not start, the old one serves again: {self.problem or what}")
            if heir is not None and len(self._standbys) > 1:
                self._dismiss(heir)
        else:
            self._note_failure()
        self._owner.server_lost()
        self.consider()

    # -- upgrades -------------------------------------------------------------------------------------------------

    def restart(self, peer: Peer) -> None:
        """Have a server of what is installed now take over; the peer is told how that went."""
        if not self.can_hand_over:
            peer.send({"error": "the pyfuse3 session cannot hand over: unmount, and mount again"})
        elif self._argv is None:
            peer.send({"error": "its servers are started by others: start the new version's dsfs serve, it takes over"})
        elif self._handover is not None:
            self._handover.answer_to.append(peer)
        else:
            self._handover = Handover([peer])
            self._start_heir(self._handover)

    def _start_heir(self, handover: Handover) -> None:
        if self.server is None:  # nobody serves: whoever waits is of a version that fails
            for standby in list(self._standbys):
                self._dismiss(standby)
            self.failures, self.not_before = 0, 0.0
        if self._starting is not None:  # of what was installed before
            self._starting.kill()
            self._starting = None
        self._start()

        def look() -> None:
            if self._handover is handover and handover.heir is None:
                if self._starting is not None:
                    self._starting.kill()
                self._end_handover(f"the new version does not start within {_REGISTER_S:g} s, the old one stays")

        self._loop.after(_REGISTER_S, look)

    def _ask_to_finish(self) -> None:
        old = self.server
        if old is None:
            self.consider()
            return
        if old.version >= 2:
            old.send({"op": "finish"})
        else:
            old.signal(signal.SIGTERM)

        def look() -> None:
            if self.server is old:
                say(f"server {old.pid} does not finish")
                old.signal(signal.SIGKILL)

        self._loop.after(_FINISH_S, look)

    def _end_handover(self, problem: str) -> None:
        handover, self._handover = self._handover, None
        say(problem)
        for each in handover.answer_to if handover else ():
            each.send({"error": problem})

    def _release(self, peer: Peer) -> None:
        peer.send({"op": "go"})

        def look() -> None:
            if self._leaving is peer:
                peer.signal(signal.SIGKILL)

        self._loop.after(_RELEASED_S, look)

    # -- stand-bys come and go ------------------------------------------------------------------------------------

    def _thin_out(self) -> None:
        """One stand-by of ours is enough: the newest."""
        if self._argv is None or self._handover is not None:
            return
        for standby in sorted(self._standbys, key=lambda each: each.started)[:-1]:
            self._dismiss(standby)

    def _dismiss(self, standby: StandBy) -> None:
        standby.peer.send({"op": "go"})
        self._drop(standby)

    def _drop(self, standby: StandBy) -> None:
        if standby in self._standbys:
            self._standbys.remove(standby)

    def end(self) -> None:
        """The mount has ended; stand-bys have nothing to wait for."""
        self._handover = None
        for standby in list(self._standbys):
            self._dismiss(standby)

    def stop(self, patience_s: float) -> None:
        """End the server, and all stand-bys of ours. Waits."""
        self.stopping = True
        server = self.server
        if server is not None:
            server.send({"op": "end"}) if server.version >= 2 else None
            server.signal(signal.SIGTERM)
            if not server.wait(patience_s):
                server.signal(signal.SIGKILL)
                server.wait(patience_s)
        for standby in list(self._standbys):
            self._dismiss(standby)
        if self._leaving is not None:
            self._leaving.signal(signal.SIGKILL)
        for child in self._children:
            try:
                child.wait(1)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
