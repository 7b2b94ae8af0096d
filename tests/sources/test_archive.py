"""Members of zip and tar archives over ranges: nginx and a telling server, archives by Python and by tar(1)."""

from __future__ import annotations

import asyncio
import io
import random
import stat
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dsfs.errors import ConfigError, SourceChanged, SourceMissing, SourceUnavailable, SourceUnsupported
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind
from dsfs.ranges import MiB
from dsfs.sources.archive import ArchiveSource
from dsfs.sources.base import Source
from dsfs.sources.registry import build_source
from tests.servers.archive_files import FilesServer, files_server, tar_of, zip_of
from tests.servers.http_server import nginx
from tests.sources.sinks import names_in, read_range, tree_of

TEXT = b"".join(b"line %d of a text that repeats itself\n" % n for n in range(80_000))  # 3 MB, a tenth when deflated
NOISE = random.Random(1).randbytes(2 * MiB)
FILES = {"a.txt": b"first", "sub/deep/b.bin": NOISE, "sub/c.txt": TEXT, "empty": b"", "ü/ñ.txt": b"names"}


@pytest.fixture
def server() -> Iterator[FilesServer]:
    with files_server() as server:
        yield server


def built(uri: str) -> Source:
    return build_source(SourceSpec(type=SourceType.HTTP, uri=uri, options={"archive": "true"}), {})


def using(uri: str, use: Callable[[Source], Awaitable[None]]) -> None:
    async def run() -> None:
        source = built(uri)
        try:
            await use(source)
        finally:
            await source.close()

    asyncio.run(run())


ARCHIVES = {
    "stored.zip": lambda: zip_of(FILES, zipfile.ZIP_STORED),
    "deflated.zip": lambda: zip_of(FILES),
    "pax.tar": lambda: tar_of(FILES),
    "gnu.tar": lambda: tar_of(FILES, tarfile.GNU_FORMAT),
    "self-extracting.zip": lambda: b"#!/bin/sh\n" * 100 + zip_of(FILES),
    "by-content": lambda: zip_of(FILES),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_tree_and_bytes(server: FilesServer, name: str) -> None:
    server.put(name, ARCHIVES[name]())

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {path for path, obj in tree.items() if obj.kind is Kind.DIRECTORY} == {"sub", "sub/deep", "ü"}
        assert {path: obj.size for path, obj in tree.items() if obj.kind is Kind.FILE} == {
            path: len(data) for path, data in FILES.items()
        }
        assert server.sent_bytes < 1.5 * MiB  # the index, and what was read ahead of it
        for path, data in FILES.items():
            size = len(data)
            assert await source.stat(path) == tree[path]
            for start, stop in ((0, size), (size // 3, size // 2), (size - 1, size), (0, 1)):
                if 0 <= start < stop <= size:
                    assert await read_range(source, tree[path], start, stop) == data[start:stop]
        assert await names_in(source, "sub") == {"sub/deep": Kind.DIRECTORY, "sub/c.txt": Kind.FILE}
        assert await source.stat("sub") is not None
        assert await source.stat("nothing") is None
        with pytest.raises(SourceMissing):
            await names_in(source, "nothing")

    using(f"{server.url}{name}", use)


def test_blocks_side_by_side_inflate_once(server: FilesServer) -> None:
    packed = zip_of({"big": TEXT})
    server.put("x.zip", packed)

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["big"]
        step = 1 * MiB
        starts = range(0, len(TEXT), step)
        before = server.sent_bytes
        parts = await asyncio.gather(*(read_range(source, obj, at, min(at + step, len(TEXT))) for at in starts))
        assert b"".join(parts) == TEXT
        assert server.sent_bytes - before < 2.5 * len(packed)
        assert await read_range(source, obj, 100, 200) == TEXT[100:200]  # and back

    using(f"{server.url}x.zip", use)


def test_another_process_reads_by_the_tag_alone(server: FilesServer) -> None:
    server.put("x.zip", zip_of(FILES))
    found = {}

    async def listing(source: Source) -> None:
        found.update(await tree_of(source))

    using(f"{server.url}x.zip", listing)
    server.asked.clear()

    async def reading(source: Source) -> None:
        assert await read_range(source, found["a.txt"], 0, 5) == b"first"
        assert sum(asked.method == "GET" for asked in server.asked) == 1
        assert await read_range(source, found["sub/c.txt"], 2 * MiB, 2 * MiB + 9) == TEXT[2 * MiB : 2 * MiB + 9]

    using(f"{server.url}x.zip", reading)


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_another_archive_is_an_error(server: FilesServer, make: Callable[[dict[str, bytes]], bytes]) -> None:
    server.put("x", make({"f": b"old" * 100_000, "gone": b""}))

    async def use(source: Source) -> None:
        old = (await tree_of(source))["f"]
        assert await read_range(source, old, 0, 3) == b"old"
        server.put("x", make({"f": b"new" * 100_000}))
        with pytest.raises(SourceChanged):
            await read_range(source, old, 0, 3)
        tree = await tree_of(source)
        assert set(tree) == {"f"}
        assert tree["f"].version_tag != old.version_tag
        assert await read_range(source, tree["f"], 0, 3) == b"new"
        with pytest.raises(SourceChanged):
            await read_range(source, old, 0, 3)

    using(f"{server.url}x", use)


def test_tar_of_tar(server: FilesServer, tmp_path: Path) -> None:
    """tar(1) with a long name, a link of each kind, a pipe, and the leading ./ that people write."""
    long = "/".join(["d" * 90] * 3)
    (tmp_path / long).mkdir(parents=True)
    (tmp_path / long / "f").write_bytes(b"deep")
    (tmp_path / "hard").hardlink_to(tmp_path / long / "f")
    (tmp_path / "soft").symlink_to("../" + "t" * 150)
    (tmp_path / b"\xff".decode("utf-8", "surrogateescape")).write_bytes(b"not UTF-8")
    subprocess.run(["mkfifo", str(tmp_path / "pipe")], check=True)
    for form in ("gnu", "pax"):
        made = subprocess.run(
            ["tar", f"--format={form}", "-C", str(tmp_path), "-c", "."], check=True, stdout=subprocess.PIPE
        )
        server.put(f"{form}.tar", made.stdout)

        async def use(source: Source) -> None:
            tree = await tree_of(source)
            assert tree["soft"].kind is Kind.SYMLINK
            assert tree["soft"].target == "../" + "t" * 150
            assert "pipe" not in tree
            for path in (f"{long}/f", "hard"):
                assert await read_range(source, tree[path], 0, 4) == b"deep"
            assert await read_range(source, tree["\udcff"], 0, 9) == b"not UTF-8"
            assert tree["soft"].mtime_ns > 10**18

        using(f"{server.url}{form}.tar", use)


def test_headers_of_large_members_bring_no_data(server: FilesServer) -> None:
    server.put("x.tar", tar_of({f"m{n}": bytes(4 * MiB) for n in range(5)}))

    async def use(source: Source) -> None:
        assert len(await tree_of(source)) == 5
        assert server.sent_bytes < 1.5 * MiB

    using(f"{server.url}x.tar", use)


def test_zip_links_duplicates_and_names_that_are_no_paths(server: FilesServer) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        link = zipfile.ZipInfo("sub/link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../a.txt")
        archive.writestr("a.txt", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", b"second one")
        for name in ("/absolute", "../up", "dir/"):
            archive.writestr(name, b"")
        with archive.open(zipfile.ZipInfo("large"), "w", force_zip64=True) as file:
            file.write(b"zip64")
    server.put("x.zip", made.getvalue())

    async def use(source: Source) -> None:
        found = {}
        async for page in source.list_tree():
            found |= {obj.path: obj for obj in page.objects}
        assert (found["sub/link"].kind, found["sub/link"].target) == (Kind.SYMLINK, "../a.txt")
        assert await read_range(source, found["a.txt"], 0, 10) == b"second one"
        assert {"/absolute", "../up"} <= set(found)  # passed on: the catalog skips and counts them
        assert found["dir"].kind is Kind.DIRECTORY
        assert await read_range(source, found["large"], 0, 5) == b"zip64"

    using(f"{server.url}x.zip", use)


def patched(archive: bytes, name: bytes, *, size: int | None = None, flags: int | None = None) -> bytes:
    """The same archive, with another size or other flags of a member in its directory."""
    made = bytearray(archive)
    at = made.rindex(b"PK\x01\x02", 0, made.rindex(name))
    if size is not None:
        struct.pack_into("<I", made, at + 24, size)
    if flags is not None:
        struct.pack_into("<H", made, at + 8, flags)
    return bytes(made)


@pytest.mark.parametrize("count", [1000, 3 * MiB])
def test_a_bomb_gives_no_more_than_it_declares(server: FilesServer, count: int) -> None:
    zeros = zip_of({"f": bytes(count)})
    server.put("bomb.zip", patched(zeros, b"f", size=500))
    server.put("short.zip", patched(zeros, b"f", size=count + 500))

    async def bomb(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert obj.size == 500
        with pytest.raises(SourceUnavailable, match="checksum"):
            await read_range(source, obj, 0, 500)

    async def short(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert obj.size is not None
        with pytest.raises(SourceUnavailable, match=r"end at byte|size and checksum"):
            await read_range(source, obj, 0, obj.size)

    using(f"{server.url}bomb.zip", bomb)
    using(f"{server.url}short.zip", short)


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (patched(zip_of({"f": b"x"}), b"f", flags=1), "encrypted"),
        (zip_of({"f": b"x"}, zipfile.ZIP_BZIP2), "method 12"),
    ],
)
def test_a_member_that_cannot_be_read_is_shown(server: FilesServer, archive: bytes, says: str) -> None:
    server.put("x.zip", archive)

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        assert obj.size == 1
        with pytest.raises(SourceUnsupported, match=says):
            await read_range(source, obj, 0, 1)

    using(f"{server.url}x.zip", use)


def sparse_tar(directory: Path, form: str) -> bytes:
    with (directory / "holes").open("wb") as file:
        file.truncate(64 * MiB)
    made = subprocess.run(
        ["tar", f"--format={form}", "--sparse", "-C", str(directory), "-c", "holes"], check=True, stdout=subprocess.PIPE
    )
    return made.stdout


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_members_are_refused(server: FilesServer, tmp_path: Path, form: str) -> None:
    server.put("x.tar", sparse_tar(tmp_path, form))

    async def use(source: Source) -> None:
        with pytest.raises(SourceUnsupported, match="is sparse"):
            await tree_of(source)

    using(f"{server.url}x.tar", use)


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"", SourceUnsupported, "neither a zip nor a tar"),
        (b"x" * 2000, SourceUnsupported, "neither a zip nor a tar"),
        (b"\x1f\x8b" + bytes(600), SourceUnsupported, "not seekable"),
        (zip_of({"f": NOISE})[:-30], SourceUnsupported, "no end record"),
        (zip_of({"f": b"x" * 100})[50:], SourceUnsupported, "neither|damaged"),
        (tar_of({"f": b"x" * 5000})[:3000], SourceUnavailable, "cut off"),
        (tar_of({"f": b"x"})[:1024] + b"y" * 1024, SourceUnavailable, "no tar header"),
    ],
)
def test_what_is_no_archive(server: FilesServer, data: bytes, kind: type[Exception], says: str) -> None:
    server.put("x", data)

    async def use(source: Source) -> None:
        with pytest.raises(kind, match=says) as caught:
            await tree_of(source)
        assert "\n" not in str(caught.value)

    using(f"{server.url}x", use)


def test_compressed_tar_is_refused_before_a_request() -> None:
    for name in ("x.tar.gz", "x.TGZ", "x.tar.zst"):
        with pytest.raises(ConfigError, match="not seekable"):
            built(f"http://host/{name}?version=1")


def test_missing_archive(server: FilesServer) -> None:
    async def use(source: Source) -> None:
        with pytest.raises(SourceMissing):
            await tree_of(source)

    using(f"{server.url}x.zip", use)


def test_over_nginx_and_over_a_directory(tmp_path: Path) -> None:
    async def check(source: Source) -> None:
        try:
            tree = await tree_of(source)
            for path, data in FILES.items():
                if data:
                    assert await read_range(source, tree[path], 0, len(data)) == data
        finally:
            await source.close()

    with nginx(tmp_path) as server:
        server.put("x.zip", zip_of(FILES))
        asyncio.run(check(built(f"{server.url}x.zip")))

        async def from_directory() -> None:
            inner = build_source(SourceSpec(type=SourceType.PVC, uri=str(server.root)), {})
            await check(ArchiveSource(inner, "x.zip"))

        asyncio.run(from_directory())
