"""What a name is in a store of keys: a prefix of some, a key itself, both, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dsfs.errors import SourceError, SourceMissing, SourceRefused, first_of
from dsfs.model import Kind, ListingPage, SourceObject, is_name


async def prefix_or_key(
    path: str, has_keys: Coroutine[Any, Any, bool], head: Coroutine[Any, Any, SourceObject | None]
) -> SourceObject | None:
    """The directory if there are keys below the name, else what ``head`` found; both are asked at once.

    Raises the SourceError of either.
    """
    try:
        async with asyncio.TaskGroup() as group:
            inside, object_ = group.create_task(has_keys), group.create_task(head)
    except BaseExceptionGroup as errors:
        ours = first_of(errors, SourceError)
        if ours is None:
            raise
        raise ours from ours.__cause__  # one is enough: the other was cancelled
    return SourceObject(path, Kind.DIRECTORY) if inside.result() else object_.result()


class Root:
    """What a URI names: a prefix of keys; or, where there are none and no "/" is at its end, one key, which is shown as
    one file by its last part."""

    def __init__(
        self,
        named: str,
        has_keys: Callable[[str], Coroutine[Any, Any, bool]],
        head: Callable[[str, str], Coroutine[Any, Any, SourceObject | None]],
    ) -> None:
        """``named``: what is behind bucket and "/". ``has_keys`` is asked of a prefix, ``head`` of a path and its
        key."""
        self.prefix = f"{named.rstrip('/')}/" if named.strip("/") else ""
        last = named.rpartition("/")[2]
        self._key = named
        self._name = last if is_name(last) else ""
        self._has_keys = has_keys
        self._head = head
        self._single: bool | None = None if self._name else False  # None: not known yet

    def holds_keys(self) -> None:
        """A listing has found some below the prefix."""
        self._single = False

    async def file(self) -> SourceObject | None:
        """The one file, where a listing has found nothing below the prefix. Raises SourceError; SourceMissing for a key
        that is refused: who may read what is below the prefix alone is refused that, and keys may come there yet."""
        if not self._name:
            return None
        try:
            found = await self._head(self._name, self._key)
        except SourceRefused as error:
            self._single = None
            raise SourceMissing(f"{error}, and there is nothing under this prefix") from error
        self._single = True if found is not None else None  # it may come yet
        return found

    async def page(self, uri: str) -> ListingPage:
        """All there is where a listing has found nothing below the prefix. Raises as ``file``, and SourceMissing."""
        file = await self.file()
        if file is None:
            raise SourceMissing(f"{uri}: there is nothing under this prefix")
        return ListingPage((file,), ("",))

    def known_key(self, path: str) -> str | None:
        """Of a file that was listed; None if only ``key`` can tell."""
        if path != self._name or self._single is False:
            return self.prefix + path
        return self._key if self._single else None

    async def key(self, path: str) -> str:
        """Of a file that was listed. Raises SourceError."""
        if path == self._name and self._single is None:
            # Not at once: who may read what is below the prefix alone is refused its name as a key.
            if await self._has_keys(self.prefix):
                self._single = False
            elif await self._head(path, self._key) is not None:
                self._single = True
            # Where there is neither, either may come yet.
        return self.known_key(path) or self.prefix + path
