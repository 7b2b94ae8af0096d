"""The order in which files will be read, as somebody said: where its readers are by now, what to fetch next.

Reads are seen in part: what the kernel has in its page cache it serves alone. So only files that were fetched ahead,
and that no reader has come to yet, count as "ahead": those in the cache already are gone past, and a reader that runs
through them unseen is seen again at the first one that was not.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable

from dsfs.ranges import GiB, MiB

LOOK_FILES = 1024
"""How far behind what was fetched a reader is recognised: several of them run a little apart, and skip files."""
NEAR_FILES, FAR_TOUCHES = 8, 8
"""A file so far behind what was looked at may be read by anybody; after so many in a row the readers are there."""
LOST_TOUCHES = 64
"""After so many files in a row that are not near, the readers are looked for in all of the order."""
LATE_FILES = 1024
"""A file that was fetched and not touched while so many behind it were passed, is not wanted any more."""

HORIZON_S = 30.0
LEAST_BYTES, MOST_BYTES = 64 * MiB, 16 * GiB
MOST_FILES = 4096


def distance_bytes(rate_bytes_s: float, memory_bytes: int, cache_bytes: int) -> int:
    """How far ahead of its readers to be: what they read in a while, as long as it is neither pushed out of the page
    cache nor of the node's cache before it is read."""
    room = min(memory_bytes // 4, cache_bytes // 4)
    return max(1, min(max(LEAST_BYTES, int(rate_bytes_s * HORIZON_S)), room, MOST_BYTES))


class Order:
    """Files by number, in the coming order; the same one may come again. Everything about time is the caller's."""

    def __init__(self) -> None:
        self._inos = array("q")
        self._where: dict[int, list[int]] = {}  # places from ``position`` to ``_known``, by number
        self._known = 0
        self._ahead: deque[tuple[int, int, int]] = deque()  # fetched, not passed: place, number, bytes
        self._late: OrderedDict[int, tuple[int, int]] = OrderedDict()  # passed, not touched: number → place, bytes
        self._touched: set[int] = set()  # of those ahead
        self._far: set[int] = set()
        self._lost: set[int] = set()
        self.position = 0
        """The first place that no reader has come to."""
        self.next = 0
        """The first place that was not looked at yet."""
        self.ahead_bytes = 0
        self.used_bytes = 0
        self.wasted_bytes = 0

    def __len__(self) -> int:
        return len(self._inos)

    @property
    def ahead_files(self) -> int:
        return len(self._ahead)

    def since(self, place: int) -> array[int]:
        """The numbers from a place on."""
        return self._inos[place:]

    def extend(self, inos: Iterable[int]) -> None:
        """More of the order."""
        self._inos.extend(inos)
        self._know()

    def begin_at(self, position: int) -> None:
        """Readers have come so far before anything was fetched here."""
        self._pass(min(position, len(self._inos)))

    def has_room(self, most_bytes: int) -> bool:
        """Whether to fetch more; one file ahead there may always be, however large."""
        return not self._ahead or (self.ahead_bytes < most_bytes and len(self._ahead) < MOST_FILES)

    def take(self) -> tuple[int, int] | None:
        """The next place, and the number of the file; None at the end of what is known."""
        if self.next >= len(self._inos):
            return None
        place, self.next = self.next, self.next + 1
        self._know()
        return place, self._inos[place]

    def fetched(self, place: int, size_bytes: int) -> None:
        """A file that was taken has to be brought: it counts as ahead until a reader comes there."""
        if place >= self.position:
            self._ahead.append((place, self._inos[place], size_bytes))
            self.ahead_bytes += size_bytes

    def take_again(self) -> None:
        """What was taken may not have come: begin anew behind the readers."""
        self._ahead.clear()
        self.ahead_bytes = 0
        self.next = self.position

    def touch(self, ino: int) -> int:
        """A file was opened or read; how many bytes that were ahead are passed by that."""
        late = self._late.pop(ino, None)
        if late is not None:
            self.used_bytes += late[1]
        places = self._where.get(ino)
        if places is None:
            if late is None:
                self._miss(ino)
            return 0
        self._lost.clear()
        self._touched.add(ino)
        place = places[0]
        if place > self.next + NEAR_FILES:
            self._far.add(place)  # a large file is read many times
            if len(self._far) < FAR_TOUCHES:
                return 0
            place = min(self._far)
        self._far.clear()
        return self._pass(place + 1)

    def end(self) -> None:
        """Nothing more will be asked for: what was not used by now is not counted as used."""
        self._pass(len(self._inos))
        self.wasted_bytes += sum(size for _place, size in self._late.values())
        self._late.clear()

    def _pass(self, position: int) -> int:
        passed = 0
        gone: list[int] = []  # so that a touch costs what it passes, and not what lies ahead
        for place in range(self.position, min(position, self._known)):
            ino = self._inos[place]
            places = self._where[ino]
            places.remove(place)
            if not places:
                del self._where[ino]
                gone.append(ino)
        self.position = max(self.position, position)
        while self._ahead and self._ahead[0][0] < self.position:
            place, ino, size = self._ahead.popleft()
            self.ahead_bytes -= size
            passed += size
            if ino in self._touched:
                self.used_bytes += size
            else:
                self._late[ino] = place, size
        self._touched.difference_update(gone)
        while self._late and next(iter(self._late.values()))[0] < self.position - LATE_FILES:
            self.wasted_bytes += self._late.popitem(last=False)[1][1]
        self.next = max(self.next, self.position)
        self._know()
        return passed

    def _know(self) -> None:
        self._known = max(self._known, self.position)
        stop = min(len(self._inos), max(self.next, self.position) + LOOK_FILES)
        for place in range(self._known, stop):
            self._where.setdefault(self._inos[place], []).append(place)
        self._known = max(self._known, stop)

    def _miss(self, ino: int) -> None:
        """Not near: another reader's, or ours are somewhere else by now. One alone may be anything."""
        self._lost.add(ino)
        if len(self._lost) >= LOST_TOUCHES:
            self._lost.clear()
            try:
                place = self._inos.index(ino, self._known)
            except ValueError:
                return
            self._pass(place)
