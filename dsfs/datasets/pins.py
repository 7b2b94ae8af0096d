"""What shall stay in the cache: written down by dataset and glob, and held in the index object by object.

A pin outlives servers, mounts and the index; it belongs to whatever has the dataset's name in this cache directory. It
is followed when a revision is sealed or swapped: what it names now is held, here or still to come, and what only an
older revision had is let go.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog
import trio

from dsfs.cache.node import NodeTier
from dsfs.cache.space import whole_space
from dsfs.catalog.lookup import Row
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import CATALOG, matching, named
from dsfs.errors import CacheDirectoryError, PinRefused

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pinned:
    """What of a selection is pinned: its files, and their bytes, here or not."""

    files: int = 0
    bytes: int = 0


class Pins:
    """File side only. One change at a time."""

    def __init__(self, file: str, tier: NodeTier) -> None:
        self._file = file
        self._tier = tier
        self._globs = _read(file)
        self._changing = trio.Lock()
        self._asked: set[str] = set()
        self._wake = trio.Event()

    def of(self, dataset: str) -> tuple[str, ...]:
        """The globs that are pinned of a dataset; "" is all of it."""
        return self._globs.get(dataset, ())

    @property
    def all(self) -> dict[str, tuple[str, ...]]:
        """Globs by dataset, also of those that are not mounted now."""
        return dict(self._globs)

    async def pin(self, dataset: Dataset, glob: str) -> Pinned:
        """Hold what a glob names of a dataset, once that is listed, or cannot be. Raises PinRefused, with the numbers,
        when it could never be here together with what is pinned already."""
        name, glob = dataset.manifest.id, glob.rstrip("/")
        await dataset.settled.wait()  # of half a listing, half would be measured
        async with self._changing:
            file = dataset.catalog.file
            found, more_bytes = await trio.to_thread.run_sync(self._measure, dataset, file, glob, limiter=CATALOG)
            room, pinned = self._tier.room_bytes, self._tier.index.pinned_whole_bytes
            if more_bytes > room - pinned and more_bytes:
                raise PinRefused(
                    f"{f'{name}/{glob}'.rstrip('/')}: does not fit: {more_bytes:,} bytes more would be pinned, and of "
                    f"{room:,} that the cache has for files {pinned:,} are pinned already (raise --cache-size, pin "
                    "less, or unpin something)"
                )
            quota = dataset.origin.quota_bytes
            if quota is not None and more_bytes:
                globs = (*self.of(name), glob)
                all_bytes = await trio.to_thread.run_sync(self._space, dataset, file, globs, limiter=CATALOG)
                if all_bytes > quota:
                    raise PinRefused(
                        f"{f'{name}/{glob}'.rstrip('/')}: does not fit: {more_bytes:,} bytes more would be pinned, and "
                        f"of {quota:,} that its quota allows {all_bytes - more_bytes:,} are pinned already (raise "
                        "spec.cache.quota, or pin less)"
                    )
            if glob not in self.of(name):
                await self._save({**self._globs, name: (*self.of(name), glob)})
            await self._follow(dataset)
        return found

    async def unpin(self, name: str, glob: str, dataset: Dataset | None) -> Pinned:
        """Let go of what a glob names: every pin that is this glob, or lies inside of it. What of the selection other
        pins still hold. Raises PinRefused when there is no such pin."""
        glob = glob.rstrip("/")
        async with self._changing:
            kept = tuple(held for held in self.of(name) if not named(held, glob) and held != glob)
            if kept == self.of(name):
                others = ", ".join(f"{name}/{held}".rstrip("/") for held in self.of(name)) or "nothing"
                raise PinRefused(f"{f'{name}/{glob}'.rstrip('/')}: is not pinned (of {name}, pinned is: {others})")
            await self._save({**self._globs, name: kept})
            if not kept or dataset is None:
                await trio.to_thread.run_sync(self._let_go, name, limiter=CATALOG)
            if dataset is None or not kept:
                return Pinned()
            await self._follow(dataset)
            return await trio.to_thread.run_sync(_both, dataset.catalog.file, glob, kept, limiter=CATALOG)

    async def forget(self, name: str) -> None:
        """Let go of all of a dataset that is deleted."""
        async with self._changing:
            if name in self._globs:
                await self._save({**self._globs, name: ()})
                await trio.to_thread.run_sync(self._let_go, name, limiter=CATALOG)

    def follow_soon(self, dataset: str) -> None:
        """A dataset shows another revision, or more of one: have its pins looked up again."""
        if dataset in self._globs:
            self.ask(dataset)

    def ask(self, dataset: str) -> None:
        """Have ``next_asked`` give this one."""
        self._asked.add(dataset)
        self._wake.set()

    async def next_asked(self) -> str:
        """Wait for a dataset whose pins shall be looked up again."""
        while not self._asked:
            self._wake = trio.Event()
            await self._wake.wait()
        return self._asked.pop()

    async def follow(self, dataset: Dataset) -> None:
        """Hold what is pinned of the revision that is shown."""
        async with self._changing:
            await self._follow(dataset)

    async def _follow(self, dataset: Dataset) -> None:
        name = dataset.manifest.id
        if dataset.sources.unusable:  # what it has here is not known, and is looked up once it is
            return
        globs, catalog = self.of(name), dataset.catalog
        state = json.dumps([catalog.file if catalog.sealed else time.time(), catalog.sealed, *globs])
        if globs and self._tier.index.pins_done(name) != state:
            await trio.to_thread.run_sync(self._hold, dataset, catalog.file, globs, state, limiter=CATALOG)

    # -- in threads: they scan catalogs and write the index -----------------------------------------------------------

    def _measure(self, dataset: Dataset, file: str, glob: str) -> tuple[Pinned, int]:
        """What a glob names, and how much more space would be pinned."""
        files = size_bytes = 0

        def counted() -> Iterator[tuple[str, int]]:
            nonlocal files, size_bytes
            for path, row in matching(file, glob):
                files += 1
                size_bytes += row.size or 0
                yield self._object(dataset, path, row)

        more_bytes = self._tier.index.unpinned_space(counted())
        return Pinned(files, size_bytes), more_bytes

    def _space(self, dataset: Dataset, file: str, globs: Sequence[str]) -> int:
        return sum(space for _key, space in self._objects(dataset, file, globs))

    def _objects(self, dataset: Dataset, file: str, globs: Sequence[str]) -> Iterator[tuple[str, int]]:
        """All that some globs name, each once."""
        for path, row in matching(file, ""):
            if any(named(path, glob) for glob in globs):
                yield self._object(dataset, path, row)

    def _object(self, dataset: Dataset, path: str, row: Row) -> tuple[str, int]:
        """What the cache calls a file, and the space that it takes there."""
        return dataset.origin.key_of(path, row.tag), whole_space(row.size or 0, self._tier.block_bytes)

    def _hold(self, dataset: Dataset, file: str, globs: Sequence[str], state: str) -> None:
        name, index = dataset.manifest.id, self._tier.index
        number = time.time_ns()
        index.pin(name, number, self._objects(dataset, file, globs))
        index.unpin_others(name, number)
        index.note_pins_done(name, state)
        if index.pinned_whole_bytes > self._tier.room_bytes:
            log.warning(
                "more is pinned than the cache can hold; what comes last is not kept",
                dataset=name,
                pinned_bytes=index.pinned_whole_bytes,
                room_bytes=self._tier.room_bytes,
            )

    def _let_go(self, name: str) -> None:
        self._tier.index.note_pins_done(name, None)
        self._tier.index.unpin_others(name, None)

    async def _save(self, globs: dict[str, tuple[str, ...]]) -> None:
        kept = {name: held for name, held in globs.items() if held}
        await trio.to_thread.run_sync(_write, self._file, kept, limiter=CATALOG)
        self._globs = kept


def _both(catalog_file: str, glob: str, others: Sequence[str]) -> Pinned:
    """What a glob names, and one of others does too."""
    files = size_bytes = 0
    for path, row in matching(catalog_file, glob):
        if any(named(path, other) for other in others):
            files += 1
            size_bytes += row.size or 0
    return Pinned(files, size_bytes)


def _read(file: str) -> dict[str, tuple[str, ...]]:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as text:
            pins: dict[str, list[str]] = json.load(text)["pins"]
        return {name: tuple(globs) for name, globs in pins.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheDirectoryError(
            f"{file} is damaged ({type(error).__name__}): nobody knows what is pinned (remove it, then pin again)"
        ) from error


def _write(file: str, pins: dict[str, tuple[str, ...]]) -> None:
    temporary = f"{file}.new"
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as text:
            json.dump({"pins": pins}, text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        os.rename(temporary, file)
    except OSError as error:
        raise PinRefused(f"{file} cannot be written: {os.strerror(error.errno or 0)}") from error
