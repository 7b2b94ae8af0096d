"""What peers say to the keeper, and what it answers.

The protocol on ``keeper.sock`` (unix, SOCK_SEQPACKET; one JSON object a message). A peer says its version, the keeper
answers with the lower of both, and that is what they speak. Version 1:

    server → keeper                                       keeper → server
    {"op": "hello", "version": 1, "pid": …}               {"version": 1, "restarts": …, "connections": count,
                                                          "held": count}, for each connection
                                                          {"name", "dev", "state"} + descriptor, and for each that is
                                                          held {"name"} + descriptor; or {"error"}
    {"op": "mount", "name", "path", "source"}             {"name", "dev", "state"} + descriptor, or {"name", "error"}
    {"op": "state", "name", "state": {…}}                 nothing; what the next server is told about the connection
    {"op": "unmount", "name"}                             {"name"} or {"name", "error"}
    {"op": "hold", "name"} + descriptor                   nothing; kept for the next server (a memfd: never on a disk)
    {"op": "ready"}, {"op": "failed", "error"}            nothing
    {"op": "restart"}                                     {"ok": true} once another server is ready, or {"error"}

Version 2 has besides:

    connections come with "path"
    {"op": "standby", "version", "started", "takes_over",
     "serving", "children": [pid, …]}                     later, at any time: {"op": "take", "stale": …}: fork a server;
                                                          {"op": "kill", "pid"}: end one that it has forked and that no
                                                          signal of the keeper's reaches; {"op": "go"}: end
    {"op": "stale"}                                       nothing; a stand-by that was told to take over and would not,
                                                          as another version is installed by now
    {"op": "forked", "pid"}                               nothing; a stand-by has done as it was told
    {"op": "ended", "pid", "status"}                      nothing; a server that the stand-by had forked
                                                          {"op": "finish"}, {"op": "end"} to a server, at any time
    {"op": "finished"}                                    {"op": "go"} once the next one is ready
    {"op": "unmounted"}                                   nothing; the mount point is no mount any more
    {"op": "adopt", "version", "restarts", "ready",       {"version", "ok": true}
     "finished", "connections", "held"}, followed by as
     many {"name", "path", "dev", "state"} and {"name"},
     each + descriptor
    {"op": "look"}                                        {"version", "pid", "server_pid", "state", "restarts",
                                                          "failures", "problem", "next_s", "refused", "paths", "alone"}
    {"op": "end"}                                         {"ok": true} once all is unmounted

Version 3 has besides:

    {"op": "alive"}                                       nothing; a server that is ready says so every few seconds,
                                                          from the loop that answers the kernel (silence.py)
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any, Protocol

from daemon.keeping.adoption import Adoption
from daemon.keeping.loop import Loop, say
from daemon.keeping.peers import ANOTHER, VERSION, Peer
from daemon.keeping.refusal import Refusal
from daemon.keeping.succession import Succession
from daemon.keeping.table import Table

_ADOPTION_S = 10.0


class Owner(Protocol):
    """What only the keeper itself can do."""

    def look(self) -> dict[str, Any]: ...

    def unmounted(self, peer: Peer) -> None: ...

    def end(self, peer: Peer) -> None: ...


class Conversation:
    """Accepts peers, and has done what they ask for."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        owner: Owner,
        table: Table,
        refusal: Refusal,
        succession: Succession,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._owner = owner
        self._table = table
        self._succession = succession
        self.adoption = Adoption(loop, table, refusal, succession, self.hello)

    def listen_on(self, listener: socket.socket) -> None:
        """In place of the one before, which nobody finds any more; peers stay."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        self._loop.watch(listener.fileno(), self.accept)

    def accept(self) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError as error:
            say(f"a peer cannot be accepted: {error}")
            time.sleep(0.1)  # out of descriptors: whoever frees one does not wake us
            return
        peer = Peer(sock)
        self._loop.watch(sock.fileno(), lambda: self._serve(peer))
        if peer.pidfd >= 0:
            self._loop.watch(peer.pidfd, lambda: self._ended(peer))

    def _serve(self, peer: Peer) -> None:
        message, fds = peer.receive()
        if message is None:
            self._close(peer)
            return
        try:
            if peer.adopting:
                self.adoption.go_on(peer, message, fds)
            else:
                self._obey(peer, message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _close(self, peer: Peer) -> None:
        """Its connection has ended; so has the process, but for a server that looks for its keeper then."""
        self._loop.unwatch(peer.sock.fileno())
        peer.sock.close()
        peer.closed = True
        if peer.pidfd < 0 or peer is not self._succession.server or peer.version < 2:
            self._ended(peer)

    def _ended(self, peer: Peer) -> None:
        if peer.pidfd >= 0:
            self._loop.unwatch(peer.pidfd)
            os.close(peer.pidfd)
            peer.pidfd = -1
        self.drain(peer)
        if not peer.closed:
            self._close(peer)
        elif not peer.gone:
            peer.gone = True
            self.adoption.broken(peer)
            self._succession.gone(peer)

    def drain(self, peer: Peer) -> None:
        """Hear what it has said by now, in case it is dead: its last words are for its successor."""
        while peer.has_spoken():
            self._serve(peer)

    def _obey(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        name = str(message.get("name", ""))
        succession = self._succession
        match message.get("op"):
            case "hello":
                peer.version = min(VERSION, int(message.get("version", 1)))
                self.hello(peer)
            case "standby":
                peer.version = min(VERSION, int(message.get("version", 1)))
                started = float(message.get("started", 0))
                if message.get("serving"):
                    succession.expect_adoption(_ADOPTION_S)
                children = [int(pid) for pid in message.get("children", ())]
                takes_over = bool(message.get("takes_over"))
                succession.standby(peer, started, children, takes_over=takes_over)
            case "stale":
                succession.stale(peer)
            case "forked":
                succession.forked(peer, int(message["pid"]))
            case "ended":
                succession.forked_ended(peer, int(message["pid"]), int(message["status"]))
            case "mount":
                arguments = (peer, name, str(message.get("path", "")), str(message.get("source", "")))
                threading.Thread(target=self._mount, args=arguments, daemon=True).start()
            case "unmount":
                threading.Thread(target=self._unmount, args=(peer, name), daemon=True).start()
            case "state":
                self._table.keep_state(name, message.get("state", {}))
            case "hold" if fds:
                self._table.hold(name, fds.pop())
            case "restart":
                succession.upgrade.restart(peer.send)
            case "ready":
                succession.is_ready(peer)
            case "alive":
                succession.watch.alive(peer)
            case "failed":
                succession.has_failed(peer, str(message.get("error", "the server failed")))
            case "finished":
                succession.has_finished(peer)
            case "unmounted":
                self._owner.unmounted(peer)
            case "adopt":
                self.adoption.begin(peer, message)
            case "look":
                peer.send(self._owner.look())
            case "end":
                self._owner.end(peer)
            case other:
                peer.send({"error": f"unknown operation {other!r}"})

    def hello(self, peer: Peer) -> None:
        """A server is there, and wants the descriptors."""
        if self._succession.server is not None:
            self.drain(self._succession.server)
        if self.adoption.awaited:
            self.adoption.early.append(peer)
        elif not self._succession.hello(peer):
            peer.send({"version": peer.version, "error": ANOTHER})

    def _mount(self, peer: Peer, name: str, path: str, source: str) -> None:
        try:
            connection = self._table.mount(name, path, source)
        except OSError as error:
            what = "/dev/fuse" if error.filename == "/dev/fuse" else f"mount on {path}"
            peer.send({"name": name, "error": f"{what}: {error.strerror}"})
            return
        peer.send(connection.described(name), connection.fd)

    def _unmount(self, peer: Peer, name: str) -> None:
        peer.send({"name": name} if self._table.unmount(name) else {"name": name, "error": "not mounted"})
