"""The keeper: mounts, holds every connection's descriptor, has servers started and hands the descriptors to them.

It imports the standard library only and never talks to the network: what must not die should do little. A server may
die at any moment; the keeper holds duplicates of all descriptors, so the kernel keeps the requests, and the next server
answers them. The keeper may die too: the server that lives starts another and hands everything back.

    python -m daemon.keeper RUNTIME_DIR READY_FD     beside `dsfs mount`
    python -m daemon.keeper RUNTIME_DIR --adopt      started by a server that has lost its keeper
    python -m daemon.keeper --alone SOCKET PATIENCE_S   `dsfs keeper`: others start the servers

RUNTIME_DIR holds ``keeper.json`` (mountpoint, server_argv, own_mounts, patience_s; ends_with, the pid of a command in
the foreground) and gets ``keeper.sock``. READY_FD takes one line of JSON: {"ok": true} once the first server is ready,
or {"error": "…"}, with "unexpected": true when only the log says why.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from typing import Any

from daemon.keeping.conversation import Conversation
from daemon.keeping.loop import Loop, say
from daemon.keeping.mounting import detach, mount_table
from daemon.keeping.peers import VERSION, Peer
from daemon.keeping.refusal import Refusal
from daemon.keeping.silence import LONGEST_OF_PYFUSE3
from daemon.keeping.succession import Succession
from daemon.keeping.table import Table
from daemon.locks import take_within
from daemon.process import end_last, end_with, end_with_reaper, name_process

_SERVER_STOP_S = 8.0
_LOCK_S = 5.0
_ADOPTION_S = 10.0
_GRACE_S = 1.0  # for a server that has outlived a keeper and looks for the next
_PATIENCE_S = 30.0


class Keeper:
    """``alone``: servers are started by others, and mounts are left to whoever else holds them when this ends."""

    def __init__(
        self, lock_path: str, socket_path: str, config: dict[str, Any], directory: str = "", ready_fd: int = -1
    ) -> None:
        self._lock_path = lock_path
        self._directory = directory
        self._socket_path = socket_path
        self._ready_fd = ready_fd
        self._mountpoint: str = config.get("mountpoint", "")
        self._own_mounts: bool = config.get("own_mounts", True)  # False: the server mounts, with libfuse
        self._alone = "server_argv" not in config
        self._patience_s = float(config.get("patience_s", _PATIENCE_S))
        self._loop = Loop()
        self._table = Table()
        self._refusal = Refusal(self._loop)
        argv = None if self._alone else [*config["server_argv"], directory]
        self._succession = Succession(self._loop, self, argv, end_last())
        self._succession.upgrade.possible = self._own_mounts
        if not self._own_mounts:
            self._succession.watch.longest = LONGEST_OF_PYFUSE3
        self._status = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._peers = Conversation(self._loop, self._listener, self, self._table, self._refusal, self._succession)

    # -- life -----------------------------------------------------------------------------------------------------

    def run(self, *, adopt: bool = False) -> int:
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor for each dataset
        if not self._lock():
            say(f"another keeper has {self._lock_path}")
            return 1
        signal.set_wakeup_fd(self._loop.wake_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._listen(self._listener)
        self._loop.watch(self._listener.fileno(), self._peers.accept)
        if adopt or self._alone:
            self._succession.told = True
        if self._alone:
            self._table.careful = self._table.made = True
            self._table.restore()
            self._succession.expect_adoption(_GRACE_S)
            self._server_due()
        elif adopt:
            self._table.careful = self._peers.adoption.awaited = True
            self._succession.not_before = time.monotonic() + _ADOPTION_S  # who serves is about to say so
            self._loop.after(_ADOPTION_S, self._look_for_adoption)
        else:
            self._succession.consider()
        self._loop.run()
        self._stop()
        return self._status

    def _lock(self) -> bool:
        """Held for life: a runtime directory without it belongs to a dead keeper."""
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not take_within(fd, _LOCK_S):
            return False
        pid = f"{os.getpid()}\n".encode()
        os.pwrite(fd, pid.ljust(os.fstat(fd).st_size), 0)  # over the one before, as it is read at any moment
        os.ftruncate(fd, len(pid))
        return True

    def _listen(self, listener: socket.socket) -> None:
        """In the place of a keeper that died, as the lock says; who finds the socket can connect to it."""
        made = f"{self._socket_path}+"
        if os.path.lexists(made):
            os.unlink(made)
        listener.bind(made)
        os.chmod(made, 0o600)
        listener.listen(64)
        os.rename(made, self._socket_path)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGCHLD:
            self._loop.soon(self._succession.look_after_children)
        elif number == signal.SIGHUP:
            self._loop.soon(lambda: self._succession.upgrade.restart(_tell_restart))
        else:
            self._loop.soon(self._loop.stop)

    def _look_for_adoption(self) -> None:
        if self._succession.server is None and not self._table.connections:
            say("nobody hands anything over")
            self._status = 1
            self._loop.stop()

    def _stop(self) -> None:
        """Detach the tree first, so that nobody starts something new in it, then end the server."""
        self._refusal.stop()
        self._succession.stopping = True  # should its server be dead by now, nobody is to take over
        if self._succession.server is not None:
            self._peers.drain(self._succession.server)
        if self._alone and (self._table.stored or self._succession.server is not None):
            say("the mounts stay with those who hold them too")
            return
        self._unmount_all()
        self._succession.stop(_SERVER_STOP_S)
        if not self._own_mounts:
            detach(self._mountpoint)
        self.first_answer({"error": "stopped"})
        for path in (self._socket_path, f"{self._directory}/control.sock"):
            if os.path.lexists(path):
                os.unlink(path)

    def _unmount_all(self) -> None:
        paths = sorted((connection.path for connection in self._table.connections.values()), key=len)
        if paths:
            detach(paths[0])  # the outermost: MNT_DETACH takes what is mounted below along

    # -- what the succession asks for -----------------------------------------------------------------------------

    def be_found(self) -> None:
        """Who is to serve connects to our socket: listen anew where somebody has removed it."""
        if os.path.lexists(self._socket_path):
            return
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self._listen(listener)
            except OSError:
                listener.close()
                raise
        except OSError as error:  # no descriptor is left, or its directory is gone too, with all that a server needs
            say(f"nobody can connect to {self._socket_path}: {error}")
            return
        say(f"{self._socket_path} was removed, and is made anew")
        self._peers.listen_on(listener)

    def hand_out(self, server: Peer) -> None:
        """Everything, to a server that has said hello."""
        self._refusal.stop()
        connections, held = self._table.snapshot()
        hello = {"version": server.version, "restarts": self._succession.restarts}
        messages: list[tuple[dict[str, Any], int | None]] = [
            ({**hello, "connections": len(connections), "held": len(held)}, None),
            *((connection.described(name), connection.fd) for name, connection in sorted(connections.items())),
            *(({"name": name}, fd) for name, fd in sorted(held.items())),
        ]
        for message, fd in messages:
            if not server.send(message, fd):  # each to one that was stopped would wait
                return

    def server_lost(self) -> None:
        if not self._own_mounts:
            detach(self._mountpoint)  # libfuse's connection died with the server
        self._server_due()

    def _server_due(self) -> None:
        """Look, when the patience of those who wait is over, whether anybody serves."""
        left_s = self._succession.well_at + self._patience_s - time.monotonic()
        if self._succession.server is not None:
            return
        if left_s > 0:
            self._loop.after(left_s, self._server_due)
            return
        if not self._refusal.on and self._table.connections:
            say(f"no server for {self._patience_s:g} s: whoever waits gets an error until one is ready")
        self._refusal.start({name: each.fd for name, each in self._table.connections.items()})

    def first_answer(self, message: dict[str, Any]) -> None:
        """Say once how the start went, to whoever waits for it."""
        if self._ready_fd < 0:
            return
        try:
            os.write(self._ready_fd, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            say("nobody waits for the mount any more")
        os.close(self._ready_fd)
        self._ready_fd = -1

    def give_up(self, reason: dict[str, Any]) -> None:
        """The first start has failed."""
        self.first_answer(reason)
        self._status = 1
        self._loop.stop()

    # -- what peers ask for ----------------------------------------------------------------------------------------

    def look(self) -> dict[str, Any]:
        """What ``dsfs status`` hears."""
        succession = self._succession
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "server_pid": succession.server.pid if succession.server is not None else 0,
            "state": succession.state(),
            "restarts": succession.restarts,
            "failures": succession.failures,
            "problem": succession.problem,
            "next_s": max(0.0, round(succession.not_before - time.monotonic(), 1)),
            "refused": self._refusal.refused,
            "paths": sorted((each.path for each in self._table.connections.values()), key=len)[:1],
            "alone": self._alone,
        }

    def unmounted(self, peer: Peer) -> None:
        """The server's root connection has ended: somebody has unmounted it, or the kernel has aborted it."""
        if peer is not self._succession.server:
            return
        root = min(self._table.connections.values(), key=lambda each: len(each.path), default=None)
        aborted = root is not None and any(each.dev == root.dev for each in mount_table())
        self._unmount_all()
        self._table.clear()
        if aborted:
            say(f"{root.path if root else ''}: the kernel has ended the connection, it is mounted anew")
        elif not self._alone:
            self._loop.stop()

    def end(self, peer: Peer) -> None:
        """`dsfs unmount` of a keeper that lives alone: it stays for whoever mounts next."""
        if not self._alone:
            peer.send({"error": "ends with SIGTERM"})
            return
        self._refusal.stop()
        self._unmount_all()
        server = self._succession.server
        self._succession.end()
        if server is not None:
            server.send({"op": "end"})

        def finish() -> None:
            self._table.clear()
            peer.send({"ok": True})

        self._loop.after(0, finish)


def _tell_restart(answer: dict[str, Any]) -> None:
    """After a SIGHUP nobody waits for the answer."""
    say(f"restart: {answer.get('error', 'another server is ready')}")


def _detached() -> None:
    """Leave the server that started this: whoever is the reaper of orphans gets us."""
    if os.fork():
        os._exit(0)


def main(argv: list[str]) -> int:
    name_process("dsfs-keeper")
    if argv[0] == "--alone":
        return Keeper(f"{argv[1]}.lock", argv[1], {"patience_s": argv[2]}).run()
    directory = argv[0]
    with open(f"{directory}/keeper.json", encoding="utf-8") as file:
        config = json.load(file)
    socket_path = f"{directory}/keeper.sock"
    if argv[1] == "--adopt":
        _detached()
        if "ends_with" in config:
            end_with_reaper(config["ends_with"])
        return Keeper(f"{directory}/lock", socket_path, config, directory).run(adopt=True)
    if "ends_with" in config:
        end_with(config["ends_with"])
    return Keeper(f"{directory}/lock", socket_path, config, directory, int(argv[1])).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
