"""The stand-bys that have registered: processes that have imported all that a server needs, and fork one when told."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from daemon.keeping.peers import Fork, Peer


@dataclass(eq=False)
class StandBy:
    peer: Peer
    started: float  # of the process, monotonic s: the newest is the newest version
    stale: bool = False  # what is installed has changed since
    fork: Fork | None = None  # its latest server
    asked: deque[Fork] = field(default_factory=deque)  # servers that it has been told to fork, and not answered yet

    def answers(self) -> Fork | None:
        """Which of those it speaks of: it does as it is told, in order."""
        return self.asked.popleft() if self.asked else None


class StandBys:
    def __init__(self) -> None:
        self._all: list[StandBy] = []

    def __len__(self) -> int:
        return len(self._all)

    def add(self, standby: StandBy) -> None:
        self._all.append(standby)

    def of(self, peer: Peer) -> StandBy | None:
        return next((each for each in self._all if each.peer is peer), None)

    @property
    def only_fork(self) -> Fork | None:
        """The server that came from another keeper, as its stand-by did; None where several may be that."""
        forks = [each.fork for each in self._all if each.fork is not None and each.fork.pid]
        return forks[0] if len(forks) == 1 else None

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
