"""The hostile server against list files and archives: the cases that ``HttpSource`` is held to, on both."""

from __future__ import annotations

import asyncio
import json
import random
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest

from dsfs.errors import SourceError, SourceTimeout, SourceUnavailable
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.archive import ArchiveSource
from dsfs.sources.base import Source
from dsfs.sources.http import HttpSource
from dsfs.sources.http_lists import HttpListSource
from dsfs.sources.timeouts import Timeouts
from tests.servers import hostile as h
from tests.servers.archive_files import zip_of
from tests.sources.sinks import KeepingSink, read_range, tree_of
from tests.sources.test_hostile import CASES, LONG, PATH, RIGHT, SHORT

DATA = random.Random(5).randbytes(3 * MiB)
PACKED = zip_of({"f": DATA}, zipfile.ZIP_STORED)


@pytest.fixture
def server() -> Iterator[h.Hostile]:
    with h.hostile() as server:
        yield server


def listed(server: h.Hostile, timeouts: Timeouts) -> Source:
    server.files[PATH] = DATA
    server.files["/bucket/list.json"] = json.dumps([{"path": "f", "size": len(DATA)}]).encode()
    return HttpListSource(f"{server.url}bucket/list.json", "true", timeouts=timeouts)


def packed(server: h.Hostile, timeouts: Timeouts) -> Source:
    server.files[PATH] = PACKED
    return ArchiveSource(HttpSource(f"{server.url}{PATH.lstrip('/')}", timeouts=timeouts), "f")


@pytest.mark.parametrize("make", [listed, packed])
@pytest.mark.parametrize(("behaviour", "expected"), [(case[0], case[1]) for case in CASES])
def test_the_right_bytes_or_the_right_error(
    server: h.Hostile, make: Any, behaviour: h.Behaviour, expected: type[SourceError] | None
) -> None:
    wanted = ByteRange(MiB - 5, 2 * MiB)

    async def run() -> None:
        source = make(server, SHORT if expected is SourceTimeout else LONG)
        sink = KeepingSink(wanted)
        try:
            obj = (await tree_of(source))["f"]
            assert await read_range(source, obj, 0, 10) == DATA[:10]  # from here on the version is pinned
            server.always(PATH, behaviour)
            started = time.monotonic()
            if expected is RIGHT:
                await source.read(obj, wanted, sink)
                assert len(sink.data) == wanted.length
            else:
                with pytest.raises(expected) as caught:
                    await source.read(obj, wanted, sink)
                assert type(caught.value) is expected
                assert "\n" not in str(caught.value)
            assert time.monotonic() - started < 15
        finally:
            await source.close()
        assert bytes(sink.data) == DATA[wanted.start : wanted.start + len(sink.data)]

    asyncio.run(run())


def test_a_part_of_a_list_is_not_taken_for_all_of_it(server: h.Hostile) -> None:
    server.files["/bucket/list.txt"] = b"a\nb\nc\nd\n"
    server.always("/bucket/list.txt", h.part_for_whole)

    async def run() -> None:
        source = HttpListSource(f"{server.url}bucket/list.txt", "true", timeouts=LONG)
        try:
            with pytest.raises(SourceUnavailable, match="a part of an answer"):
                await tree_of(source)
        finally:
            await source.close()

    asyncio.run(run())
