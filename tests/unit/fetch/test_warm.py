"""A warm-up brings everything in with bounded means, keeps to its rate, and gives up when there is no hope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.errors import CacheFull, DsfsError, SourceMissing, SourceRefused, SourceUnavailable
from dsfs.fetch.origin import RemoteFile
from dsfs.fetch.queue import Priority
from dsfs.fetch.warm import HOPELESS, TOLD_ERRORS, WORKERS, Throttle, WarmUp
from dsfs.model import SourceObject, object_key
from dsfs.ranges import ByteRange
from tests.unit.fetch.test_flights import (  # noqa: F401  # pytest finds fixtures by their names
    BLOCK,
    FAST,
    LARGE,
    SMALL,
    World,
    _quiet_log,
    failing,
    run,
)

Run = Callable[..., None]


def files_of(world: World, sizes: Sequence[int]) -> list[RemoteFile]:
    objects = [SourceObject(f"f{number}", size=size, version_tag="1") for number, size in enumerate(sizes)]
    return [RemoteFile(object_key("fake", o.path, "1"), o.size or 0, o, world.origin) for o in objects]


def in_batches(files: list[RemoteFile], most: int = 7) -> Callable[[], Awaitable[Sequence[RemoteFile]]]:
    rest = list(files)

    async def next_batch() -> Sequence[RemoteFile]:
        await trio.lowlevel.checkpoint()
        batch = rest[:most]
        del rest[:most]
        return batch

    return next_batch


def nobody_listens(_file: RemoteFile, _error: DsfsError) -> None:
    return


def test_everything_comes_in_and_the_second_time_nothing(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        files = files_of(world, [0, 1, SMALL, LARGE, 40 * BLOCK, BLOCK] * 5)
        for fetched in (sum(file.size_bytes for file in files), 0):
            warm = WarmUp(world.reader, None, nobody_listens)
            await warm.run(in_batches(files))
            done = warm.progress()
            assert (done.files_done, done.failed_files, done.errors) == (len(files), 0, ())
            assert done.bytes_done == sum(file.size_bytes for file in files)
            assert done.fetched_bytes == fetched
        assert sum(wanted.length for wanted in world.source.reads) == sum(file.size_bytes for file in files)

    run(test)


def test_what_is_there_of_a_file_is_not_fetched_again(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        (file,) = files_of(world, [40 * BLOCK])
        world.reader.want(file, ByteRange(0, 1), Priority.AHEAD)
        await world.idle()
        warm = WarmUp(world.reader, None, nobody_listens)
        await warm.run(in_batches([file]))
        assert sum(wanted.length for wanted in world.source.reads) == file.size_bytes
        assert warm.progress().fetched_bytes == file.size_bytes - BLOCK

    run(test)


def test_many_files_are_never_all_asked_for(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        most = 0
        batches = in_batches(files_of(world, [100] * 600), most=50)

        async def watching() -> Sequence[RemoteFile]:
            nonlocal most
            most = max(most, world.flights.under_way)
            return await batches()

        warm = WarmUp(world.reader, None, nobody_listens)
        await warm.run(watching)
        assert warm.progress().files_done == 600
        assert most <= WORKERS + 1

    run(test)


def test_single_files_that_fail_do_not_end_it(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        world.source.plans = [failing(SourceMissing("it is not there"))] * (HOPELESS + 10)
        heard: list[str] = []
        warm = WarmUp(world.reader, None, lambda file, _error: heard.append(file.obj.path))
        await warm.run(in_batches(files_of(world, [100] * (HOPELESS + 40))))
        done = warm.progress()
        assert (done.failed_files, done.files_done) == (HOPELESS + 10, 30)
        assert len(set(heard)) == HOPELESS + 10
        assert len(done.errors) == TOLD_ERRORS
        assert all(error.endswith(": it is not there") for error in done.errors)

    run(test)


@pytest.mark.parametrize("error", [SourceRefused("no"), SourceUnavailable("down")])
def test_a_source_that_is_gone_ends_it(run: Run, error: DsfsError) -> None:  # noqa: F811
    async def test(world: World) -> None:
        async def broken(*_args: object) -> None:
            raise error

        world.source.read = broken  # type: ignore[method-assign]  # from now on, for every file
        warm = WarmUp(world.reader, None, nobody_listens)
        with pytest.raises(type(error), match=str(error)):
            await warm.run(in_batches(files_of(world, [100] * 1000)))
        assert HOPELESS <= warm.progress().failed_files <= HOPELESS + WORKERS

    run(test, rate=FAST)


def test_a_cache_without_room_ends_it(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        warm = WarmUp(world.reader, None, nobody_listens)
        with pytest.raises(CacheFull, match="no room"):
            await warm.run(in_batches(files_of(world, [100] * 1000)))

    run(test, limit=100)


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=50), st.integers(1, 10**9))
@settings(deadline=None, max_examples=40)
def test_the_throttle_keeps_to_its_rate(sizes: list[int], rate: int) -> None:
    async def main() -> None:
        throttle = Throttle(rate)
        started_s = trio.current_time()
        taken = 0
        for size in sizes:
            await throttle.take(size)
            # all but what is just beginning has had its time
            assert trio.current_time() - started_s >= taken / rate * (1 - 1e-9)
            taken += size
        assert trio.current_time() - started_s <= taken / rate + 1e-6

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_slow_rate_asks_for_little_at_once(run: Run) -> None:  # noqa: F811
    async def test(world: World) -> None:
        warm = WarmUp(world.reader, 2 * BLOCK, nobody_listens)
        await warm.run(in_batches(files_of(world, [40 * BLOCK])))
        assert {wanted.length for wanted in world.source.reads} == {2 * BLOCK}

    run(test, rate=FAST)
