"""What is brought in ahead of the readers of one dataset: policies decide (prefetch/), this asks for it and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio
from cachetools import LRUCache, TTLCache

from dsfs import metrics
from dsfs.catalog.lookup import Catalog, Row
from dsfs.datasets.dataset import Dataset
from dsfs.fetch.flight import SMALL_BLOCKS
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.queue import Priority
from dsfs.fetch.reader import Reader
from dsfs.model import Kind
from dsfs.prefetch.completion import Samples, worth_completing
from dsfs.prefetch.formats import first_wants
from dsfs.prefetch.neighbours import LOOK_FILES, Neighbour, Neighbours
from dsfs.prefetch.sequential import LEAST_WINDOW_BYTES, Streams
from dsfs.prefetch.strided import Strides
from dsfs.prefetch.worth import Worth
from dsfs.ranges import ByteRange, MiB

_KNOWN_FILES = 8192
_SILENT_S = 5.0
"""A file that nobody has read from for so long is taken for one whose reader has gone elsewhere: without opens nobody
tells, and what was brought ahead of readers that look at heads only would never be found to be wasted."""

_UNKEPT_BYTES = 48 * MiB
"""Ahead of all readers of a dataset for which the node tier has no room: memory holds little more (``fetch.fresh``)."""
_COMPLETE_AGAIN_S = 600.0
"""What ended as there was no room, or as its source failed, would end so again soon."""

POLICIES = ("sequential", "strided", "neighbours")


class Ahead:
    """Files are named by their number in the catalog. File side only."""

    def __init__(self, dataset: Dataset, reader: Reader, cache_limit_bytes: int, longest_window: int) -> None:
        self._dataset = dataset
        self._reader = reader
        self._cache_limit_bytes = cache_limit_bytes
        self._longest_window = longest_window
        self._streams: LRUCache[int, Streams] = LRUCache(_KNOWN_FILES)
        self._read_lately: TTLCache[int, Streams] = TTLCache(_KNOWN_FILES, _SILENT_S, trio.current_time)
        self._strides: LRUCache[int, Strides] = LRUCache(_KNOWN_FILES)
        self._completing: TTLCache[int, bool] = TTLCache(_KNOWN_FILES, _COMPLETE_AGAIN_S, trio.current_time)
        self._begun: LRUCache[int, bool] = LRUCache(_KNOWN_FILES)
        self._worth = {policy: Worth() for policy in POLICIES}
        self._neighbours = Neighbours(self._worth["neighbours"])
        self._counted = dict.fromkeys(POLICIES, 0)
        self._samples = Samples()
        self._sampled: Catalog | None = None

    def opened(self, ino: int) -> None:
        """A file is opened, or read by somebody who may not have asked to open it."""
        if self._dataset.on_touch is not None:
            self._dataset.on_touch(ino)
        walk = self._neighbours.follows(ino)
        if walk is not None:
            self._bring_small(self._neighbours.step(walk, ino))
            if (wanted := self._neighbours.wants_more(walk)) is not None:
                self._neighbours.more(walk, self._behind(*wanted))
            self._count("neighbours")

    def begun(self, ino: int, file: RemoteFile) -> None:
        """A large file is opened, or read for the first time: some say by their name what is wanted first."""
        if ino not in self._begun:
            self._begun[ino] = True
            first = first_wants(file.obj.path, file.size_bytes)
            if first is not None:
                self._reader.want(file, first, Priority.AHEAD)

    def missed(self, ino: int) -> None:
        """A small file is read that was not here."""
        catalog = self._dataset.catalog
        if catalog is not self._sampled:  # another revision may have other files below
            self._sampled, self._samples = catalog, Samples()
        if not self._samples.is_new(ino):
            return
        if self._neighbours.follows(ino) is None and self._neighbours.worth_beginning():
            row = self._dataset.row(ino)
            if row is not None:
                self._neighbours.begin(row.parent, self._behind(ino, LOOK_FILES))
                self._count("neighbours")
        due = self._samples.missed(catalog.directories_above(ino))
        if catalog.sealed:
            if due:
                self._dataset.on_sampled(due, self._samples)
            return
        for directory in due:
            self._samples.not_yet(directory)

    def on_read(self, ino: int, file: RemoteFile, wanted: ByteRange) -> None:
        """A range of a large file is read."""
        self.begun(ino, file)
        streams = self._streams.get(ino)
        if streams is None:
            streams = self._streams[ino] = Streams(self._worth["sequential"])
        self._note_read(ino, streams)
        kept = file.origin.is_kept
        ahead = streams.on_read(wanted, file.size_bytes, self._longest_window if kept else self._unkept_window())
        if kept and not streams.forward:
            self._stride(ino, file, wanted)
        if ahead is not None:
            self._reader.want(file, wanted, Priority.DEMAND)
            self._want(file, ahead, "sequential")
            return
        if kept and ino not in self._completing and self._worth_completing(file):
            self._completing[ino] = True
            self._reader.fill(file)

    def _worth_completing(self, file: RemoteFile) -> bool:
        return worth_completing(self._reader.present_bytes(file), file.size_bytes, self._cache_limit_bytes)

    def _unkept_window(self) -> int:
        readers = max(1, len(self._read_lately))
        return max(LEAST_WINDOW_BYTES, min(self._longest_window, _UNKEPT_BYTES // readers))

    def _note_read(self, ino: int, streams: Streams) -> None:
        with self._read_lately.timer:
            silent = [each for each in self._read_lately.expire() if each[0] != ino]
            self._read_lately[ino] = streams
        for gone, each in silent:
            each.settle()
            self._end_strides(gone)
        if silent:
            self._count("sequential")

    def closed(self, ino: int, file: RemoteFile) -> None:
        """Nobody has a file open any more: what was wanted ahead and has not begun does not begin."""
        streams = self._streams.pop(ino, None)
        self._read_lately.pop(ino, None)
        if streams is not None:
            for unread in streams.end():
                self._withdraw(file, unread)
            self._count("sequential")
        self._end_strides(ino)

    def _end_strides(self, ino: int) -> None:
        strides = self._strides.pop(ino, None)
        if strides is not None:
            self._worth["strided"].note(strides.used_bytes(), strides.unread_bytes())
            self._count("strided")

    def _stride(self, ino: int, file: RemoteFile, wanted: ByteRange) -> None:
        strides = self._strides.get(ino)
        if strides is None:
            strides = self._strides[ino] = Strides()
        ahead = strides.on_read(wanted, file.size_bytes)
        if ahead and self._worth["strided"].allowed(len(ahead)) == len(ahead):
            self._reader.want(file, wanted, Priority.DEMAND)
            for each in ahead:
                self._want(file, each, "strided")

    def _behind(self, ino: int, limit: int) -> list[Neighbour]:
        """The small files behind one in its directory."""
        row = self._dataset.row(ino)
        if row is None:
            return []
        found = self._dataset.catalog.children(row.parent, row.name, limit)
        return [Neighbour(each.ino, each.size) for each in found if each.size and self._is_small(each)]

    def _is_small(self, row: Row) -> bool:
        return row.kind == Kind.FILE and 0 < (row.size or 0) <= SMALL_BLOCKS * self._reader.block_bytes

    def _bring_small(self, files: Sequence[Neighbour]) -> None:
        left_bytes = math.inf if self._dataset.origin.is_kept else self._unkept_window()
        for each in files:
            row = self._dataset.row(each.ino)
            left_bytes -= each.size_bytes
            if row is not None and left_bytes > 0:
                file = self._dataset.remote_file(row)
                self._want(file, ByteRange(0, file.size_bytes), "neighbours")

    def _want(self, file: RemoteFile, wanted: ByteRange, policy: str) -> None:
        missing = self._reader.want(file, wanted, Priority.AHEAD)
        size = min(missing * self._reader.block_bytes, wanted.length)
        metrics.PREFETCH_BYTES.labels(file.origin.namespace, file.origin.dataset, policy).inc(size)

    def _withdraw(self, file: RemoteFile, unread: ByteRange) -> None:
        size = self._reader.withdraw(file, unread)
        self._worth["sequential"].take_back(size)

    def _count(self, policy: str) -> None:
        wasted = self._worth[policy].wasted_total
        if wasted > self._counted[policy]:
            origin = self._dataset.origin
            more = wasted - self._counted[policy]
            metrics.PREFETCH_WASTED_BYTES.labels(origin.namespace, origin.dataset, policy).inc(more)
            self._counted[policy] = wasted
