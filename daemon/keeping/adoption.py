"""Adoption: a server that outlived the keeper before this one hands everything over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daemon.keeping.loop import Loop, say
from daemon.keeping.peers import ANOTHER, VERSION, Peer
from daemon.keeping.refusal import Refusal
from daemon.keeping.succession import Succession
from daemon.keeping.table import Table

_WHOLE_S = 10.0  # for all connections of a server, of which a thousand take less than one


class Adoption:
    """``awaited``: somebody is about to hand over, so servers that say hello (``early``) have to wait for that."""

    def __init__(
        self, loop: Loop, table: Table, refusal: Refusal, succession: Succession, hello: Callable[[Peer], None]
    ) -> None:
        self._loop = loop
        self._table = table
        self._refusal = refusal
        self._succession = succession
        self._hello = hello
        self.awaited = False
        self.early: list[Peer] = []

    def begin(self, peer: Peer, message: dict[str, Any]) -> None:
        """A server says how much is to come; refused when another one serves."""
        peer.version = min(VERSION, int(message.get("version", 1)))
        server = self._succession.server
        same = server is not None and 0 != server.pid == peer.pid  # it has lost its connection, not its keeper
        if server is not None and not same and not self._succession.ready and not self._table.connections:
            self._succession.kill(server)  # it was let in before we heard of one that has everything
            server.hang_up()  # and should nobody be able to end it, then it has no keeper any more
        elif server is not None and not same and server.alive():
            peer.send({"version": peer.version, "error": ANOTHER})
            return
        self._refusal.stop()
        self._succession.restarts = max(self._succession.restarts, int(message.get("restarts", 0)))
        peer.adoption = message
        peer.adopting = int(message.get("connections", 0)) + int(message.get("held", 0))
        self.awaited = True  # whoever came in between would have a part of it
        if not peer.adopting:
            self._adopted(peer)
        self._loop.after(_WHOLE_S, lambda: self.broken(peer))

    def go_on(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        """One connection, or one text."""
        name = str(message.get("name", ""))
        peer.adopting -= 1
        if fds and "dev" in message:
            self._table.add(
                name, fds.pop(), str(message.get("path", "")), str(message["dev"]), message.get("state", {})
            )
        elif fds:
            self._table.hold(name, fds.pop())
        if not peer.adopting:
            self._adopted(peer)

    def _adopted(self, peer: Peer) -> None:
        say(f"taken over from server {peer.pid}: {len(self._table.connections)} connections")
        ready, finished = bool(peer.adoption.get("ready")), bool(peer.adoption.get("finished"))
        peer.send({"version": peer.version, "ok": True})
        self._succession.adopted(peer, ready=ready, finished=finished)
        self._let_in()

    def broken(self, peer: Peer) -> None:
        """It has died over it, or was stopped: the next server goes on with what has come, and mounts the rest anew."""
        if peer.adopting:
            say(f"server {peer.pid} has not handed over everything: {peer.adopting} messages are missing")
            peer.adopting = 0
            self._let_in()

    def _let_in(self) -> None:
        self.awaited = False
        early, self.early = self.early, []
        for each in early:
            if not each.closed:
                self._hello(each)
