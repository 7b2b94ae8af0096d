"""Small files by courier: a real process beside a real fetcher, and a server that misbehaves as told.

What the courier cannot do, and what it was at when it died, comes another way: never wrong bytes, never a lost reader.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import hashlib
import os
import random
import resource
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

import pytest
import structlog
import trio
import trio.testing

from dsfs import metrics
from dsfs.bridge import Bridge, network_side
from dsfs.cache.complete import CompleteObject
from dsfs.cache.index import Index
from dsfs.cache.layout import Layout
from dsfs.cache.node import NodeTier
from dsfs.errors import SourceChanged, SourceError, SourceRefused, SourceTimeout, SourceUnavailable
from dsfs.fetch.by_courier import ByCourier
from dsfs.fetch.courier import Courier
from dsfs.fetch.errand import LARGEST_MESSAGE
from dsfs.fetch.flights import Flights
from dsfs.fetch.origin import Origin, RemoteFile
from dsfs.fetch.queue import FetchQueue, Limits, Priority
from dsfs.fetch.reader import Reader
from dsfs.model import SourceObject, object_key
from dsfs.ranges import ByteRange, KiB
from dsfs.sources.digest import Digest
from dsfs.sources.http import HttpSource
from dsfs.sources.http_client import proof_of
from dsfs.sources.timeouts import Timeouts
from dsfs.sources.wire_request import WireRequest
from tests.servers import hostile as h

BLOCK: Final = 128 * KiB
DATA: Final = random.Random(5).randbytes(BLOCK - 1000)
WITHIN_S: Final = 30
SHORT: Final = Timeouts(connect_s=3.0, idle_s=1.0)
LONG: Final = Timeouts(connect_s=3.0, idle_s=300.0)
ARGV: Final = (sys.executable, "-m", "daemon.courier")

RIGHT: Final = None


def tells(data: bytes) -> h.Behaviour:
    """The answer says which hash its file has: that of these bytes."""
    told = base64.b64encode(hashlib.sha256(data).digest()).decode()

    def behave(_asked: h.Asked, _data: bytes, answer: h.Answer) -> h.Answer:
        return answer.with_headers(Repr_Digest=f"sha-256=:{told}:")

    return behave


CASES: Final = [  # one bad answer; what comes of it when every other one is good, and when none is
    (h.other_range, RIGHT, SourceUnavailable),
    (h.other_bytes_count, RIGHT, SourceUnavailable),
    (h.whole_for_range, RIGHT, RIGHT),
    (h.part_under_200, RIGHT, RIGHT),
    (h.part_under_200_unsaid, RIGHT, RIGHT),
    (h.no_content_range, RIGHT, SourceUnavailable),
    (h.nonsense_range, RIGHT, SourceUnavailable),
    (h.wrong_total, RIGHT, SourceChanged),
    (h.short_body, RIGHT, SourceUnavailable),
    (h.short_length, RIGHT, SourceUnavailable),
    (h.compressed, RIGHT, SourceUnavailable),
    (h.reset_midway, RIGHT, SourceUnavailable),
    (h.stall_midway, RIGHT, SourceTimeout),
    (h.other_etag, RIGHT, SourceChanged),
    (h.other_version, RIGHT, SourceChanged),
    (tells(DATA), RIGHT, RIGHT),
    (tells(b"others"), RIGHT, SourceUnavailable),
    (h.status(403), SourceRefused, SourceRefused),
    (h.status(404), SourceChanged, SourceChanged),
    (h.status(412), SourceChanged, SourceChanged),
    (h.status(500), RIGHT, SourceUnavailable),
    (h.status(503), RIGHT, SourceUnavailable),
]


@dataclass
class World:
    server: h.Hostile
    bridge: Bridge
    tier: NodeTier
    flights: Flights
    reader: Reader
    origin: Origin
    queue: FetchQueue

    @property
    def courier(self) -> ByCourier:
        assert self.flights.courier is not None
        return self.flights.courier

    def file(self, name: str, data: bytes = DATA) -> RemoteFile:
        """A file of the server, as it is when it is listed."""
        self.server.files[f"/bucket/{name}"] = data
        tag = h.etag_of(data)
        obj = SourceObject(name, size=len(data), version_tag=tag)
        return RemoteFile(object_key("test", name, tag), len(data), obj, self.origin)

    async def read(self, file: RemoteFile) -> bytes:
        with trio.fail_after(WITHIN_S):
            return b"".join(await self.reader.read(file, ByteRange(0, file.size_bytes)))

    async def ends(self, file: RemoteFile, error: type[SourceError] | None) -> None:
        """Read it, and assert that this comes of it: an error, or the bytes."""
        if error is RIGHT:
            assert await self.read(file) == DATA
        else:
            with pytest.raises(error):
                await self.read(file)
            assert self.tier.open(file.key, file.size_bytes, "") is None

    async def ready(self, *, other_than: int = 0) -> int:
        """Once there is a courier that takes errands; its pid."""
        with trio.fail_after(WITHIN_S):
            while not self.courier.ready or self.courier.pid == other_than:  # noqa: ASYNC110  # it tells nobody
                await trio.sleep(0.01)
        return self.courier.pid

    async def idle(self) -> None:
        with trio.fail_after(WITHIN_S):
            while self.busy:  # noqa: ASYNC110  # they tell nobody
                await trio.sleep(0.01)

    @property
    def busy(self) -> bool:
        """What nobody waits for any more may still be stored: room is kept for it."""
        return bool(self.flights.under_way or self.queue.in_flight or self.tier.statistics().reserved_bytes)


def stored() -> float:
    return metrics.COURIER_FILES.labels("stored")._value.get()


def hedged(faster: str) -> float:
    return metrics.HEDGED_REQUESTS.labels("test", "small", faster)._value.get()


def otherwise() -> float:
    return metrics.COURIER_FILES.labels("otherwise")._value.get()


@asynccontextmanager
async def world(
    root: Path, server: h.Hostile, deadline_s: float, limit: int, timeouts: Timeouts
) -> AsyncIterator[World]:
    for name in ("catalogs", "index", *(f"objects/{fan:02x}" for fan in range(256))):
        os.makedirs(f"{root}/{name}")
    index = Index(f"{root}/index")
    tier = NodeTier(Layout(str(root), -1), index, lambda: limit, b"b" * 16, BLOCK)
    async with network_side() as bridge, trio.open_nursery() as nursery:
        queue = FetchQueue(Limits(64 * BLOCK, 16, 16))
        flights = Flights(nursery, bridge, tier, queue, deadline_s, courier_argv=ARGV)
        source = HttpSource(f"{server.url}bucket/", timeouts=timeouts)
        flights.expect(source)
        there = World(server, bridge, tier, flights, Reader(tier, flights), Origin(source, "test", "small"), queue)
        try:
            pid = await there.ready()
            # The source looks once, in its library, whether there is a proxy or a netrc for its host.
            assert await there.read(there.file("first")) == DATA
            yield there
            await there.idle()
            assert (queue.in_flight, queue.bytes_in_flight) == (0, 0)
            assert tier.statistics().reserved_bytes == 0
            pid = there.courier.pid or pid
        finally:
            await bridge.call(source.close)
            nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    index.close(0.0)


Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with h.hostile() as server, structlog.testing.capture_logs():

        def runner(
            test: Callable[[World], Awaitable[None]],
            deadline_s: float = 20,
            limit: int = 1 << 30,
            timeouts: Timeouts = LONG,
        ) -> None:
            async def main() -> None:
                async with world(tmp_path, server, deadline_s, limit, timeouts) as there:
                    await test(there)

            trio.run(main)

        yield runner


def test_many_files_are_stored_by_the_courier_and_counted(run: Run) -> None:
    async def test(there: World) -> None:
        rng = random.Random(1)
        files = {name: rng.randbytes(rng.randrange(1, BLOCK + 1)) for name in map(str, range(100))}
        before, hedged_before = stored(), hedged("first") + hedged("second")
        assert there.origin.last_error is None

        async def one(name: str, data: bytes) -> None:
            file = there.file(name, data)
            assert await there.read(file) == data
            obj = there.tier.open(file.key, file.size_bytes, "")
            assert isinstance(obj, CompleteObject)
            assert os.pread(obj.fd, BLOCK + 1, 0) == data

        async with trio.open_nursery() as nursery:
            for name, data in files.items():
                nursery.start_soon(one, name, data)
        assert stored() - before == len(files)
        asked = sum(there.server.requests[f"/bucket/{name}"] for name in files)
        late = hedged("first") + hedged("second") - hedged_before  # on a machine that does much else
        assert asked == len(files) + late
        assert there.tier.used_bytes == space_on_disk(there.tier)
        assert there.tier.index.owner_bytes("test/small") == sum(map(len, files.values())) + len(DATA)

    run(test)


@pytest.mark.parametrize("listed_so", [True, False])
def test_a_file_that_is_stored_compressed_is_brought_where_it_was_listed_so(run: Run, listed_so: bool) -> None:
    async def test(there: World) -> None:
        there.server.always("/bucket/f", h.stored_compressed)
        file, before = there.file("f"), stored()
        if listed_so:
            obj = replace(file.obj, version_tag=f"{file.obj.version_tag} gzip")
            file = RemoteFile(object_key("test", "f", obj.version_tag), file.size_bytes, obj, file.origin)
        if listed_so:
            await there.ends(file, RIGHT)
        else:  # its reader waits for all of his time, and is told why that was in vain
            with pytest.raises(SourceUnavailable, match="compressed"):
                await there.read(file)
            assert there.tier.open(file.key, file.size_bytes, "") is None
        assert stored() == before + listed_so

    run(test, deadline_s=20 if listed_so else 1.0)


@pytest.mark.parametrize("priority", list(Priority))
def test_a_file_that_is_brought_without_a_reader_is_here(run: Run, priority: Priority) -> None:
    async def test(there: World) -> None:
        file, before = there.file("f"), stored()
        await there.reader.bring(file, range(1), priority)
        assert stored() == before + 1
        assert there.reader.has(file, range(1))
        assert await there.read(file) == DATA
        assert there.server.requests["/bucket/f"] == 1

    run(test)


def test_a_file_that_two_datasets_bring_together_is_used_by_both(run: Run) -> None:
    async def test(there: World) -> None:
        mine, theirs = (replace(there.file("f"), origin=Origin(there.origin.source, "test", name)) for name in "ab")
        async with trio.open_nursery() as nursery:
            for file in (mine, theirs):
                nursery.start_soon(there.reader.bring, file, range(1), Priority.WARM)
        assert there.server.requests["/bucket/f"] == 1
        await trio.to_thread.run_sync(there.tier.index.flush, 1.0)
        assert all(there.reader.cached_bytes(file.origin.id) >= len(DATA) for file in (mine, theirs))

    run(test)


@pytest.mark.parametrize("priority", list(Priority))
def test_a_file_that_is_evicted_as_soon_as_it_may_be_came_once(run: Run, priority: Priority) -> None:
    """A cache that is full of what is worth more has another thread evict meanwhile."""

    async def test(there: World) -> None:
        file, end = there.file("f"), there.tier.end_making

        def end_and_lose(key: str) -> None:
            end(key)
            assert there.tier.evict(key)

        there.tier.end_making = end_and_lose  # type: ignore[method-assign]
        await there.reader.bring(file, range(1), priority)
        assert not there.reader.has(file, range(1))
        assert there.server.requests["/bucket/f"] == 1

    run(test)


def test_a_bad_answer_ends_as_it_does_without_a_courier(run: Run) -> None:
    async def test(there: World) -> None:
        async def one(number: int, behaviour: h.Behaviour, error: type[SourceError] | None) -> None:
            file = there.file(f"{number}")
            there.server.behave(f"/bucket/{number}", behaviour)
            await there.ends(file, error)
            if error is not RIGHT:
                assert there.server.requests[f"/bucket/{number}"] == 1, "what was said is not asked for once more"

        async with trio.open_nursery() as nursery:
            for number, (behaviour, once, _always) in enumerate(CASES):
                nursery.start_soon(one, number, behaviour, once)
        await one(len(CASES), h.redirect_to_itself, RIGHT)  # after which the source knows that its server redirects

    run(test, timeouts=Timeouts(connect_s=3.0, idle_s=5.0))


def test_a_server_that_stays_bad_gives_its_error_or_the_right_bytes(run: Run) -> None:
    async def test(there: World) -> None:
        async with trio.open_nursery() as nursery:
            for number, (behaviour, _once, always) in enumerate(CASES):
                there.server.always(f"/bucket/{number}", behaviour)
                nursery.start_soon(there.ends, there.file(f"{number}"), always)
        there.server.always("/bucket/f", h.redirect_to_itself)
        await there.ends(there.file("f"), SourceUnavailable)

    run(test, deadline_s=5, timeouts=SHORT)


@pytest.mark.parametrize("blocks", [1, 2, 6], ids=["by courier", "whole by lane", "in ranges"])
def test_what_is_late_is_asked_for_once_more(run: Run, blocks: int) -> None:
    data = random.Random(blocks).randbytes(blocks * BLOCK - 5)

    async def test(there: World) -> None:
        for number in range(10):  # so that it is known what is late
            assert await there.read(there.file(f"{number}", data)) == data
        before = hedged("second"), hedged("first")
        late = there.file("late", data)
        there.server.behave("/bucket/late", h.stall_at_once)
        assert await there.read(late) == data
        assert there.server.requests["/bucket/late"] == 2
        assert (hedged("second"), hedged("first")) == (before[0] + 1, before[1])
        await there.idle()
        assert there.reader.has(late, range(blocks))
        assert there.tier.used_bytes == space_on_disk(there.tier)

    run(test, deadline_s=300, timeouts=LONG)


def test_what_is_not_what_its_source_lists_is_not_stored(run: Run) -> None:
    async def test(there: World) -> None:
        right = {"right": hashlib.sha256(DATA).hexdigest(), "wrong": hashlib.sha256(b"others").hexdigest()}
        source = there.origin.source
        source.digest_of = lambda obj: Digest("sha256", right[obj.path])  # type: ignore[method-assign, assignment]
        before = stored(), otherwise()
        await there.ends(there.file("right"), RIGHT)
        assert (stored(), otherwise()) == (before[0] + 1, before[1])
        await there.ends(there.file("wrong"), SourceUnavailable)
        assert (stored(), otherwise()) == (before[0] + 1, before[1] + 1)

    run(test, deadline_s=5)


def test_killed_at_any_time_it_loses_no_reader(run: Run) -> None:
    async def test(there: World) -> None:
        rng = random.Random(2)
        reading = True

        async def kill() -> None:
            pid = 0
            for _ in range(2):
                pid = await there.ready(other_than=pid)
                await trio.sleep(rng.random() * 0.05)
                os.kill(pid, signal.SIGKILL)
            nonlocal reading
            reading = False

        async def read(number: int) -> None:
            count = 0
            while reading:
                data = random.Random(f"{number} {count}").randbytes(BLOCK - number)
                assert await there.read(there.file(f"{number}-{count}", data)) == data
                count += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            for number in range(8):
                nursery.start_soon(read, number)
        await there.ready()

    run(test)


def test_one_that_stands_still_is_ended_and_its_files_come_otherwise(run: Run) -> None:
    async def test(there: World) -> None:
        pid = there.courier.pid
        os.kill(pid, signal.SIGSTOP)
        assert await there.read(there.file("f")) == DATA
        assert await there.ready(other_than=pid) != pid

    run(test)


def test_one_that_cannot_even_be_killed_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    """As in a system call on a dead disk; here it is the child of what is killed."""
    argv = ("sh", "-c", f'"{sys.executable}" -m daemon.courier "$1" & echo $! >{tmp_path}/pid; wait', "courier")

    async def test(there: World) -> None:
        async with flights_of_its_own(there, argv) as flights:
            assert flights.courier is not None
            first, pid = flights.courier.pid, int(await trio.Path(f"{tmp_path}/pid").read_text())
            os.kill(pid, signal.SIGSTOP)
            try:
                await Reader(there.tier, flights).fetch_whole(there.file("f"), Priority.DEMAND)
                assert flights.courier.pid != first
            finally:
                os.kill(pid, signal.SIGKILL)

    run(test, deadline_s=4)


def test_what_was_stored_when_the_server_ends_is_counted(run: Run) -> None:
    async def test(there: World) -> None:
        before, space = stored(), space_on_disk(there.tier)
        async with flights_of_its_own(there) as flights:
            assert flights.courier is not None
            flights.ensure(there.file("f"), [0], Priority.DEMAND)
            await trio.testing.wait_all_tasks_blocked()
            flights.courier._hear = lambda _link: True  # type: ignore[method-assign]  # the server is busy
            while space_on_disk(there.tier) < space + len(DATA):  # noqa: ASYNC110  # it tells nobody
                await trio.sleep(0.01)
            del flights.courier._hear
        assert stored() == before + 1
        assert there.tier.used_bytes == space_on_disk(there.tier) > space

    run(test)


def space_on_disk(tier: NodeTier) -> int:
    """Without what is still being written: that goes away under its name at any time."""
    found = (path for path in Path(tier.layout.objects).glob("*/*") if path.suffix != ".new")
    return sum(path.stat().st_blocks * 512 for path in found)


@asynccontextmanager
async def flights_of_its_own(there: World, argv: Sequence[str] = ARGV) -> AsyncIterator[Flights]:
    """Beside those of the world, and they end with the context as those of a server do."""
    async with trio.open_nursery() as nursery:
        flights = Flights(
            nursery, there.bridge, there.tier, FetchQueue(Limits(64 * BLOCK, 16, 16)), 20, courier_argv=argv
        )
        flights.expect(there.origin.source)
        with trio.fail_after(WITHIN_S):
            while not flights.courier or not flights.courier.ready:  # noqa: ASYNC110  # it tells nobody
                await trio.sleep(0.01)
        yield flights
        nursery.cancel_scope.cancel()


def test_it_waits_for_its_server_on_any_descriptor() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2048), limits[1]))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 1500)) as control:
        ours.settimeout(WITHIN_S)
        courier = Courier(control, BLOCK, b"b" * 16)
        with contextlib.suppress(BlockingIOError):
            while True:
                control.send(b"full")
        sending = threading.Thread(target=courier._send, args=([()],), daemon=True)
        sending.start()
        while ours.recv(LARGEST_MESSAGE) == b"full":
            pass
        sending.join(WITHIN_S)
        assert not sending.is_alive()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# less than the courier waits for an answer, and more
@pytest.mark.parametrize(("deadline_s", "timeouts"), [(3.0, Timeouts(connect_s=3.0, idle_s=5.0)), (4.0, SHORT)])
def test_who_waits_for_a_server_that_says_nothing_is_told_in_time(
    run: Run, deadline_s: float, timeouts: Timeouts
) -> None:
    async def test(there: World) -> None:
        file = there.file("f")
        there.server.always("/bucket/f", h.stall_at_once)
        timeouts = metrics.ORIGIN_REQUESTS.labels("test", "small", "timeout")._value
        before = timeouts.get()
        with structlog.testing.capture_logs() as logs:
            with pytest.raises(SourceTimeout):
                await there.read(file)
            await there.idle()
        assert timeouts.get() > before
        assert [(line["dataset"], line["path"]) for line in logs if line["event"] == "fetch failed"] == [
            ("test/small", "f")
        ]

    run(test, deadline_s=deadline_s, timeouts=timeouts)


def test_what_a_courier_has_waited_for_in_vain_is_waited_for_no_longer_than_is_left(run: Run) -> None:
    async def test(there: World) -> None:
        file = there.file("f")
        there.server.behave("/bucket/f", h.stall_at_once)
        flight = there.reader.begin(file)
        assert flight is not None
        await there.idle()
        assert flight.error is None
        assert flight.waited_s >= SHORT.idle_s

    run(test, timeouts=SHORT)


def test_a_disk_that_refuses_costs_the_copy_and_not_the_read(run: Run) -> None:
    async def test(there: World) -> None:
        file, before = there.file("f"), otherwise()
        directory = os.path.dirname(there.tier.layout.object_path(file.key))
        os.rename(directory, f"{directory}.gone")
        assert await there.read(file) == DATA
        assert otherwise() == before + 1
        assert there.tier.in_trouble
        os.rename(f"{directory}.gone", directory)
        assert await there.read(there.file("g")) == DATA
        assert not there.tier.in_trouble

    run(test)


def test_what_was_stored_and_cannot_be_read_is_read_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(there: World) -> None:
        async def broken(*_whatever: object) -> NoReturn:
            raise OSError(errno.EIO, "a bad disk")

        before = stored()
        monkeypatch.setattr("dsfs.fetch.flight._read", broken)
        assert await there.read(there.file("f")) == DATA
        assert stored() == before + 1

    run(test)


def test_a_full_cache_evicts_for_what_the_courier_would_bring(run: Run) -> None:
    async def test(there: World) -> None:
        for number in range(40):
            data = random.Random(number).randbytes(BLOCK)
            assert await there.read(there.file(str(number), data)) == data
        assert there.tier.used_bytes <= 1 << 20

    run(test, limit=1 << 20)


def test_data_without_its_map_is_replaced(run: Run) -> None:
    async def test(there: World) -> None:
        file, before = there.file("f"), stored()
        path = trio.Path(there.tier.layout.object_path(file.key))
        await path.write_bytes(bytes(len(DATA)))
        assert await there.read(file) == DATA
        assert stored() == before + 1
        assert await path.read_bytes() == DATA

    run(test)


def test_connections_are_used_again_and_one_that_was_closed_is_not_missed(run: Run) -> None:
    async def test(there: World) -> None:
        before = otherwise()
        for number in range(3):
            assert await there.read(there.file(str(number))) == DATA
        there.server.hang_up()
        assert await there.read(there.file("4")) == DATA
        assert otherwise() == before

    run(test)


def test_long_requests_go_in_messages_that_hold_them(run: Run) -> None:
    async def test(there: World) -> None:
        asks_with(there, b"X-Token: " + b"x" * 20_000 + b"\r\n")
        before = stored()
        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(there.ends, there.file(f"{number}"), RIGHT)
        assert stored() == before + 16

    run(test)


def test_what_no_message_holds_comes_otherwise(run: Run) -> None:
    async def test(there: World) -> None:
        asks_with(there, b"".join(b"X-%d: " % number + b"x" * 60_000 + b"\r\n" for number in range(4)))
        before = stored()
        await there.ends(there.file("f"), RIGHT)
        assert stored() == before

    run(test)


def asks_with(there: World, header: bytes) -> None:
    source = there.origin.source
    assert isinstance(source, HttpSource)
    asking = source.asking

    def asks(obj: SourceObject, wanted: ByteRange) -> WireRequest | None:
        request = asking(obj, wanted)
        return request and replace(request, head=request.head + header)

    source.asking = asks  # type: ignore[method-assign]


@pytest.mark.parametrize("where", ["before it is sent", "when it is heard of"])
def test_a_bug_costs_no_more_than_the_courier(run: Run, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """As what a flight runs into: the server goes on, and so does the reader."""

    def bug(*_whatever: object) -> NoReturn:
        raise ZeroDivisionError

    async def test(there: World) -> None:
        if where == "before it is sent":
            monkeypatch.setattr("dsfs.fetch.by_courier.digest_of", bug)
        else:
            there.server.behave("/bucket/f", h.status(500))
            monkeypatch.setattr("dsfs.fetch.by_courier._told", bug)
        await there.ends(there.file("f"), RIGHT)

    run(test)


@pytest.mark.parametrize(
    ("tag", "proof"),
    [
        ('"a"', (("etag", ('"a"',)),)),
        ('"a" gzip', (("etag", ('"a"',)),)),
        ('"a" b|Tue|7', (("etag", ('"a" b',)), ("last-modified", ("Tue",)))),
        ('W/"a"|Tue|7', (("etag", ('W/"a"',)), ("last-modified", ("Tue",)))),
        ("|Tue|7", (("etag", ("",)), ("last-modified", ("Tue",)))),
        ("size 7", (("etag", ("",)), ("last-modified", ("",)))),
        ('"a"|Tue|7', None),
        ("|Tue|8", None),
        ("anything", None),
    ],
)
def test_what_proves_a_version(tag: str, proof: object) -> None:
    assert proof_of(tag, 7) == proof
