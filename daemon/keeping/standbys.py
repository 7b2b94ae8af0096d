"""The stand-bys that have registered: processes that have imported all that a server needs, and fork one when told."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.keeping.peers import Peer


@dataclass(eq=False)
class StandBy:
    peer: Peer
    started: float  # of the process, monotonic s: the newest is the newest version
    stale: bool = False  # what is installed has changed since
    forked: int = 0  # pid of the latest server, in its own pid namespace


class StandBys:
    def __init__(self) -> None:
        self._all: list[StandBy] = []

    def __len__(self) -> int:
        return len(self._all)

    def add(self, standby: StandBy) -> None:
        self._all.append(standby)

    def of(self, peer: Peer) -> StandBy | None:
        return next((each for each in self._all if each.peer is peer), None)

    def that_forked(self, server: Peer) -> list[StandBy]:
        """The one that has forked a server; none where that cannot be known."""
        if server.forked_by is not None:
            return [each for each in self._all if each.peer is server.forked_by and each.forked]
        parents = [each for each in self._all if each.forked]  # it came to us from another keeper, as they did
        return parents if len(parents) == 1 else []

    @property
    def fresh(self) -> bool:
        """Whether one has the version that is installed, as far as is known."""
        return any(not each.stale for each in self._all)

    def newest(self, *, even_stale: bool) -> StandBy | None:
        """Who is to serve next."""
        usable = [each for each in self._all if even_stale or not each.stale]
        return max(usable, key=lambda each: each.started, default=None)

    def thin_out(self) -> None:
        """One is enough: the newest."""
        for standby in sorted(self._all, key=lambda each: each.started)[:-1]:
            self.dismiss(standby)

    def dismiss(self, standby: StandBy) -> None:
        standby.peer.send({"op": "go"})
        self.drop(standby)

    def dismiss_all(self) -> None:
        for standby in list(self._all):
            self.dismiss(standby)

    def drop(self, standby: StandBy) -> None:
        """It has ended, or is of no use any more."""
        if standby in self._all:
            self._all.remove(standby)
