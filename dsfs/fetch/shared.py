"""The shared tier of a cluster, asked before the origin: a group is there, or another node brings it, or we do."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog
import trio

from dsfs import metrics
from dsfs.cache import shared_lease, shared_space
from dsfs.cache.scrub import pause_s
from dsfs.cache.shared_file import DamagedGroup, Group, check_group, read_group, write_group
from dsfs.cache.shared_layout import PUBLIC
from dsfs.cache.shared_lease import Lease, Look
from dsfs.fetch.shared_disk import SharedDisk
from dsfs.fetch.shared_room import Unusable
from dsfs.ranges import MiB
from dsfs.sources.base import Buffer

log = structlog.get_logger()

_TOUCH_S = 60.0
_SAMPLERS = 16


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds. A holder that shows no life for ``stale_s`` is overtaken; one that lives but brings nothing for
    ``progress_s`` is not waited for any longer."""

    beat_s: float = 1.0
    stale_s: float = 4.0
    progress_s: float = 8.0
    longest_pause_s: float = 0.25


Found = list[memoryview]


@dataclass(frozen=True, slots=True)
class Busy:
    """Another node brings this group; how its lease looked."""

    path: str
    look: Look


@dataclass(slots=True, eq=False)
class Bringing:
    """We bring a group: its lease, and how many of its blocks have landed. Ended by ``publish`` or ``give_up``."""

    area: str
    group: Group
    lease: Lease
    landed: int = 0
    ended: bool = False


class SharedTier:
    """File side only; ``_find`` and ``_publish`` run in the disk's threads. All paths are below the root."""

    def __init__(self, disk: SharedDisk, patience: Patience | None = None) -> None:
        self.disk = disk
        self.patience = patience or Patience()
        self._token = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._bringing: set[Bringing] = set()

    @property
    def usable(self) -> bool:
        return self.disk.usable

    def first_group(self, key: str, groups: int) -> int:
        """With which group of an object this node begins when nobody waits: each with another, so that nodes bring
        different parts."""
        return random.Random(f"{self._token}{key}").randrange(groups)

    async def run(self) -> None:
        """Show life for what we bring."""
        while True:
            await trio.sleep(self.patience.beat_s)
            due = [each for each in self._bringing if _now_s() - each.lease.seen_s >= self.patience.beat_s]
            if due and self.usable:
                try:
                    await self.disk.call(self._touch, due)
                except Unusable:
                    continue  # whoever waits overtakes us, and what we bring is as good as what they do

    async def find(self, area: str, group: Group, *, bring: bool) -> Found | Busy | Bringing | None:
        """The group; or who brings it; or, when nobody does and ``bring`` is set, the right to. None: go without."""
        bring = bring and self.disk.has_room(
            group.content_bytes + sum(each.group.content_bytes for each in self._bringing)
        )
        try:
            found = await self.disk.call(self._find, area, group, bring)
        except Unusable:
            return None
        if isinstance(found, Lease):
            bringing = Bringing(area, group, found)
            self._bringing.add(bringing)
            return bringing
        return found

    def _find(self, area: str, group: Group, bring: bool) -> Found | Busy | Lease | None:
        self.disk.use_area(area)
        directory = group.directory(area)
        try:
            with self.disk.directory(directory) as fd:
                return self._find_in(fd, group.path(area), group, bring)
        except FileNotFoundError:
            if not bring:
                return None
        self.disk.make_directory(directory)
        with self.disk.directory(directory) as fd:
            return self._find_in(fd, group.path(area), group, bring)

    def _find_in(self, fd: int, path: str, group: Group, bring: bool) -> Found | Busy | Lease | None:
        """``fd`` is the directory. Raises OSError: FileNotFoundError when that has gone meanwhile."""
        found = self._read(fd, path, group)
        if found is not None or not bring:
            return found
        lease_path = f"{path}{shared_lease.SUFFIX}"
        lease = shared_lease.take(lease_path, _now_s(), fd)
        if lease is None:
            look = shared_lease.look(lease_path, fd)
            return self._read(fd, path, group) if look is None else Busy(lease_path, look)
        # Somebody may have brought it between the two; and an NFS client, which may have remembered until here that
        # there is no such file, asks again now that it has made something beside it.
        found = self._read(fd, path, group)
        if found is None:
            return lease
        shared_lease.give_back(lease, _now_s(), self.patience.stale_s / 2, fd)
        return found

    def _read(self, fd: int, path: str, group: Group) -> Found | None:
        try:
            return read_group(path, group, fd, self.disk.clock_ns() - int(_TOUCH_S * 1e9), self.disk.owners())
        except FileNotFoundError:
            return None
        except DamagedGroup as damage:
            self._drop(path, damage)
            return None

    async def forget(self, area: str, groups: Iterable[Group]) -> None:
        """Remove groups, whoever has brought them, if they are here. Whoever comes next brings them again."""
        with contextlib.suppress(Unusable):  # said where it was noted
            await self.disk.call_long(self._forget, area, groups)

    def _forget(self, area: str, groups: Iterable[Group]) -> None:
        self.disk.use_area(area)
        for group in groups:
            self.disk.drop(group.path(area))

    async def scrub(self, every_s: float) -> None:
        """Check files of the directory at random, slowly and for ever; what is damaged goes.

        No node leads and none knows of the others, so each looks at a sample: in ``every_s`` a sixteenth of all.
        """
        while True:
            try:
                size_bytes = await self.disk.call_long(self._check_one) if self.usable else 0
            except Unusable:
                size_bytes = 0
            used_bytes = self.disk.statistics().used_bytes
            await trio.sleep(pause_s(size_bytes or MiB, used_bytes, every_s * _SAMPLERS))

    def _check_one(self) -> int:
        directories = shared_space.directories(self.disk.root)
        found = shared_space.entries(self.disk.root, random.choice(directories)) if directories else []
        published = [entry.path for entry in found if entry.published]
        if not published:
            return 0
        path = random.choice(published)
        try:
            with self.disk.directory(os.path.dirname(path)) as fd:
                size_bytes = check_group(path, fd)
        except (FileNotFoundError, NotADirectoryError):
            return 0  # evicted, or put aside, just now
        except DamagedGroup as damage:
            self._drop(path, damage)
            return 0
        metrics.SCRUBBED_BYTES.inc(size_bytes)
        return size_bytes

    def _drop(self, path: str, damage: DamagedGroup) -> None:
        metrics.CORRUPT_BLOCKS.inc()
        log.warning("shared cache file dropped", shared=self.disk.root, reason=str(damage))
        self.disk.drop(path)

    async def wait(self, busy: Busy, deadline_s: float) -> bool:
        """Until the group may be here, or its holder is dead; False: it is not worth the waiting any longer."""
        look = busy.look
        changed_s = landed_s = trio.current_time()
        pause_s = 0.02
        while (now_s := trio.current_time()) < deadline_s and now_s - landed_s < self.patience.progress_s:
            await trio.sleep(min(pause_s, deadline_s - now_s))
            pause_s = min(1.5 * pause_s, self.patience.longest_pause_s)
            try:
                latest = await self.disk.call(self._look, busy.path)
                if latest is None:
                    return True
                now_s = trio.current_time()
                if (latest.inode, latest.size) != (look.inode, look.size):
                    landed_s = now_s
                if latest != look:
                    look, changed_s = latest, now_s
                elif now_s - changed_s > self.patience.stale_s:
                    log.info("lease of another node overtaken", shared=self.disk.root, lease=busy.path)
                    await self.disk.call(self._overtake, busy.path, look)
                    return True
            except Unusable:
                return False
        return False

    async def publish(self, bringing: Bringing, blocks: Sequence[Buffer]) -> None:
        """Give a group to the others, and its lease back. What goes wrong is noted, and costs only the copy."""
        group = bringing.group
        try:
            size_bytes = await self.disk.call(self._publish, bringing, blocks)
        except Unusable:
            return  # the lease is given up by who took it
        bringing.ended = True
        self._bringing.discard(bringing)
        self.disk.note_published(group.directory(bringing.area), size_bytes)
        metrics.SHARED_WRITTEN_BYTES.inc(group.content_bytes)

    def _publish(self, bringing: Bringing, blocks: Sequence[Buffer]) -> int:
        self.disk.use_area(bringing.area)
        group, mode = bringing.group, 0o644 if bringing.area == PUBLIC else 0o600
        token = f"{self._token}-{next(self._numbers)}"
        with self.disk.directory(group.directory(bringing.area)) as fd:
            size_bytes = write_group(group.path(bringing.area), group, blocks, token, mode, fd)
            shared_lease.give_back(bringing.lease, _now_s(), self.patience.stale_s / 2, fd)
        return size_bytes

    async def give_up(self, bringing: Bringing) -> None:
        """Let another node try, if the group was not published. Does not wait for long."""
        self._bringing.discard(bringing)
        if bringing.ended:
            return
        bringing.ended = True
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            try:
                await self.disk.call(self._give_back, bringing.lease)
            except Unusable:
                return  # it is overtaken, once it has looked the same for long enough

    # -- leases, in the disk's threads ------------------------------------------------------------------------------
    # One whose directory is gone is gone too.

    def _look(self, path: str) -> Look | None:
        with contextlib.suppress(FileNotFoundError), self.disk.directory(os.path.dirname(path)) as fd:
            return shared_lease.look(path, fd)
        return None

    def _overtake(self, path: str, look: Look) -> None:
        with contextlib.suppress(FileNotFoundError), self.disk.directory(os.path.dirname(path)) as fd:
            shared_lease.overtake(path, look, fd)

    def _give_back(self, lease: Lease) -> None:
        with contextlib.suppress(FileNotFoundError), self.disk.directory(os.path.dirname(lease.path)) as fd:
            shared_lease.give_back(lease, _now_s(), self.patience.stale_s / 2, fd)

    def _touch(self, due: Sequence[Bringing]) -> None:
        for each in due:
            if not each.ended:
                with (
                    contextlib.suppress(FileNotFoundError),
                    self.disk.directory(os.path.dirname(each.lease.path)) as fd,
                ):
                    shared_lease.touch(each.lease, each.landed, _now_s(), fd)


def _now_s() -> float:
    """A clock that goes on while the machine sleeps: a lease may have been overtaken then."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
