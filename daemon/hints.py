"""Hints: the order in which somebody will read a dataset, carried out a bounded distance ahead of the reads.

What was said is written down in the mount's runtime directory, so it outlives a server, but not the mount.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
import trio

from daemon.hint_notes import HintNotes, Noted
from dsfs import metrics
from dsfs.catalog.lookup import ROOT_INO, Catalog
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import CATALOG
from dsfs.errors import ConfigError, DsfsError, SourceChanged, SourceUnavailable
from dsfs.fetch.disk import DISK
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.queue import Priority
from dsfs.fetch.reader import Reader
from dsfs.fetch.warm import WarmUp
from dsfs.model import Kind
from dsfs.prefetch.order import Order, distance_bytes

log = structlog.get_logger()

_POLICY = "order"
_TOLD_PATHS = 5
_BATCH_FILES = 32
_SMOOTH_S = 5.0
_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0  # of one whose origin does not answer
_LONGEST_SILENCE_S = 3600.0
"""After so long without a read of what was said to come, it comes no more."""


class HintState(StrEnum):
    """How far a hint is. ``replaced``: a newer one of its dataset has taken its place."""

    FETCHING = "fetching"
    DONE = "done"
    ENDED = "ended"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class Room:
    """What bounds the distance, in bytes: memory for the page cache, and the node's cache."""

    memory_bytes: int
    cache_bytes: int


class Hint:
    """One order while it is carried out. File side only."""

    def __init__(self, dataset: Dataset, reader: Reader, room: Room, hint_id: str = "") -> None:
        self.id = hint_id or uuid.uuid4().hex[:12]
        self.dataset = dataset
        self.scope = trio.CancelScope()
        self.order = Order()
        self.unknown = 0
        self.unknown_paths: list[str] = []
        self.state = HintState.FETCHING
        self._reader = reader
        self._room = room
        self._whole = False
        self._moved = trio.Event()
        self._rate_bytes_s = 0.0
        self._touched_s = trio.current_time()
        self._counted = (0, 0)
        self._warm = WarmUp(reader, None, self._on_error, Priority.AHEAD)

    def extend(self, inos: Sequence[int], unknown: Sequence[str], *, last: bool) -> None:
        """More of the order; ``last``: there is no more."""
        self.order.extend(inos)
        self.unknown += len(unknown)
        self.unknown_paths += unknown[: max(0, _TOLD_PATHS - len(self.unknown_paths))]
        self._whole = last
        self._move()

    def go_on(self, noted: Noted, inos: Sequence[int]) -> None:
        """Where the server before was."""
        self.order.extend(inos)
        self.order.begin_at(noted.position)
        self.unknown, self.unknown_paths, self._whole = noted.unknown, list(noted.unknown_paths), noted.whole

    def note(self) -> Noted:
        """What the next server has to know, beside the order itself."""
        order, name, unknown = self.order, self.dataset.manifest.id, tuple(self.unknown_paths)
        return Noted(self.id, name, len(order), self.unknown, unknown, order.position, self._whole)

    def touch(self, ino: int) -> None:
        """A file of the dataset was opened or read."""
        passed = self.order.touch(ino)
        if passed:
            now_s = trio.current_time()
            elapsed_s = max(now_s - self._touched_s, 1e-3)
            weight = min(1.0, elapsed_s / _SMOOTH_S)
            self._rate_bytes_s += (passed / elapsed_s - self._rate_bytes_s) * weight
            self._touched_s = now_s
        if passed or self.order.next < self.order.position + 1:
            self._move()

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "dataset": self.dataset.manifest.id,
            "state": str(self.state),
            "files": len(self.order),
            "unknown": self.unknown,
            "unknown_paths": self.unknown_paths,
            "position": self.order.position,
            "ahead_files": self.order.ahead_files,
            "ahead_bytes": self.order.ahead_bytes,
            "fetched_bytes": self._warm.progress().fetched_bytes,
        }

    async def run(self) -> None:
        """Fetch to the end of the order; through times in which the origin does not answer. Raises the DsfsError that
        ended it."""
        pause_s = _PAUSE_S
        try:
            while True:
                brought = self._warm.progress().fetched_bytes
                try:
                    await self._warm.run(self._next_batch)
                    break
                except SourceUnavailable as error:
                    log.warning("hint waits for the origin", dataset=self.dataset.manifest.id, reason=str(error))
                    self.order.take_again()
                if self._warm.progress().fetched_bytes > brought:
                    pause_s = _PAUSE_S
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self.state = HintState.DONE
        finally:
            if self.state is not HintState.DONE:
                self.state = HintState.ENDED

    def count(self) -> None:
        """Tell the metrics what was fetched ahead and what of that was in vain."""
        labels = (self.dataset.manifest.namespace, self.dataset.manifest.name, _POLICY)
        fetched, wasted = self._warm.progress().fetched_bytes, self.order.wasted_bytes
        metrics.PREFETCH_BYTES.labels(*labels).inc(fetched - self._counted[0])
        metrics.PREFETCH_WASTED_BYTES.labels(*labels).inc(wasted - self._counted[1])
        self._counted = fetched, wasted

    def _move(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    async def _next_batch(self) -> Sequence[RemoteFile]:
        """The next files that are not here, once there is room ahead; none at the end, or when nobody reads."""
        while True:
            most = distance_bytes(self._rate_bytes_s, self._room.memory_bytes, self._room.cache_bytes)
            taken = self._take(most)
            if taken:
                files = {file.key: place for place, file in taken}
                absent = await trio.to_thread.run_sync(
                    self._reader.incomplete, [file for _place, file in taken], limiter=DISK
                )
                for file in absent:
                    self.order.fetched(files[file.key], file.size_bytes)
                self.count()
                if absent:
                    return absent
                continue
            if self._whole and self.order.next >= len(self.order):
                return []
            moved = self._moved
            with trio.move_on_after(_LONGEST_SILENCE_S) as silence:
                await moved.wait()
            if silence.cancelled_caught:
                return []

    def _take(self, most_bytes: int) -> list[tuple[int, RemoteFile]]:
        """The next few, as many as there is room for if all of them have to be fetched."""
        taken: list[tuple[int, RemoteFile]] = []
        size = self.order.ahead_bytes
        while len(taken) < _BATCH_FILES and self.order.has_room(most_bytes) and (size < most_bytes or not taken):
            found = self.order.take()
            if found is None:
                break
            place, ino = found
            row = self.dataset.catalog.row(ino)  # what another revision has in its place nobody hinted at
            if row is not None and row.kind == Kind.FILE and row.size:
                taken.append((place, self.dataset.remote_file(row)))
                size += row.size
        return taken

    def _on_error(self, file: RemoteFile, error: DsfsError) -> None:
        if isinstance(error, SourceChanged):
            self.dataset.note_changed()


class Hints:
    """The latest hint of each dataset. ``place_of`` is where a dataset lies in the mount."""

    def __init__(
        self,
        directory: str,
        reader: Reader,
        nursery: trio.Nursery,
        room: Callable[[], Room],
        place_of: Callable[[Dataset], str],
    ) -> None:
        self._reader = reader
        self._nursery = nursery
        self._room = room
        self._place_of = place_of
        self._hints: dict[str, Hint] = {}
        self._notes = HintNotes(f"{directory}/hints")
        self._writing = trio.Lock()
        self._written: dict[str, Noted] = {}  # by id
        self._resumed = trio.Event()

    async def resume(self, datasets: Mapping[str, Dataset]) -> None:
        """Go on with what the server before was told."""
        try:
            await self._resume(datasets)
        finally:
            self._resumed.set()

    async def _resume(self, datasets: Mapping[str, Dataset]) -> None:
        async with self._writing:  # what is half written, or goes just now, would look like what cannot be read
            found = await trio.to_thread.run_sync(self._notes.read, limiter=DISK)
        for noted, inos in found:
            dataset, newer = datasets.get(noted.dataset), self._hints.get(noted.dataset)
            if newer is not None and newer.id == noted.id:
                continue
            if dataset is None or newer is not None:  # deleted; somebody was quicker with a newer one
                await self._remove(noted.id)
                continue
            self._written[noted.id] = noted
            hint = Hint(dataset, self._reader, self._room(), noted.id)
            hint.go_on(noted, inos)
            self._begin(noted.dataset, hint)

    async def save(self) -> None:
        """Write down where the readers are by now, and what could not be written before."""
        for hint in list(self._hints.values()):
            if self._written.get(hint.id) != hint.note():
                await self._write(hint)

    def _begin(self, name: str, hint: Hint) -> None:
        self._hints[name] = hint
        hint.dataset.on_touch = hint.touch
        self._nursery.start_soon(self._run, hint)

    async def add(self, dataset: Dataset, paths: Sequence[str], hint_id: str | None, *, last: bool) -> Hint | None:
        """Begin with a new order, or go on with one (``hint_id``); None if a newer one has taken its place.

        Raises ConfigError.
        """
        name = dataset.manifest.id
        await dataset.settled.wait()
        if hint_id is not None and (await self.get(name)).id != hint_id:
            return None  # of no use to look for its paths
        place = self._place_of(dataset)
        inos, unknown = await trio.to_thread.run_sync(_resolve, dataset.catalog.file, paths, place, limiter=CATALOG)
        if hint_id is None:
            self.forget(name)
            hint = Hint(dataset, self._reader, self._room())
            self._begin(name, hint)
        else:
            hint = await self.get(name)
            if hint.id != hint_id:  # since then
                return None
        hint.extend(inos, unknown, last=last)
        await self._write(hint)
        return hint

    async def _write(self, hint: Hint) -> None:
        """How it stands, with what of its order is not written down yet."""
        async with self._writing:
            if self._hints.get(hint.dataset.manifest.id) is not hint:
                return  # a newer one has taken its place
            noted, before = hint.note(), self._written.get(hint.id)
            more = hint.order.since(0 if before is None else before.files)
            try:
                await trio.to_thread.run_sync(self._notes.write, noted, more, limiter=DISK)
            except OSError as error:  # it is carried out all the same; only a server that dies forgets it
                log.warning("hint cannot be written down", dataset=noted.dataset, reason=str(error))
            else:
                self._written[hint.id] = noted

    async def _remove(self, hint_id: str) -> None:
        async with self._writing:
            self._written.pop(hint_id, None)
            try:
                await trio.to_thread.run_sync(self._notes.remove, hint_id, limiter=DISK)
            except OSError as error:
                log.warning("hint cannot be removed", reason=str(error))

    def forget(self, name: str) -> None:
        """End the hint of a dataset, if there is one."""
        hint = self._hints.pop(name, None)
        if hint is not None:
            hint.scope.cancel()
            _end(hint)
            self._nursery.start_soon(self._remove, hint.id)

    async def get(self, name: str) -> Hint:
        """The hint of a dataset, perhaps that of the server before. Raises ConfigError if there is none."""
        if name not in self._hints:
            await self._resumed.wait()
        if name not in self._hints:
            raise ConfigError(f"{name}: there is no hint for it")
        return self._hints[name]

    async def _run(self, hint: Hint) -> None:
        name = hint.dataset.manifest.id
        started_s = time.monotonic()
        with hint.scope:
            try:
                await hint.run()
            except DsfsError as error:
                log.warning("hint ended", dataset=name, reason=str(error))
            except Exception:  # a bug here must not end the server
                log.exception("hint failed unexpectedly", dataset=name)
        hint.count()
        log.debug("hint carried out", dataset=name, files=len(hint.order), seconds=time.monotonic() - started_s)


def replaced(dataset: Dataset, hint_id: str) -> dict[str, Any]:
    """As ``Hint.as_json``, of one that a newer one has taken the place of: more of it is not kept."""
    return {
        "id": hint_id,
        "dataset": dataset.manifest.id,
        "state": str(HintState.REPLACED),
        "files": 0,
        "unknown": 0,
        "unknown_paths": [],
        "position": 0,
        "ahead_files": 0,
        "ahead_bytes": 0,
        "fetched_bytes": 0,
    }


def _end(hint: Hint) -> None:
    if hint.dataset.on_touch == hint.touch:
        hint.dataset.on_touch = None
    hint.order.end()
    hint.count()


def _resolve(catalog_file: str, paths: Sequence[str], place: str) -> tuple[list[int], list[str]]:
    """Numbers of files by their paths, in order, and the paths that are none. Scans: not for the loop."""
    catalog = Catalog(catalog_file)
    directories: dict[str, int | None] = {"": ROOT_INO}
    inos: list[int] = []
    unknown: list[str] = []
    try:
        for path in paths:
            inside = os.path.normpath(path.removeprefix(f"{place}/")) if path.strip() else ""
            directory, _, name = inside.rpartition("/")
            if directory not in directories:
                row = None if directory.startswith("/") else catalog.find(directory)
                directories[directory] = row.ino if row is not None and row.kind == Kind.DIRECTORY else None
            parent = directories[directory]
            row = catalog.lookup(parent, os.fsencode(name)) if parent is not None and name else None
            if row is not None and row.kind == Kind.FILE:
                inos.append(row.ino)
            else:
                unknown.append(path)
    finally:
        catalog.close()
    return inos, unknown
