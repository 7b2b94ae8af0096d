"""A flat listing of an object store by several requests at once: ranges of keys that are split while they are listed.

One request after another gives a thousand keys for each way to the server and back. What the keys of a bucket look like
is not known before, so a range is split while it is listed, by asking for the first key behind some text, which costs
next to nothing (``_Cuts``).

Nothing is lost or doubled by that: a new range begins with a page that the server has given, and the range before it
ends where it meets a key of that page. So all that is relied on is that the server lists in one order, whatever that
is, and that a page and its continuation are a piece of it, as any listing by pages does. A key that comes or goes
meanwhile is listed or not, as in a listing by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from dsfs.errors import SourceError
from dsfs.model import ListingPage, SourceObject
from dsfs.sources.flat_tree import FlatTree, Run
from dsfs.sources.retry import one_of_many

log = structlog.get_logger()

AT_ONCE: Final = 8
"""Requests in flight. With an answer in 100 ms that is more than one process can put into a catalog."""
_PAGES_WAITING: Final = 4
_PAGES_BEFORE_SPLIT: Final = 3  # what is nearly at its end is not worth the questions
_BEHIND: Final = "\U0010ffff"  # behind every character of a key
_LARGEST: Final = 0x7E  # of those that names are mostly made of


@dataclass(frozen=True, slots=True)
class KeyPage:
    """One answer. ``keys`` are whole keys, ``objects`` what they stand for (None: the prefix itself)."""

    keys: list[str]
    objects: list[SourceObject | None]
    following: str
    """How to ask for the next page; empty at the end."""


AskPage = Callable[[str, str, int], Awaitable[KeyPage]]
"""Of keys behind one ("": from the start), or the page that follows, with at most so many keys (0: as usual)."""


@dataclass(eq=False, slots=True)
class _Range:
    run: Run
    last: str = ""
    until: str = ""
    """The first key of the range that follows; empty for the last range."""
    until_keys: frozenset[str] = field(default_factory=frozenset)
    pages: int = 0
    """Since it began, or was to be split."""
    split_at: int = _PAGES_BEFORE_SPLIT
    """With how many pages it is split."""
    splitting: bool = False


class KeyRanges:
    """One listing, to be iterated once. Raises what ``ask`` raises."""

    def __init__(self, ask: AskPage, prefix: str, at_once: int = AT_ONCE) -> None:
        self.found = False
        """Whether there was any key."""
        self._ask = ask
        self._may_split = True
        self._prefix = prefix
        self._at_once = at_once
        self._tree = FlatTree()
        self._ranges: list[_Range] = []  # not ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: asyncio.Queue[ListingPage | BaseException | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_PAGES_WAITING)

    async def pages(self) -> AsyncGenerator[ListingPage, None]:
        """See ``Source.list_tree``."""
        whole = _Range(self._tree.run())
        self._start(self._list(whole, "", ""))
        try:
            while self._tasks or not self._ready.empty():
                ready = await self._ready.get()
                if isinstance(ready, BaseException):
                    raise ready
                if ready is not None:
                    yield ready
                    self._room.release()
            yield self._tree.finish()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(self._told(work))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._ready.put_nowait(None)  # somebody may wait for the last one

        task.add_done_callback(ended)

    async def _told(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:  # raised by ``pages``
            self._ready.put_nowait(error)

    async def _list(self, range_: _Range, after: str, token: str) -> None:
        self._ranges.append(range_)
        try:
            more = True
            while more:
                page = await self._page(after, token)
                token = page.following
                more = await self._take(range_, page) and bool(token)
                if more:
                    self._split_if_worth_it(range_)
        finally:
            self._ranges.remove(range_)

    async def _page(self, after: str, token: str) -> KeyPage:
        """One answer; the first of all is asked for once, as whoever waits for it tries again."""

        def go_on(error: SourceError, delay_s: float) -> bool:
            if self.found:
                self._may_split = False  # a server that fails gets no more requests than before
                log.debug("page of a listing asked for again", reason=str(error), in_s=delay_s)
            return self.found

        return await one_of_many(partial(self._ask, after, token, 0), go_on)

    async def _take(self, range_: _Range, page: KeyPage) -> bool:
        """Put a page of a range into the tree; False when the range has met the one that follows."""
        keys, objects = page.keys, page.objects
        self.found = self.found or bool(keys)
        met = None
        if range_.until and not range_.until_keys.isdisjoint(keys):
            met = next(at for at, key in enumerate(keys) if key in range_.until_keys)
            keys, objects = keys[:met], objects[:met]
        if range_.until and keys and keys[-1] > range_.until:
            range_.run.overlaps = True  # its key is gone, or the order is not that of text
        for obj in objects:
            if obj is not None:
                range_.run.add(obj)
        if keys:
            range_.last = keys[-1]
        range_.pages += 1
        ended = met is not None or not page.following
        if ended:
            range_.run.end(self._path(range_.until) if met is not None else "")
            range_.last = ""  # nothing begins in it any more, while the page waits for room
        await self._room.acquire()
        self._ready.put_nowait(range_.run.take_page())
        return met is None

    # -- splitting ------------------------------------------------------------------------------------------------

    def _split_if_worth_it(self, range_: _Range) -> None:
        if (
            len(self._tasks) < self._at_once
            and range_.pages >= range_.split_at
            and not range_.splitting
            and self._can_split
        ):
            range_.splitting = True
            self._start(self._split(range_))

    @property
    def _can_split(self) -> bool:
        return self._may_split and self._tree.in_order

    async def _split(self, range_: _Range) -> None:
        """Begin as many ranges in what is left of one as there is room for."""
        texts = []
        try:
            cuts = _Cuts(self._first_behind, self._prefix, range_.last, range_.until)
            await cuts.look()
            texts = cuts.texts(self._at_once - len(self._tasks) + 1)  # this task ends here
        except SourceError as error:
            self._stop_splitting(error)
        range_.splitting, range_.pages = False, 0
        range_.split_at = _PAGES_BEFORE_SPLIT if texts else 2 * range_.split_at
        for text in texts:
            self._start(self._begin(text))

    async def _first_behind(self, text: str) -> str:
        page = await self._ask(text, "", 1)
        # A server that does not know of this begins with the very first key.
        return page.keys[0] if page.keys and page.keys[0] > text else ""

    async def _begin(self, text: str) -> None:
        """List what is behind a text, as a range of its own."""
        try:
            page = await self._ask(text, "", 0)
        except SourceError as error:
            self._stop_splitting(error)
            return
        before = self._range_around(page.keys[0]) if page.keys and page.keys[0] > text else None
        if before is None or not self._can_split:
            return
        first = page.keys[0]
        # No await from here until the range before knows where it ends.
        range_ = _Range(self._tree.run(self._path(first)), until=before.until, until_keys=before.until_keys)
        before.until, before.until_keys = first, frozenset(page.keys)
        if await self._take(range_, page) and page.following:
            await self._list(range_, "", page.following)

    def _stop_splitting(self, error: SourceError) -> None:
        """Not every server takes every text here; what is being listed goes on."""
        if self._may_split:
            self._may_split = False
            log.info("listing with fewer requests at once", reason=str(error))

    def _range_around(self, key: str) -> _Range | None:
        """The range that would list a key later; None when it is listed already, or has not begun."""
        for range_ in self._ranges:
            if range_.last and range_.last < key and (not range_.until or key < range_.until):
                return range_
        return None

    def _path(self, key: str) -> str:
        return key[len(self._prefix) :]


class _Cuts:
    """Texts that cut what is left of a range into parts, found by asking for the first key behind a text.

    All that is left of a range begins alike, up to some character; that character is looked for by halving. Then the
    largest one that is there at this place, by halving too. Between the two is cut.
    """

    def __init__(self, first_behind: Callable[[str], Awaitable[str]], prefix: str, last: str, until: str) -> None:
        self._first_behind = first_behind
        self._prefix = prefix
        self._last = last
        self._until = until
        self._alike = ""
        self._smallest, self._count = 0, 0

    async def look(self) -> None:
        """Ask what there is; raises what that raises."""
        at, smallest = await self._first_difference()
        if smallest:
            self._alike, self._smallest = self._last[:at], ord(smallest)
            self._count = await self._largest(self._alike, self._smallest) - self._smallest + 1

    def texts(self, parts: int) -> list[str]:
        """In order, up to ``parts``; none when there is nothing to cut."""
        parts = min(parts, self._count)
        # The character of the last key has its own part, which the range keeps.
        return [_before(self._alike, self._smallest + part * self._count // parts) for part in range(parts)]

    async def _first_difference(self) -> tuple[int, str]:
        """Where keys behind the last one first differ from it, and the smallest character that they have there."""
        low, high, found = len(self._prefix), len(self._last), ""
        while low < high:  # keys behind last[:high] are there, or nobody has asked; none behind last[:low]
            middle = (low + high) // 2
            key = await self._inside(f"{self._last[: middle + 1]}{_BEHIND}")
            if key:
                high, found = middle, key
            else:
                low = middle + 1
        if not found or found[low : low + 1] <= self._last[low : low + 1]:
            return low, ""  # also when keys have changed meanwhile, or hold what is behind every character
        return low, found[low]

    async def _largest(self, alike: str, smallest: int) -> int:
        low, high = smallest, max(smallest, _LARGEST) + 1
        while high - low > 1:
            middle = (low + high) // 2
            key = await self._inside(_before(alike, middle))
            if key.startswith(alike) and len(key) > len(alike):
                low = max(middle, ord(key[len(alike)]))
                high = max(high, low + 1)
            else:
                high = middle
        return low

    async def _inside(self, text: str) -> str:
        """The first key behind a text, if it is inside of the range."""
        key = await self._first_behind(text)
        return "" if self._until and key >= self._until else key


def _before(alike: str, code: int) -> str:
    """A text behind which keys begin with ``alike`` and this character, or a larger one."""
    below = code - 1
    return f"{alike}{chr(0xD7FF if 0xD800 <= below <= 0xDFFF else below)}{_BEHIND}"  # surrogates are no characters
