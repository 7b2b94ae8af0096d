"""Members, tags and trees of archives; zips and tars of any content against Python's own readers of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
import zipfile
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsfs.errors import SourceError
from dsfs.model import Kind, ListingPage, SourceObject, path_parts
from dsfs.ranges import ByteRange
from dsfs.sources import archive_inflate
from dsfs.sources.archive import ArchiveSource
from dsfs.sources.archive_members import DEFLATED, Member, member_of_tag, tidy
from dsfs.sources.archive_tree import Tree
from dsfs.sources.base import Sink
from tests.servers.archive_files import tar_of, zip_of
from tests.sources.sinks import read_range


class OneObject:
    """A source with one file in memory."""

    identity = uri = "memory"
    revision = ""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def list_directory(self, directory: str) -> AsyncIterator[ListingPage]:
        yield ListingPage((), (directory,))

    def list_tree(self) -> AsyncIterator[ListingPage]:
        return self.list_directory("")

    async def stat(self, path: str) -> SourceObject | None:
        return SourceObject(path, Kind.FILE, len(self.data), 0, "v1#1")

    async def read(self, obj: SourceObject, wanted: ByteRange, sink: Sink) -> None:
        assert 0 <= wanted.start < wanted.stop <= len(self.data)
        await sink.write(wanted.start, self.data[wanted.start : wanted.stop])

    async def close(self) -> None:
        """Nothing to give back."""


async def objects_of(source: ArchiveSource) -> dict[str, SourceObject]:
    return {obj.path: obj async for page in source.list_tree() for obj in page.objects}


NAMES = st.text(st.characters(exclude_characters="/\0\\", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: path_parts(name) is not None
)
FILES = st.dictionaries(NAMES, st.binary(max_size=3000), max_size=5)


@given(FILES, st.sampled_from(["zip", "stored", "gnu", "pax"]), st.integers(0, 3000), st.integers(1, 3000))
@settings(max_examples=60, deadline=None)
def test_any_files_come_back(files: dict[str, bytes], form: str, start: int, length: int) -> None:
    if form in ("zip", "stored"):
        made = zip_of(files, zipfile.ZIP_DEFLATED if form == "zip" else zipfile.ZIP_STORED)
    else:
        made = tar_of(files, tarfile.GNU_FORMAT if form == "gnu" else tarfile.PAX_FORMAT)

    async def run() -> None:
        source = ArchiveSource(OneObject(made), "x.zip" if form in ("zip", "stored") else "x.tar")
        found = await objects_of(source)
        assert set(found) == set(files)
        for name, data in files.items():
            assert found[name].size == len(data)
            stop = min(len(data), start + length)
            if start < stop:
                assert await read_range(source, found[name], start, stop) == data[start:stop]

    asyncio.run(run())


@given(st.binary(max_size=20_000), st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 9000)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_ranges_of_a_deflated_member_in_any_order(data: bytes, ranges: list[tuple[int, int]]) -> None:
    data = data * 3

    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(archive_inflate, "SMALL_BYTES", 0)  # as if it were large
            patch.setattr(archive_inflate, "_PIECE_MIN", 100)
            patch.setattr(archive_inflate, "_FED_BYTES", 37)
            patch.setattr(archive_inflate, "_STEP_BYTES", 1000)
            source = ArchiveSource(OneObject(zip_of({"f": data})), "x.zip")
            obj = (await objects_of(source))["f"]
            for start, length in ranges:
                stop = min(len(data), start + length)
                if start < stop:
                    assert await read_range(source, obj, start, stop) == data[start:stop]

    asyncio.run(run())


@given(
    st.sampled_from([zip_of({"a": b"abc" * 500, "b/c": b"x"}), tar_of({"a": b"abc" * 500, "b" * 120: b"x"})]), st.data()
)
@settings(max_examples=150, deadline=None)
def test_damage_is_an_error_or_right_sizes(whole: bytes, data: st.DataObject) -> None:
    """Never an exception of another kind, never more or fewer bytes than were listed."""
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))

    async def run() -> None:
        source = ArchiveSource(OneObject(bytes(damaged)), "x")
        with contextlib.suppress(SourceError):
            for obj in (await objects_of(source)).values():
                if obj.kind is Kind.FILE and obj.size:
                    await read_range(source, obj, 0, obj.size)

    asyncio.run(run())


def test_tag_carries_the_place() -> None:
    archive = SourceObject("x.zip", Kind.FILE, 999, 0, '"etag#with#marks"')
    member = Member("f", Kind.FILE, 0, None, DEFLATED, 10, 20, 30, 0xABC, True)
    obj = member.listed(archive)
    assert member_of_tag(obj, "x.zip") == (archive, member)
    assert member_of_tag(SourceObject("f", version_tag="another source's"), "x.zip") is None


def test_tidy() -> None:
    assert [tidy(name) for name in ("./a", "././a/", "/a", "../a", "a//b", ".", "./")] == [
        ("a", False),
        ("a", True),
        ("/a", False),
        ("../a", False),
        ("a//b", False),
        ("", True),
        ("", False),
    ]


def test_tree_is_told_in_order() -> None:
    tree = Tree()
    for number in range(2500):
        tree.add(SourceObject(f"d{number % 7}/e/f{number}"))
    tree.add(SourceObject("../x"))
    tree.add(SourceObject("d0", Kind.DIRECTORY))
    seen: set[str] = set()
    complete: set[str] = set()
    for page in tree.pages():
        for obj in page.objects:
            assert obj.path not in seen
            assert obj.path == "../x" or obj.path.rpartition("/")[0] not in complete
            seen.add(obj.path)
        complete.update(page.complete)
    assert len(seen) == 2500 + 14 + 1
    assert complete == {"", *(f"d{n}" for n in range(7)), *(f"d{n}/e" for n in range(7))}


def test_python_zip_agrees_on_times() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(zipfile.ZipInfo("f", (2020, 2, 29, 12, 34, 56)), b"x")

    async def run() -> None:
        found = await objects_of(ArchiveSource(OneObject(made.getvalue()), "x"))
        assert found["f"].mtime_ns == 1_582_979_696 * 10**9

    asyncio.run(run())
