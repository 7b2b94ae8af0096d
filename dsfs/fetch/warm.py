"""A warm-up and its progress: files brought into the node tier behind everybody who reads.

However many files there are, a batch of them is known at a time and a few dozen runs of blocks are asked for; what is
here already costs a look at its map, in a thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import trio

from dsfs.errors import (
    CacheFull,
    DsfsError,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    SourceUnsupported,
    first_of,
    one_line,
)
from dsfs.fetch.disk import DISK
from dsfs.fetch.flight import SMALL_BLOCKS
from dsfs.fetch.flights import LONGEST_RUN_BLOCKS
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.queue import Priority
from dsfs.fetch.reader import Reader
from dsfs.ranges import block_count, block_range, runs

WORKERS = 32
"""Runs that are asked for at once; how many of them fly is the queue's to say."""
TOLD_ERRORS = 5
TOLD_CHARACTERS = 500
HOPELESS = 64
"""After so many failures in a row for one general cause, that is true of the files behind them too."""


@dataclass(frozen=True, slots=True)
class WarmProgress:
    """A snapshot. ``done`` is here now, ``fetched`` of it was brought by this warm-up."""

    files_done: int
    bytes_done: int
    fetched_bytes: int
    failed_files: int
    errors: tuple[str, ...]


class Throttle:
    """Spaces bytes out to a rate, from the first one on."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._next_s = 0.0

    async def take(self, size_bytes: int) -> None:
        start_s = max(self._next_s, trio.current_time())
        self._next_s = start_s + size_bytes / self.bytes_per_s
        await trio.sleep_until(start_s)


@dataclass(slots=True, eq=False)
class _File:
    """A file of which runs are on their way."""

    file: RemoteFile
    runs_left: int
    failed: bool = False


class WarmUp:
    """File side only. ``on_error`` hears of each file that cannot be brought in. What ``stays`` takes the places of
    what is used; else it has to be used itself, or goes first."""

    def __init__(
        self,
        reader: Reader,
        bytes_per_s: float | None,
        on_error: Callable[[RemoteFile, DsfsError], None],
        priority: Priority = Priority.WARM,
        *,
        stays: bool = False,
    ) -> None:
        self._reader = reader
        self._stays = stays
        self._priority = priority
        self._on_error = on_error
        self._throttle = Throttle(bytes_per_s) if bytes_per_s else None
        per_second = int(bytes_per_s / reader.block_bytes) if bytes_per_s else LONGEST_RUN_BLOCKS
        self._run_blocks = max(1, min(LONGEST_RUN_BLOCKS, per_second))  # a slow rate is not made of bursts
        self._not_kept = 0  # of the files that failed
        self._in_a_row = 0
        self._files_done = self._bytes_done = self._fetched_bytes = self._failed_files = 0
        self._errors: list[str] = []

    def progress(self) -> WarmProgress:
        return WarmProgress(
            self._files_done, self._bytes_done, self._fetched_bytes, self._failed_files, tuple(self._errors)
        )

    @property
    def in_vain(self) -> bool:
        """Whether all that failed came and could not be kept: it would come again with the next try."""
        return self._not_kept == self._failed_files > 0

    async def run(self, next_batch: Callable[[], Awaitable[Sequence[RemoteFile]]]) -> None:
        """Bring in all files, until a batch is empty; may be called again. Single files that fail are counted.

        Raises SourceError or CacheFull when file after file fails for a cause that the next ones share.
        """
        self._in_a_row = 0
        try:
            async with trio.open_nursery() as nursery:
                send, receive = trio.open_memory_channel[tuple[_File, range]](0)
                async with send:
                    for _worker in range(WORKERS):
                        nursery.start_soon(self._work, receive)
                    while batch := await next_batch():
                        await self._hand_out(batch, send)
        except BaseExceptionGroup as group:
            expected = first_of(group, DsfsError)
            if expected is None:
                raise
            raise expected from group

    async def _hand_out(self, batch: Sequence[RemoteFile], send: trio.MemorySendChannel[tuple[_File, range]]) -> None:
        absent = await trio.to_thread.run_sync(partial(self._reader.incomplete, batch), limiter=DISK)
        known = {file.key for file in absent}
        here = [file for file in batch if file.key not in known]
        self._files_done += len(here)
        self._bytes_done += sum(file.size_bytes for file in here)
        if self._stays:
            self._reader.ask_for(here)
        for file in absent:
            total = block_count(file.size_bytes, self._reader.block_bytes)
            missing: Sequence[int] = range(total) if total <= SMALL_BLOCKS else await self._reader.missing(file)
            self._bytes_done += file.size_bytes - self._size_of(file, missing)
            longest = total if total <= SMALL_BLOCKS else self._run_blocks
            wanted = list(runs(missing, longest))
            if not wanted:
                self._files_done += 1
                continue
            known_file = _File(file, len(wanted))
            for run in wanted:
                await send.send((known_file, run))

    async def _work(self, receive: trio.MemoryReceiveChannel[tuple[_File, range]]) -> None:
        async for wanted, run in receive:
            if not wanted.failed:
                with self._reader.asked_for(wanted.file) if self._stays else nullcontext():
                    await self._bring(wanted, run)

    async def _bring(self, wanted: _File, run: range) -> None:
        file = wanted.file
        size = self._size_of(file, run)
        absent = not self._reader.has(file, run)  # a reader may have brought it since its batch was looked at
        if absent and self._throttle is not None:
            await self._throttle.take(size)
            absent = not self._reader.has(file, run)
        if absent:
            try:
                if not await self._reader.bring(file, run, self._priority):
                    raise CacheFull(
                        "it came but could not be kept: the cache or its quota has no room, or its disk refuses"
                    )
            except (SourceError, CacheFull) as error:
                self._failed(wanted, error)
                return
            self._in_a_row = 0
            self._fetched_bytes += size
        self._bytes_done += size
        wanted.runs_left -= 1
        if wanted.runs_left == 0:
            self._files_done += 1

    def _failed(self, wanted: _File, error: SourceError | CacheFull) -> None:
        if not wanted.failed:
            wanted.failed = True
            self._failed_files += 1
            self._not_kept += isinstance(error, CacheFull)
            if len(self._errors) < TOLD_ERRORS:
                self._errors.append(one_line(f"{wanted.file.obj.path}: {error}", TOLD_CHARACTERS))
            self._on_error(wanted.file, error)
        if isinstance(error, SourceUnavailable | SourceRefused | SourceUnsupported | CacheFull):
            self._in_a_row += 1
            if self._in_a_row >= HOPELESS:
                raise error

    def _size_of(self, file: RemoteFile, blocks: Iterable[int]) -> int:
        return sum(block_range(block, file.size_bytes, self._reader.block_bytes).length for block in blocks)
