"""What only a directory has: links, odd files, odd names, and a root that goes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dsfs.errors import (
    ConfigError,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
)
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind, SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Source
from dsfs.sources.directory import PAGE_NAMES, PIECE_BYTES, DirectorySource
from dsfs.sources.registry import build_source
from dsfs.sources.timeouts import Timeouts
from tests.mounts import eventually
from tests.sources.sinks import names_in, read_range, tree_of


def using(root: Path | str, use: Callable[[Source], Awaitable[None]]) -> None:
    async def run() -> None:
        source = DirectorySource(str(root))
        await use(source)
        await source.close()

    asyncio.run(run())


def test_links_are_shown_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/f").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("/nowhere/\udce9")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {p: (o.kind, o.target) for p, o in tree.items() if o.kind is Kind.SYMLINK} == {
            "link": (Kind.SYMLINK, "real"),
            "dangling": (Kind.SYMLINK, "/nowhere/\udce9"),
        }
        found = await source.stat("link")
        assert found == tree["link"]
        assert await source.stat("link/f") is None
        with pytest.raises(SourceMissing):
            await names_in(source, "link")

    using(tmp_path, use)


def test_special_files_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "f").write_bytes(b"x")

        async def use(source: Source) -> None:
            assert set(await tree_of(source)) == {"f"}
            assert await source.stat("fifo") is None
            with pytest.raises(SourceChanged):  # a fifo took the place of a file; opening it must not block
                await read_range(source, SourceObject("fifo", size=1, version_tag="1-1"), 0, 1)

        using(tmp_path, use)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).write_bytes(b"latin")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert set(tree) == {"caf\udce9"}
        assert await read_range(source, tree["caf\udce9"], 0, 5) == b"latin"
        os.unlink(os.fsencode(tmp_path) + b"/caf\xe9")
        with pytest.raises(SourceChanged) as caught:
            await read_range(source, tree["caf\udce9"], 0, 5)
        str(caught.value).encode("utf-8")

    using(tmp_path, use)


def test_one_file_as_root(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    (tmp_path / "other").write_bytes(b"secret")

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert set(tree) == {"f"}
        assert await read_range(source, tree["f"], 1, 7) == b"ontent"
        assert await source.stat("f") == tree["f"]
        assert await source.stat("other") is None
        with pytest.raises(SourceMissing):
            await names_in(source, "x")

    using(tmp_path / "f", use)


def test_a_link_in_place_of_a_directory_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "root/sub").mkdir(parents=True)
    (tmp_path / "root/sub/f").write_bytes(b"mine")
    (tmp_path / "outside").mkdir()

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["sub/f"]
        os.rename(tmp_path / "root/sub/f", tmp_path / "outside/f")  # same size and time: only the way differs
        (tmp_path / "root/sub").rmdir()
        (tmp_path / "root/sub").symlink_to(tmp_path / "outside")
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 0, 4)
        (tmp_path / "root/sub").unlink()
        (tmp_path / "root/sub").mkdir()
        (tmp_path / "root/sub/f").symlink_to(tmp_path / "outside/f")
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 0, 4)
        for path in ("../outside/f", "sub/../../outside/f", "/etc/passwd"):
            assert await source.stat(path) is None

    using(tmp_path / "root", use)


def test_a_root_that_goes_is_missing_and_not_empty(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(b"x")

    async def use(source: Source) -> None:
        obj = (await tree_of(source))["f"]
        os.rename(root, tmp_path / "away")
        with pytest.raises(SourceMissing):
            await tree_of(source)
        with pytest.raises(SourceMissing):
            await source.stat("f")
        with pytest.raises(SourceMissing):
            await read_range(source, obj, 0, 1)

    using(root, use)


def test_a_change_between_two_pieces_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"a" * (2 * PIECE_BYTES))

    class Changing:
        written = 0

        async def write(self, offset: int, data: bytes) -> None:
            assert bytes(data) == b"a" * len(data)
            self.written += len(data)
            path.write_bytes(b"b" * (2 * PIECE_BYTES))

    async def use(source: Source) -> None:
        obj = await source.stat("big")
        assert obj is not None
        sink = Changing()
        with pytest.raises(SourceChanged):
            await source.read(obj, ByteRange(0, 2 * PIECE_BYTES), sink)
        assert sink.written == PIECE_BYTES

    using(tmp_path, use)


def test_many_names_come_in_pages(tmp_path: Path) -> None:
    for i in range(PAGE_NAMES + 1):
        (tmp_path / f"{i}").touch()
    os.mkfifo(tmp_path / "fifo")

    async def use(source: Source) -> None:
        pages = [page async for page in source.list_directory("")]
        assert sum(len(page.objects) for page in pages) == PAGE_NAMES + 1
        assert len(pages) == 3
        assert pages[-1].complete == ("",)

    using(tmp_path, use)


def test_a_listing_that_is_left_gives_its_descriptor_back(tmp_path: Path) -> None:
    (tmp_path / "f").touch()

    async def use(source: Source) -> None:
        listing = source.list_directory("")
        await anext(listing)
        await listing.aclose()  # type: ignore[attr-defined]  # an AsyncIterator that is a generator
        await source.stat("f")  # behind the close, in the threads' queue

    before = set(os.listdir("/proc/self/fd"))
    using(tmp_path, use)

    def given_back() -> bool:  # a thread has taken it out of the queue, and may not have come to it
        opened = (_what_is_open(fd) for fd in set(os.listdir("/proc/self/fd")) - before)
        return not any(target.startswith(str(tmp_path)) for target in opened)

    eventually(given_back, 10, "the descriptor is closed")


def _what_is_open(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, SourceRefused),
        (errno.EPERM, SourceRefused),
        (errno.ESTALE, SourceUnavailable),
        (errno.EIO, SourceUnavailable),
        (errno.ENOTCONN, SourceUnavailable),
        (errno.EMFILE, SourceUnavailable),
        (errno.ETIMEDOUT, SourceTimeout),
    ],
)
def test_what_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[SourceError]
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    real_open = os.open

    def failing_open(path: str, *args: int, **kwargs: int) -> int:
        if path == "f" or path == str(tmp_path):
            raise OSError(number, os.strerror(number), path)
        return real_open(path, *args, **kwargs)

    async def use(source: Source) -> None:
        obj = await source.stat("f")
        assert obj is not None
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", failing_open)
            for call in (read_range(source, obj, 0, 1), source.stat("f"), names_in(source, "")):
                with pytest.raises(kind) as caught:
                    await call
                assert type(caught.value) is kind
                assert str(tmp_path) in str(caught.value)

    using(tmp_path, use)


def test_a_file_system_that_hangs_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"x")
    release = threading.Event()

    async def run() -> None:
        source = DirectorySource(str(tmp_path), timeouts=Timeouts(idle_s=2.0))
        obj = await source.stat("f")
        assert obj is not None
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", lambda *_: release.wait(30) and b"x")
            with pytest.raises(SourceTimeout):
                await read_range(source, obj, 0, 1)
        release.set()
        assert await read_range(source, obj, 0, 1) == b"x"
        await source.close()

    asyncio.run(run())


# -- which directory a manifest means ---------------------------------------------------------------------------------


def root_of(kind: SourceType, uri: str, options: dict[str, str] | None = None, **where: str) -> str:
    source = build_source(SourceSpec(type=kind, uri=uri, options=options or {}), {}, **where)
    assert isinstance(source, DirectorySource)
    return source.root


def test_where_a_manifest_points(tmp_path: Path) -> None:
    assert root_of(SourceType.PVC, "/a/dir") == "/a/dir"
    assert root_of(SourceType.PVC, "file:///a/dir%20x/") == "/a/dir x"
    assert root_of(SourceType.NFS, "nfs://host/export", {"directory": "/mnt/x"}) == "/mnt/x"
    assert root_of(SourceType.PVC, "pvc://claim", {"directory": "/mnt/x"}) == "/mnt/x"
    assert root_of(SourceType.PVC, "pvc://claim/sub/dir", pvc_root=str(tmp_path)) == f"{tmp_path}/claim/sub/dir"
    (tmp_path / "team").mkdir()
    here = root_of(SourceType.PVC, "pvc://claim/sub", pvc_root=str(tmp_path), namespace="team")
    assert here == f"{tmp_path}/team/claim/sub"


@pytest.mark.parametrize(
    ("kind", "uri", "options", "says"),
    [
        (SourceType.PVC, "pvc://claim", {}, "--pvc-root"),
        (SourceType.PVC, "pvc://claim/../other", {}, "names no claim"),
        (SourceType.PVC, "/a", {"directory": "relative"}, "absolute"),
        (SourceType.PVC, "/a", {"dir": "/b"}, "known is"),
    ],
)
def test_what_points_nowhere(kind: SourceType, uri: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        root_of(kind, uri, options)


def test_a_root_that_is_not_mounted_any_more_was_not_emptied(tmp_path: Path) -> None:
    root = tmp_path / "mounted"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root], check=True)
    try:
        (root / "f").write_bytes(b"here")

        async def use(source: Source) -> None:
            tree = await tree_of(source)
            assert await read_range(source, tree["f"], 0, 4) == b"here"
            await asyncio.to_thread(subprocess.run, ["umount", "-l", root], check=True)
            again = DirectorySource(str(root))  # as for a resync
            for one in (source, again):
                with pytest.raises(SourceUnavailable, match="not mounted any more"):
                    await tree_of(one)
                with pytest.raises(SourceUnavailable, match="not mounted any more"):
                    await one.stat("f")
                with pytest.raises(SourceUnavailable, match="not mounted any more"):
                    await read_range(one, tree["f"], 0, 4)
            await again.close()

        using(root, use)
    finally:
        subprocess.run(["umount", root], check=False, capture_output=True)
