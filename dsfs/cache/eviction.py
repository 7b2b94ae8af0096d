"""Which objects go when room is needed: values in, decision out.

W-TinyLFU (Einziger, Friedman, Manes 2017), for the way in which training reads. What comes is kept for a while in a
small window, in order of last use. What leaves the window stays only if it was used more often lately than those that
would have to go for it, least recently used first; a tie is lost. So a scan pushes out nothing that is used again, and
of a dataset that is larger than its share, read in a new order each epoch, a part stays, which is hit as often as it is
large. A dataset that nobody uses any more loses against everything. What somebody asked to have here (a warm-up) does
not have to be used first: it takes the places of all but what has a higher priority. ``benchmarks/eviction.py`` has the
alternatives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsfs.ranges import MiB

WINDOW_SHARE = 1 / 64
"""Of the cache, for what came last."""
ROOM_SHARE = 1 / 128
"""Of the cache: how much more than is asked for is made free at once, or every block would pay for an eviction."""
LARGEST_ROOM_BYTES = 256 * MiB
"""And no more, however large the cache: whoever asked waits for it, 0.1 ms or more for each file that goes."""
FULL_SHARE = 63 / 64
"""A cache that holds less than this is not full: what leaves the window need not fight for its place."""
IDLE_SHARE = 1 / 2
"""A dataset is idle once so much of the cache has been brought in since somebody used it last."""


ASKED_FOR_USES = 2**31
"""As if it had been used so often: what came because somebody asked to have it here."""


@dataclass(frozen=True, slots=True)
class Cached:
    """What is known of one cached object. ``last_used_s`` is a wall-clock time; ``cached_bytes`` is space on disk,
    ``content_bytes`` what of a file is in it."""

    key: str
    cached_bytes: int
    last_used_s: float
    owners: tuple[str, ...] = ()
    content_bytes: int = 0
    priority: int = 0


class Worth(NamedTuple):
    """Of one object: ``uses`` is how often it was used lately."""

    priority: int
    active: bool
    uses: int

    def beats(self, resident: Worth) -> bool:
        """Whether a newcomer of this worth takes a resident's place."""
        return (self.priority, self.active, self.uses - 1) > resident


@dataclass(frozen=True, slots=True)
class Choice:
    """``victims`` go; ``settled`` have won against others and leave the window for good."""

    victims: list[Cached]
    settled: list[str]


def choose_victims(
    newcomers: Iterable[Cached],
    residents: Iterable[Cached],
    need_bytes: int,
    worth: Callable[[Cached], Worth],
    growing: Cached | None = None,
) -> Choice:
    """Objects to give up until ``need_bytes`` are covered; all of them when that is not enough.

    ``newcomers`` are those that the window has no room for, oldest first; ``residents`` all others, lowest priority
    first, then least recently used. What is worth more stays; between equals, what has been here longer. The use that
    brought a newcomer does not count for it: the resident's use in the same epoch may be still to come.

    ``growing`` is an object that wants the room for itself and is too large for the window: it is no victim, and takes
    only the places of those that it beats.
    """
    victims: list[Cached] = []
    settled: list[Cached] = []
    freed_bytes = won_bytes = 0
    coming, staying = iter(newcomers), iter(residents)
    newcomer, resident = next(coming, None), next(staying, None)
    while freed_bytes < need_bytes and (newcomer is not None or resident is not None):
        if newcomer is not None and (resident is None or not worth(newcomer).beats(worth(resident))):
            victims.append(newcomer)
            freed_bytes += newcomer.cached_bytes
            newcomer, won_bytes = next(coming, None), 0
        else:
            assert resident is not None
            if newcomer is None and growing is not None and not worth(growing).beats(worth(resident)):
                break
            victims.append(resident)
            freed_bytes += resident.cached_bytes
            won_bytes += resident.cached_bytes
            resident = next(staying, None)
            if newcomer is not None and won_bytes >= newcomer.cached_bytes:
                settled.append(newcomer)
                newcomer, won_bytes = next(coming, None), 0
    while freed_bytes < need_bytes and settled and growing is None:  # all others are gone
        victims.append(settled.pop(0))
        freed_bytes += victims[-1].cached_bytes
    return Choice(victims, [entry.key for entry in settled])


class Window:
    """What came last, in order of last use: key → space. Whoever asks about a key that is not in it gets False."""

    def __init__(self) -> None:
        self._keys: OrderedDict[str, int] = OrderedDict()
        self._asked_for: set[str] = set()
        self.size_bytes = 0

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, key: str, size_bytes: int, *, asked_for: bool = False) -> None:
        """A new object, or one that has grown or was used again: now the latest."""
        self.size_bytes += size_bytes - self._keys.pop(key, 0)
        self._keys[key] = size_bytes
        if asked_for:
            self._asked_for.add(key)

    def asked_for(self, key: str) -> bool:
        return key in self._asked_for

    def drop(self, key: str) -> None:
        self.size_bytes -= self._keys.pop(key, 0)
        self._asked_for.discard(key)

    def settle(self, used_bytes: int, limit_bytes: int) -> None:
        """While there is room for all: what the window has no room for stays without a fight."""
        if used_bytes < limit_bytes * FULL_SHARE:
            for key in list(self.beyond(int(limit_bytes * WINDOW_SHARE))):
                self.drop(key)

    def beyond(self, share_bytes: int) -> Iterator[str]:
        """The oldest keys, as many as it takes to come within a share."""
        over = self.size_bytes - share_bytes
        for key, size_bytes in self._keys.items():
            if over <= 0:
                return
            over -= size_bytes
            yield key


class Activity:
    """Which datasets are idle: by what was brought in since somebody used them last."""

    def __init__(self) -> None:
        self._brought_bytes = 0
        self._used_at: dict[str, int] = {}

    def brought(self, size_bytes: int) -> None:
        self._brought_bytes += size_bytes

    def used(self, owner: str) -> None:
        self._used_at[owner] = self._brought_bytes

    def idle(self, owners: Collection[str], limit_bytes: int) -> bool:
        """Whether none of these was used while so much came; one that was not seen yet counts from now on."""
        now = self._brought_bytes
        return bool(owners) and all(
            now - self._used_at.setdefault(owner, now) > limit_bytes * IDLE_SHARE for owner in owners
        )
