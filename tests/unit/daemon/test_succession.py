"""Who serves and who is next, over real sockets: a keeper's loop, with peers that are processes of their own."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.keeping import silence
from daemon.keeping import succession as module
from daemon.keeping.conversation import Conversation
from daemon.keeping.loop import Loop
from daemon.keeping.peers import ANOTHER, Peer
from daemon.keeping.refusal import Refusal
from daemon.keeping.silence import LONGEST, LONGEST_OF_PYFUSE3, TICK_S, Silence
from daemon.keeping.succession import Succession
from daemon.keeping.table import Table

# Says what it is told on its stdin, a line a message, and what it hears on its stdout. A line "hello" is short for one.
_PEER = """
import os, select, socket, sys
link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.connect(sys.argv[1])
while True:
    ready, _w, _x = select.select([0, link], [], [])
    if link in ready:
        raw = link.recv(65536)
        if not raw:
            break
        os.write(1, raw + b"\\n")
    if 0 in ready:
        line = os.read(0, 4096)
        if not line:
            break
        for message in line.split(b"\\n")[:-1]:
            link.send(message)
"""


class Owner:
    """A keeper that mounts nothing, and notes what it is asked for."""

    def __init__(self) -> None:
        self.lost = 0
        self.reasons: list[dict[str, Any]] = []

    def be_found(self) -> None:
        pass

    def hand_out(self, server: Peer) -> None:
        server.send({"version": server.version, "restarts": 0, "connections": 0, "held": 0})

    def server_lost(self) -> None:
        self.lost += 1

    def first_answer(self, message: dict[str, Any]) -> None:
        self.reasons.append(message)

    def give_up(self, reason: dict[str, Any]) -> None:
        self.reasons.append(reason)

    def look(self) -> dict[str, Any]:
        return {}

    def unmounted(self, peer: Peer) -> None:
        raise AssertionError("nothing is mounted")

    def end(self, peer: Peer) -> None:
        raise AssertionError("nobody unmounts")


class Another:
    """A process at the other end."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PEER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def says(self, **message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def hears(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 20)[0], "it hears nothing"
        heard: dict[str, Any] = json.loads(self._process.stdout.readline())
        return heard

    @property
    def is_told(self) -> bool:
        """Whether there is something for it to hear."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class Keeping:
    """``succession`` as in a keeper whose servers are started by others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = Loop()
        self.owner = Owner()
        self.succession = Succession(self.loop, self.owner, None, 0)
        self.succession.told = True
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(path))
        listener.listen()
        table = Table()
        self.conversation = Conversation(self.loop, listener, self.owner, table, Refusal(self.loop), self.succession)
        self.loop.watch(listener.fileno(), self.conversation.accept)
        self._listener = listener
        self._others: list[Another] = []

    def another(self) -> Another:
        made = Another(self.path)
        self._others.append(made)
        return made

    def standby(self, *, takes_over: bool = False) -> Another:
        """One that has registered."""
        made = self.another()
        known = len(self.succession.standbys)
        made.says(op="standby", version=2, started=time.monotonic(), takes_over=takes_over)
        self.run_until(lambda: len(self.succession.standbys) > known)
        return made

    def server(self) -> Another:
        """One that is ready."""
        made = self.another()
        before = self.succession.restarts
        made.says(op="hello", version=2)
        made.says(op="ready")
        self.run_until(lambda: self.succession.restarts > before and self.succession.ready)
        return made

    def run_until(self, reached: Callable[[], object], within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s

        def look() -> None:
            if reached() or time.monotonic() > deadline:
                self.loop.stop()
            else:
                self.loop.after(0.01, look)

        self.loop.running = True
        self.loop.after(0, look)
        self.loop.run()
        assert reached()

    def close(self) -> None:
        for other in self._others:
            other.end()
        watched = self.loop._selector.get_map()
        self.run_until(lambda: len(watched) == 2)  # listener and loop: no peer leaves anything
        self._listener.close()
        self.loop._selector.close()
        for fd in (self.loop._wake_r, self.loop.wake_fd):
            os.close(fd)


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Keeping]:
    made = Keeping(tmp_path / "keeper.sock")
    try:
        yield made
    finally:
        made.close()


def steady(keeping: Keeping) -> None:
    """Its server was ready for a while, long after anybody waited."""
    keeping.succession._ready_at -= 10 * module.STEADY_S
    keeping.succession.well_at -= 1000.0


def test_patience_begins_when_a_server_hands_over(keeping: Keeping) -> None:
    server = keeping.server()
    steady(keeping)
    before = time.monotonic()
    server.says(op="finished")
    keeping.run_until(lambda: keeping.succession.server is None)
    assert keeping.succession.well_at >= before


def test_patience_begins_when_a_server_dies_instead_of_handing_over(keeping: Keeping) -> None:
    server = keeping.server()
    steady(keeping)
    before = time.monotonic()
    keeping.standby(takes_over=True)
    assert server.hears()["restarts"] == 0
    assert server.hears() == {"op": "finish"}
    server.end()
    keeping.run_until(lambda: keeping.owner.lost)
    assert keeping.succession.well_at >= before


def test_an_heir_that_dies_before_its_turn_is_not_waited_for(keeping: Keeping) -> None:
    old = keeping.standby()
    assert old.hears()["op"] == "take"
    server = keeping.server()
    heir = keeping.standby(takes_over=True)
    assert keeping.succession.upgrade.going_on
    heir.end()
    keeping.run_until(lambda: not keeping.succession.upgrade.going_on)
    server.says(op="finished")
    keeping.run_until(lambda: keeping.succession.server is None)
    keeping.run_until(lambda: keeping.succession.state() == "starting")
    assert old.hears()["op"] == "take"


def test_a_server_that_says_nothing_is_ended(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENT_S", 0.3)
    server = keeping.another()
    server.says(op="hello", version=2)
    keeping.run_until(lambda: keeping.owner.lost)
    keeping.run_until(lambda: server.status is not None)
    assert server.status == -signal.SIGKILL
    assert "said nothing" in keeping.succession.problem
    slow = keeping.another()
    slow.says(op="hello", version=2)
    slow.says(op="state", name="/", state={})
    keeping.run_until(lambda: keeping.succession.server is not None)
    reached = time.monotonic() + 1.0
    keeping.run_until(lambda: time.monotonic() > reached)
    assert slow.status is None


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "TICK_S", 0.2)


def test_a_server_that_goes_silent_is_ended(keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "TICK_S", 0.5)  # which one that lives gets to speak in, on a busy machine too
    server = keeping.server()
    for _ in range(LONGEST + 2):
        server.says(op="alive")
        waited = time.monotonic() + silence.TICK_S
        keeping.run_until(lambda waited=waited: time.monotonic() > waited)
    assert server.status is None
    keeping.run_until(lambda: keeping.owner.lost)
    assert server.status == -signal.SIGKILL


@pytest.mark.usefixtures("fast")
def test_a_server_of_an_older_version_may_be_silent(keeping: Keeping) -> None:
    server = keeping.server()
    other = keeping.another()
    other.says(op="alive")  # nobody who serves
    waited = time.monotonic() + 2 * LONGEST * silence.TICK_S
    keeping.run_until(lambda: time.monotonic() > waited)
    assert server.status is None
    assert other.status is None


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("killed", [True, False])
def test_a_silent_server_that_cannot_be_killed_keeps_the_others_out(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Stuck in the kernel, on a disk that is gone, it is told once; where no signal reaches it too, until it lives."""
    server = keeping.server()
    signals = []
    monkeypatch.setattr(Peer, "signal", lambda _self, number: signals.append(number) or killed)
    server.says(op="alive")
    keeping.run_until(lambda: signals)
    waited = time.monotonic() + 2 * LONGEST * silence.TICK_S
    keeping.run_until(lambda: time.monotonic() > waited)
    assert signals == [signal.SIGKILL]
    next_one = keeping.another()
    next_one.says(op="hello", version=3)
    keeping.run_until(lambda: next_one.is_told)
    assert next_one.hears()["error"] == ANOTHER
    server.says(op="alive")
    keeping.run_until(lambda: len(signals) == 2)


@pytest.mark.usefixtures("fast")
def test_a_server_whose_mount_is_its_own_may_be_silent_for_longer(
    keeping: Keeping, capfd: pytest.CaptureFixture[str]
) -> None:
    keeping.succession.watch.longest = LONGEST_OF_PYFUSE3
    server = keeping.server()
    began = time.monotonic()
    server.says(op="alive")
    keeping.run_until(lambda: keeping.owner.lost)
    assert time.monotonic() - began >= LONGEST_OF_PYFUSE3 * silence.TICK_S
    assert f"nothing for {LONGEST_OF_PYFUSE3 * silence.TICK_S:g} s" in capfd.readouterr().err


@pytest.mark.usefixtures("fast")
def test_a_server_that_has_finished_may_be_silent(keeping: Keeping) -> None:
    server = keeping.server()
    server.says(op="alive")
    server.says(op="finished")
    keeping.run_until(lambda: keeping.succession.server is None)
    waited = time.monotonic() + 2 * LONGEST * silence.TICK_S
    keeping.run_until(lambda: time.monotonic() > waited)
    assert server.status is None


def test_what_a_keeper_does_not_see_is_no_silence() -> None:
    """A machine that slept, a keeper that was stopped, and one on which nobody gets any time."""
    told = Silence(heard=7, ticked=0.0)
    now = 0.0
    for _ in range(LONGEST - 1):
        now += TICK_S
        assert not told.is_too_long(7, now)
    for _ in range(10 * LONGEST):  # however often
        now += 1000.0
        assert not told.is_too_long(7, now)
    assert not told.is_too_long(8, now + TICK_S)
    ticks = [told.is_too_long(8, now + TICK_S * number) for number in range(2, LONGEST + 2)]
    assert ticks == [False] * (LONGEST - 1) + [True]


def test_the_server_that_is_ended_by_its_stand_by_is_the_one_that_was_meant(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two of one stand-by: the one that has finished, and the one that serves since an upgrade failed."""
    standby = keeping.standby()
    assert standby.hears()["op"] == "take"
    server = keeping.another()
    server.says(op="hello", version=2)
    keeping.run_until(lambda: keeping.succession.server is not None)
    finished = keeping.succession.server
    assert finished is not None
    server.says(op="ready")
    server.says(op="finished")
    keeping.run_until(lambda: keeping.succession.server is None)
    assert standby.hears()["op"] == "take"
    standby.says(op="forked", pid=1001)  # late: each process says so in its time
    standby.says(op="forked", pid=1002)
    keeping.server()
    forks = [finished.fork, keeping.succession.server.fork]
    keeping.run_until(lambda: [fork and fork.pid for fork in forks] == [1001, 1002])
    monkeypatch.setattr(Peer, "signal", lambda _self, _number: False)  # they live in another pid namespace
    keeping.succession.kill(finished)
    assert standby.hears() == {"op": "kill", "pid": 1001}
    assert keeping.succession.server is not None
    keeping.succession.kill(keeping.succession.server)
    assert standby.hears() == {"op": "kill", "pid": 1002}


def test_nobody_is_let_in_while_a_server_hands_everything_over(keeping: Keeping) -> None:
    adopting = keeping.another()
    adopting.says(op="adopt", version=2, restarts=3, ready=True, connections=0, held=2)
    adopting.says(name="one")
    keeping.run_until(lambda: keeping.conversation.adoption.awaited)
    early = keeping.another()
    early.says(op="hello", version=2)
    keeping.run_until(lambda: keeping.conversation.adoption.early)
    adopting.says(name="two")
    assert adopting_says(keeping, adopting) == {"version": 2, "ok": True}
    assert early.hears()["error"] == ANOTHER
    assert keeping.succession.restarts == 3


# Says hello, and hands everything over on another connection before it was ready.
_TWICE = """
import json, socket, sys
links = []
for message in ({"op": "hello", "version": 2}, {"op": "adopt", "version": 2, "ready": True}):
    links.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    links[-1].connect(sys.argv[1])
    links[-1].send(json.dumps(message).encode())
    answer = links[-1].recv(65536)
print(answer.decode())
"""


def test_a_server_that_comes_again_before_it_was_ready_is_not_ended(keeping: Keeping) -> None:
    argv = [sys.executable, "-c", _TWICE, keeping.path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        keeping.run_until(lambda: server.poll() is not None)
        assert server.returncode == 0
        assert server.stdout is not None
        assert json.loads(server.stdout.read()) == {"version": 2, "ok": True}


def test_a_server_that_dies_over_handing_over_is_not_waited_for(keeping: Keeping) -> None:
    adopting = keeping.another()
    adopting.says(op="adopt", version=2, restarts=3, ready=True, connections=0, held=2)
    keeping.run_until(lambda: keeping.conversation.adoption.awaited)
    early = keeping.another()
    early.says(op="hello", version=2)
    keeping.run_until(lambda: keeping.conversation.adoption.early)
    adopting.end()
    keeping.run_until(lambda: keeping.succession.server is not None)
    assert early.hears()["connections"] == 0


def adopting_says(keeping: Keeping, adopting: Another) -> dict[str, Any]:
    keeping.run_until(lambda: keeping.succession.server is not None)
    return adopting.hears()


def test_a_mount_that_ends_while_a_server_starts_is_not_made_again(keeping: Keeping) -> None:
    standby = keeping.standby()
    assert standby.hears()["op"] == "take"
    keeping.succession.end()
    assert standby.hears() == {"op": "go"}
    late = keeping.another()
    late.says(op="hello", version=2)
    keeping.run_until(lambda: late.is_told)
    assert "error" in late.hears()
    standby.end()
    keeping.server()


@pytest.mark.parametrize("raw", [b"{", b"[]", b"null"])
def test_what_makes_no_sense_leaves_no_descriptor(keeping: Keeping, raw: bytes) -> None:
    keeping.run_until(lambda: True)
    gc.collect()  # what tests before this one have left open
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.connect(str(keeping.path))
        socket.send_fds(link, [raw], [0])
        keeping.run_until(lambda link=link: select.select([link], [], [], 0)[0])  # it is hung up
        link.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_peers_beyond_1023_descriptors(keeping: Keeping) -> None:
    """A keeper has a descriptor for each dataset: select() ends at 1024."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("no more than 1024 descriptors are allowed here")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    many = [socket.socket(socket.AF_UNIX) for _ in range(1100)]
    try:
        server = keeping.server()
        peer = keeping.succession.server
        assert peer is not None
        assert peer.sock.fileno() > 1023
        assert peer.alive()
        assert not peer.wait(0.01)
        keeping.conversation.drain(peer)
        server.end()
        assert peer.wait(10)
        keeping.conversation.drain(peer)
        assert peer.closed
    finally:
        for each in many:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
