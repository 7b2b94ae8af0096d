"""Git repositories through real servers: git http-backend behind nginx, git daemon, sshd, plain files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from dsfs.catalog.crawl import crawl
from dsfs.catalog.lookup import Catalog
from dsfs.catalog.writer import CatalogWriter
from dsfs.errors import SourceChanged, SourceError, SourceMissing, SourceTimeout, SourceUnavailable
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind, SourceObject
from dsfs.ranges import MiB
from dsfs.sources import git_blobs
from dsfs.sources.git import GitSource
from dsfs.sources.git_access import Access
from dsfs.sources.git_address import parse_address
from dsfs.sources.registry import build_source
from dsfs.sources.timeouts import Timeouts
from tests.servers.git_server import (
    Content,
    GitServer,
    Link,
    Module,
    Program,
    Repository,
    git,
    git_daemon,
    http_git,
    make_key,
    ssh_git,
)
from tests.servers.process import HOST
from tests.servers.streams import listening
from tests.sources.sinks import names_in, read_range, tree_of

T = TypeVar("T")
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
AUTHOR = ("-c", "user.name=T", "-c", "user.email=t@t.t")
FILES = {"a.txt": b"first", "sub/b.txt": b"second", "sub/deep/er/c.txt": b"third", "empty": b"", "sub-way.txt": b"4"}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with http_git(tmp_path_factory.mktemp("http")) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_daemon(tmp_path_factory.mktemp("daemon")) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No work directory of a source outlives it."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert os.listdir(place) == []


def build(uri: str, secret: dict[str, str] | None = None, **options: str) -> GitSource:
    source = build_source(SourceSpec(type=SourceType.GIT, uri=uri, options=options), secret or {})
    assert isinstance(source, GitSource)
    return source


def using(source: GitSource, use: Callable[[GitSource], Awaitable[T]]) -> T:
    async def run() -> T:
        try:
            return await use(source)
        finally:
            await source.close()

    return asyncio.run(run())


async def content_of(source: GitSource) -> dict[str, bytes]:
    """All files of a revision, and their bytes."""
    files = {path: obj for path, obj in (await tree_of(source)).items() if obj.kind is Kind.FILE}
    return {path: await read_range(source, obj, 0, obj.size) if obj.size else b"" for path, obj in files.items()}


@pytest.mark.parametrize(
    "way", ["http", "daemon", "file", "path", "plain", "unfiltered", "unfiltered-daemon", "sha256"]
)
def test_the_whole_tree_and_its_bytes(way: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = f"whole-{way}.git"
    if way in ("file", "path"):
        repository = Repository(tmp_path / name, filters=False)
        uri = str(repository.path) if way == "path" else f"git+file://{repository.path}"
    else:
        server: GitServer = request.getfixturevalue("daemon" if way.endswith("daemon") else "http")
        object_format = "sha256" if way == "sha256" else "sha1"
        repository = server.repository(name, object_format=object_format, filters=not way.startswith("unfiltered"))
        uri = f"{server.url}{'plain/' if way == 'plain' else ''}{name}"
    commit = repository.commit(FILES)
    if way == "plain":
        (repository.path / "info").mkdir(exist_ok=True)
        repository.configure("http.getanyfile", "true")
        _update_server_info(repository)

    async def use(source: GitSource) -> None:
        assert source.revision == ""
        assert await content_of(source) == FILES
        assert source.revision == commit
        found = await source.stat("sub/b.txt")
        assert found is not None
        assert (found.size, found.mtime_ns) == (6, 1_700_000_001 * 10**9)
        assert len(found.version_tag) == (64 if way == "sha256" else 40)
        assert await names_in(source, "sub") == {"sub/b.txt": Kind.FILE, "sub/deep": Kind.DIRECTORY}
        for missing in ("none", "sub/none", "a.txt/none", "..", "sub//b.txt"):
            assert await source.stat(missing) is None
        with pytest.raises(SourceMissing, match="no directory"):
            await names_in(source, "a.txt")

    using(build(uri), use)

    async def reads_without_listing(source: GitSource) -> None:  # as a daemon does that was started again
        assert found is not None
        assert await read_range(source, found, 1, 6) == b"econd"

    found = using(build(uri), lambda source: source.stat("sub/b.txt"))
    using(build(uri), reads_without_listing)


def _update_server_info(repository: Repository) -> None:
    git("update-server-info", at=repository.path)


def test_odd_names_modes_and_links(http: GitServer) -> None:
    repository = http.repository("odd.git")
    names = [
        "with space",
        "tab\there",
        'quo"te',
        "line\nbreak",
        "ünï-日本",
        "\udcff\udcfe raw",
        "per%20cent",
        "x" * 255,
    ]
    files = {f"d/{name}": os.fsencode(name) for name in names}
    links = {"link": Link("d/with space"), "d/out": Link("../../etc"), "d/l\udcff": Link("\udcff")}
    repository.commit({**files, **links, "run.sh": Program(b"#!/bin/sh\n")})

    async def use(source: GitSource) -> None:
        tree = await tree_of(source)
        assert {p for p, o in tree.items() if o.kind is Kind.FILE} == {*files, "run.sh"}
        assert {p: o.target for p, o in tree.items() if o.kind is Kind.SYMLINK} == {
            p: x.target for p, x in links.items()
        }
        assert (await content_of(source)).items() >= files.items()
        for path, obj in tree.items():
            assert await source.stat(path) == obj
        async for page in source.list_directory("d"):
            assert all(obj == tree[obj.path] for obj in page.objects if obj.kind is Kind.SYMLINK)

    using(build(f"{http.url}odd.git"), use)


def test_a_directory_named_git_is_hidden(http: GitServer) -> None:
    repository = http.repository("hidden.git")
    repository.commit({"a": b"1", "x/ok": b"2"})
    _with_dot_git(repository)

    async def use(source: GitSource) -> None:
        assert set(await tree_of(source)) == {"a", "x", "x/ok"}
        assert await source.stat(".git") is None

    using(build(f"{http.url}hidden.git"), use)


def _with_dot_git(repository: Repository) -> None:
    """A tree that git itself would not make: it has an entry .git."""
    blob = git("hash-object", "-w", "--stdin", stdin=b"evil", at=repository.path)
    entries = git("ls-tree", "-z", "main", at=repository.path) + f"\x00100644 blob {blob}\t.git\x00"
    raw = bytearray()
    for entry in sorted(filter(None, entries.split("\0")), key=lambda line: line.partition("\t")[2]):
        mode, _kind, oid = entry.partition("\t")[0].split()
        raw += f"{mode.lstrip('0')} {entry.partition(chr(9))[2]}\0".encode() + bytes.fromhex(oid)
    tree = git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=bytes(raw), at=repository.path)
    git(
        "update-ref",
        "refs/heads/main",
        git(*AUTHOR, "commit-tree", "-m", "x", tree, at=repository.path),
        at=repository.path,
    )


def test_revisions(http: GitServer) -> None:
    repository = http.repository("revisions.git")
    first = repository.commit({"f": b"1"})
    repository.tag("v1", first, annotated=True)
    repository.tag("light", first)
    second = repository.commit({"f": b"2"})
    branch = repository.commit({"f": b"3"}, "feature/x")
    repository.tag("both", first)
    repository.commit({"f": b"4"}, "both")
    pull = repository.commit({"f": b"5"}, "away")
    _move_ref(repository, "refs/heads/away", "refs/pull/7/head")

    def content(**options: str) -> bytes:
        async def use(source: GitSource) -> bytes:
            return (await content_of(source))["f"]

        return using(build(f"{http.url}revisions.git", None, **options), use)

    assert content() == content(revision="HEAD") == content(revision="main") == content(commit=second) == b"2"
    assert content(revision="v1") == content(revision="light") == content(revision="refs/tags/v1") == b"1"
    assert content(revision=first) == content(revision=first.upper(), depth="1") == b"1"  # no tip of any branch
    assert content(branch="feature/x") == content(revision=branch) == content(revision=branch[:10]) == b"3"
    assert content(branch="both") == b"4"
    assert content(revision="refs/pull/7/head") == content(revision=pull) == b"5"
    assert content(branch="feature/x", commit=first) == b"1"
    for missing in ("nonesuch", "refs/heads/nonesuch", "0" * 40, "abcdef0"):
        with pytest.raises(SourceMissing, match=missing):
            content(revision=missing)


@pytest.mark.parametrize("way", ["http", "daemon", "unfiltered", "blobs only", "plain"])
def test_a_short_commit_that_is_no_tip(way: str, request: pytest.FixtureRequest) -> None:
    server: GitServer = request.getfixturevalue("daemon" if way == "daemon" else "http")
    name = f"short-{way.replace(' ', '-')}.git"
    repository = server.repository(name, filters=way != "unfiltered")
    if way == "blobs only":
        repository.configure("uploadpackfilter.tree.allow", "false")
    commits = [repository.commit({"f": b"%d" % number, "d/e": b"e"}) for number in range(3)]
    side = [repository.commit({"f": b"s%d" % number}, "side") for number in range(2)]
    repository.tag("last", side[1])
    repository.delete("refs/heads/side")
    if way == "plain":
        repository.configure("http.getanyfile", "true")
        _update_server_info(repository)
    uri = f"{server.url}{'plain/' if way == 'plain' else ''}{name}"

    async def use(source: GitSource) -> tuple[str, bytes]:
        content = (await content_of(source))["f"]
        (opened,) = source.repositories()
        before = opened.program.network_commands
        for known in (source.revision[:7], source.revision[:8], source.revision[:39]):
            assert (await opened.pin(known)).commit == source.revision
        assert opened.program.network_commands - before == 3 * 2, "it is asked which branches and tags there are"
        for other in (commits[0], side[0]):  # as of other datasets of this repository
            before = opened.program.network_commands
            pin = await opened.pin(other[:9])
            brought = other == source.revision or way == "unfiltered"  # by now, all of it
            brought |= way == "plain" and (source.revision, other) == (commits[1], commits[0])  # what is before it too
            fetches = 0 if brought else 2 if way == "plain" else 1  # a plain web server refuses a part first
            assert opened.program.network_commands - before == 2 + fetches, "no history is fetched again"
            assert pin.commit == other
            assert (await opened.trees([pin.tree]))[0].keys() >= {"f"}
        assert [name for name in os.listdir(opened.program.directory) if name.startswith("history")] == ["history"]
        assert (await content_of(source))["f"] == content
        return source.revision, content

    assert using(build(uri, commit=commits[1][:7]), use) == (commits[1], b"1")
    assert using(build(uri, revision=side[0][:12].upper()), use) == (side[0], b"s0"), "only a tag leads there"
    assert using(build(uri, branch="main", commit=commits[0][:39]), use) == (commits[0], b"0")


def test_a_short_commit_says_what_keeps_it_from_being_one(http: GitServer) -> None:
    repository = http.repository("ambiguous.git")
    alike = _commits_alike(repository, 7)
    tip = git(*AUTHOR, "commit-tree", "-m", "x", "-p", alike[0], "-p", alike[1], EMPTY_TREE, at=repository.path)
    git("update-ref", "refs/heads/main", tip, at=repository.path)

    async def use(source: GitSource) -> None:
        with pytest.raises(SourceMissing, match=rf"{alike[0][:7]}' \(2 commits begin so: give more digits\)"):
            await tree_of(source)
        (opened,) = source.repositories()
        before = opened.program.network_commands
        with pytest.raises(SourceMissing, match=r"fffffff7' \(no commit of a branch or tag begins so\)"):
            await opened.pin("fffffff7")
        assert opened.program.network_commands - before == 2, "all history of these branches and tags is here"
        assert (await opened.pin(alike[0][:12])).commit == alike[0]
        later = repository.commit({"f": b"later"})
        repository.commit({"f": b"last"})
        assert (await opened.pin(later[:12])).commit == later

    using(build(f"{http.url}ambiguous.git", revision=alike[0][:7]), use)


def _commits_alike(repository: Repository, digits: int) -> tuple[str, str]:
    """Two commits without a parent whose numbers begin with the same digits."""
    git("hash-object", "-w", "-t", "tree", "--stdin", stdin=b"", at=repository.path)
    seen: dict[str, tuple[str, bytes]] = {}
    for number in range(1_000_000):
        raw = f"tree {EMPTY_TREE}\nauthor T <t@t.t> {number} +0000\ncommitter T <t@t.t> {number} +0000\n\n".encode()
        oid = hashlib.sha1(b"commit %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
        if other := seen.setdefault(oid[:digits], (oid, raw)):
            if other[0] == oid:
                continue
            for content in (other[1], raw):
                git("hash-object", "-w", "-t", "commit", "--stdin", stdin=content, at=repository.path)
            return other[0], oid
    raise AssertionError("no two are alike")


def test_a_short_name_of_few_digits_is_a_tip_or_nothing(http: GitServer) -> None:
    repository = http.repository("few.git")
    first, tip = repository.commit({"f": b"1"}), repository.commit({"f": b"2"})

    async def use(source: GitSource) -> None:
        with pytest.raises(SourceMissing, match=rf"{first[:6]}' \(no branch or tag .* by 7 digits or more\)"):
            await tree_of(source)
        (opened,) = source.repositories()
        assert opened.program.network_commands == 2
        assert "history" not in os.listdir(opened.program.directory)
        assert (await opened.pin(tip[:4])).commit == tip

    using(build(f"{http.url}few.git", commit=first[:6]), use)


def test_a_history_that_is_all_that_there_is_stays_whole(http: GitServer) -> None:
    """Of a server that filters nothing it is where commits are listed from, and later ones come into it."""
    repository = http.repository("unshallow.git", filters=False)
    first = repository.commit({"f": b"1"})
    repository.commit({"f": b"2"})

    async def use(source: GitSource) -> None:
        await tree_of(source)
        (opened,) = source.repositories()
        between, tip = repository.commit({"f": b"3"}), repository.commit({"f": b"4"})
        assert (await opened.pin("main")).commit == tip
        before = opened.program.network_commands
        assert (await opened.pin(between[:7])).commit == between
        assert opened.program.network_commands - before == 2
        assert set(os.listdir(opened.program.directory)) == {".lock", "history"}

    using(build(f"{http.url}unshallow.git", commit=first[:7]), use)


def test_who_knows_the_commit_waits_for_no_search(http: GitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = http.repository("searched.git")
    first = repository.commit({"f": b"1"})
    repository.commit({"f": b"2"})

    async def use(source: GitSource) -> None:
        await tree_of(source)
        (opened,) = source.repositories()
        begun, gate, fetch = asyncio.Event(), asyncio.Event(), opened._fetch_history

        async def held(store: git_blobs.Store) -> str:
            begun.set()
            await gate.wait()
            return await fetch(store)

        monkeypatch.setattr(opened, "_fetch_history", held)
        search = asyncio.create_task(opened.pin(first[:8]))
        await begun.wait()
        async with asyncio.timeout(30):
            assert (await opened.pin(first)).commit == first
        gate.set()
        assert (await search).commit == first

    using(build(f"{http.url}searched.git"), use)


def test_a_read_searches_no_history(http: GitServer) -> None:
    """As a daemon reads that was started again: it knows which commit was listed, or, at worst, does not."""
    repository = http.repository("restarted.git")
    first = repository.commit({f"f{i}": b"%d" % i for i in range(20)})
    repository.commit({"f0": b"other"})
    listed = using(build(f"{http.url}restarted.git", commit=first[:8]), tree_of)

    async def use(source: GitSource) -> int:
        for number in range(4):
            assert await read_range(source, listed[f"f{number}"], 0, 1) == b"%d" % number
        (opened,) = source.repositories()
        assert not [name for name in os.listdir(opened.program.directory) if name.startswith("history")]
        return opened.program.network_commands

    assert using(build(f"{http.url}restarted.git", commit=first[:8]), use) == 2 + 4, "two look-ups, and one by one"
    told = build(f"{http.url}restarted.git", commit=first[:8])
    told.read_at(first)
    assert using(told, use) == 2 + 1, "a look-up, the trees, and all at once"
    branch = build(f"{http.url}restarted.git", branch="main")
    branch.read_at("0" * 40)
    untold = build(f"{http.url}restarted.git", branch="main")
    assert using(branch, use) == using(untold, use), "a commit that is gone is no matter to a branch"


def _move_ref(repository: Repository, before: str, after: str) -> None:
    git("update-ref", after, before, at=repository.path)
    git("update-ref", "-d", before, at=repository.path)


def test_what_is_not_there_is_missing_and_says_so(http: GitServer, daemon: GitServer, tmp_path: Path) -> None:
    http.repository("no-commits.git")
    shown = {
        f"{http.url}none.git": "none.git",
        f"{daemon.url}none.git": "none.git",
        f"file://{tmp_path}/none.git": "none.git",
        f"{http.url}no-commits.git": "has no commits",
    }
    for uri, says in shown.items():
        with pytest.raises(SourceMissing, match=says) as caught:
            using(build(uri), tree_of)
        assert "\n" not in str(caught.value)


def test_ranges_of_small_and_large_blobs(http: GitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_blobs, "WHOLE_BYTES", MiB)  # larger ones go through a file
    big = random.Random(1).randbytes(5 * MiB + 4321)
    repository = http.repository("big.git")
    repository.commit({"big.bin": big, "small.bin": big[:1000]})

    async def use(source: GitSource) -> None:
        for path, data in (("big.bin", big), ("small.bin", big[:1000])):
            obj = await source.stat(path)
            assert obj is not None
            assert obj.size == len(data)
            ranges = [(0, 1), (len(data) - 1, len(data)), (0, len(data)), (len(data) // 3, len(data) // 2)]
            both = await asyncio.gather(*(read_range(source, obj, start, stop) for start, stop in ranges))
            assert both == [data[start:stop] for start, stop in ranges]

    using(build(f"{http.url}big.git"), use)


def _many(count: int) -> dict[str, bytes]:
    rng = random.Random(7)
    return {f"d{i % 40}/s{i % 3}/f{i}.txt": rng.randbytes(rng.randint(20, 3000)) for i in range(count)}


def test_5000_files_are_sealed_with_few_commands(http: GitServer, tmp_path: Path) -> None:
    files = _many(5000)
    repository = http.repository("many.git")
    commit = repository.commit(files)
    before = len(http.requests())

    async def use(source: GitSource) -> None:
        writer = CatalogWriter.create(str(tmp_path / "c.sqlite"), "listed", 1)
        started = time.monotonic()
        await crawl(source, writer, lambda: None)
        assert time.monotonic() - started < 60
        catalog = Catalog(str(tmp_path / "c.sqlite"))
        assert catalog.sealed
        assert catalog.revision == commit
        assert catalog.totals() == (5000, sum(map(len, files.values())), 0)
        catalog.close()
        (opened,) = source.repositories()
        listing = (opened.program.network_commands, opened.program.local_processes)
        assert listing[0] <= 8, "ls-remote, the trees, and blobs by the thousand"
        assert listing[1] <= 3, "one cat-file for the trees and one for the blobs"
        assert len(http.requests()) - before <= 3 * listing[0]
        paths = random.Random(2).sample(sorted(files), 500)
        objects = [await source.stat(path) for path in paths]
        found = await asyncio.gather(*(read_range(source, obj, 0, obj.size or 0) for obj in objects if obj is not None))
        assert found == [files[path] for path in paths]
        assert (opened.program.network_commands, opened.program.local_processes) == listing, (
            "all that was read was here"
        )

    using(build(f"{http.url}many.git"), use)


def test_sizes_of_siblings_and_reads_at_one_time_share_commands(http: GitServer) -> None:
    files = {f"d/f{i:03}": b"%d" % i * 50 for i in range(300)}
    http.repository("shared.git").commit(files)

    async def look(source: GitSource) -> list[SourceObject]:
        async for page in source.list_directory("d"):
            assert all(obj.size is None for obj in page.objects), "names come without blobs"
        found = await asyncio.gather(*(source.stat(path) for path in files))
        (opened,) = source.repositories()
        assert opened.program.network_commands <= 2 + 3
        return [obj for obj in found if obj is not None]

    objects = using(build(f"{http.url}shared.git"), look)

    async def one_after_the_other(source: GitSource) -> None:
        for obj, content in zip(objects, files.values(), strict=True):
            assert await read_range(source, obj, 0, obj.size or 0) == content
        (opened,) = source.repositories()
        assert opened.program.network_commands <= 2 + 6, "those that lie behind it come along with each"

    using(build(f"{http.url}shared.git"), one_after_the_other)

    async def read(source: GitSource) -> None:
        found = await asyncio.gather(*(read_range(source, obj, 0, obj.size or 0) for obj in objects))
        assert found == list(files.values())
        (opened,) = source.repositories()
        assert opened.program.network_commands <= 2 + 5

    using(build(f"{http.url}shared.git"), read)


def test_the_disk_is_bounded(http: GitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_blobs, "GENERATION_BYTES", 100_000)
    monkeypatch.setattr(git_blobs, "BATCH_BYTES", 50_000)
    files = {f"f{i}": random.Random(i).randbytes(20_000) for i in range(50)}
    http.repository("bounded.git").commit(files)

    async def use(source: GitSource) -> None:
        assert await content_of(source) == files
        (opened,) = source.repositories()
        kept = _bytes_of_packs(opened.program.directory)
        assert kept < 500_000 < 50 * 20_000

    using(build(f"{http.url}bounded.git"), use)


def _bytes_of_packs(directory: str) -> int:
    return sum(path.stat().st_size for path in Path(directory).rglob("*.pack"))


@pytest.mark.parametrize("filters", [True, False])
def test_a_forced_push_changes_nothing_that_was_listed(http: GitServer, filters: bool) -> None:
    name = f"forced-{filters}.git"
    repository = http.repository(name, filters=filters)
    old: dict[str, Content] = {f"f{i}": b"old %d" % i for i in range(20)}
    commit = repository.commit(old)

    async def use(source: GitSource) -> None:
        async for _ in source.list_directory(""):
            pass
        repository.commit({"f0": b"new"}, orphan=True)
        assert await content_of(source) == old
        assert source.revision == commit

    using(build(f"{http.url}{name}"), use)


@pytest.mark.parametrize("filters", [True, False])
def test_a_listing_goes_on_with_the_commit_that_it_began_with(http: GitServer, filters: bool) -> None:
    name = f"goes-on-{filters}.git"
    repository = http.repository(name, filters=filters)
    first = repository.commit(FILES)
    repository.commit({"a.txt": b"other"})
    source = build(f"{http.url}{name}")
    source.go_on_at(first)

    async def use(source: GitSource) -> None:
        assert await content_of(source) == FILES
        assert source.revision == first

    using(source, use)


def test_objects_that_the_server_forgot_are_changed(http: GitServer) -> None:
    repository = http.repository("forgot.git")
    repository.commit({f"f{i}": b"old %d" % i for i in range(20)} | {"stays": b"same"})
    everything = using(build(f"{http.url}forgot.git"), tree_of)
    repository.commit({"f0": b"new", "stays": b"same"}, orphan=True)
    repository.forget_unreachable()

    async def use(source: GitSource) -> None:
        reads = [read_range(source, obj, 0, obj.size or 0) for obj in everything.values()]
        found = dict(zip(everything, await asyncio.gather(*reads, return_exceptions=True), strict=True))
        assert found.pop("stays") == b"same", "one that is gone must not fail those that are asked for with it"
        assert all(isinstance(error, SourceChanged) for error in found.values())

    using(build(f"{http.url}forgot.git"), use)


def test_a_resync_fetches_only_what_is_new(http: GitServer) -> None:
    repository = http.repository("resync.git")
    repository.commit(_many(300))

    async def run() -> None:
        first = build(f"{http.url}resync.git")
        await content_of(first)
        (opened,) = first.repositories()
        repository.commit({"d1/new": b"new", "d2/s2/f2.txt": b"changed"})
        second = build(f"{http.url}resync.git")
        try:
            fetched = opened.blobs.fetched
            content = await content_of(second)
            assert content["d1/new"] == b"new"
            assert len(content) == 301
            assert second.repositories() == [opened]
            assert opened.blobs.fetched == fetched + 2
            assert first.revision != second.revision
            assert "d1/new" not in await content_of(first), "a source stays with its commit"
        finally:
            await first.close()
            await second.close()

    asyncio.run(run())


def test_submodules(http: GitServer, tmp_path: Path) -> None:
    inner = http.repository("inner.git").commit({"deep/i.txt": b"inner", "l": Link("deep")})
    middle = http.repository("libs/middle.git")
    middle_commit = middle.commit(
        {".gitmodules": b'[submodule "i"]\n\tpath = in\n\turl = ../../inner.git\n', "in": Module(inner), "m": b"middle"}
    )
    modules = (
        b'[submodule "m"]\n\tpath = sub/m\n\turl = ./../libs/middle.git\n'
        b'[submodule "evil"]\n\tpath = evil\n\turl = file:///etc\n'
    )
    outer = http.repository("outer.git")
    commits = {"sub/m": Module(middle_commit), "lost": Module("1" * 40), "evil": Module("2" * 40)}
    outer.commit({".gitmodules": modules, "o": b"outer", **commits})

    async def with_modules(source: GitSource) -> None:
        content = await content_of(source)
        assert content.pop(".gitmodules") == modules
        assert content.pop("sub/m/.gitmodules")
        assert content == {"o": b"outer", "sub/m/m": b"middle", "sub/m/in/deep/i.txt": b"inner"}
        link = await source.stat("sub/m/in/l")
        assert link is not None
        assert link.target == "deep"
        assert await names_in(source, "lost") == await names_in(source, "evil") == {}
        found = await source.stat("sub/m/in/deep/i.txt")
        assert found is not None
        objects.append(found)

    objects: list[SourceObject] = []
    using(build(f"{http.url}outer.git", submodules="true"), with_modules)

    async def reads_without_listing(source: GitSource) -> None:
        assert await read_range(source, objects[0], 0, 5) == b"inner"

    using(build(f"{http.url}outer.git", submodules="true"), reads_without_listing)

    async def without(source: GitSource) -> None:
        assert set(await tree_of(source)) == {".gitmodules", "o", "sub", "sub/m", "lost", "evil"}
        assert await names_in(source, "sub/m") == {}

    using(build(f"{http.url}outer.git", submodules="false"), without)


def test_a_dead_server_is_unavailable_soon(tmp_path: Path) -> None:
    with http_git(tmp_path) as server:
        server.repository("dead.git").commit({f"f{i}": b"%d" % i for i in range(500)})
        uri = f"{server.url}dead.git"

        async def use(source: GitSource) -> None:
            async for _ in source.list_directory(""):
                pass
            server.kill()
            started = time.monotonic()
            with pytest.raises(SourceUnavailable, match=r"dead\.git"):
                await source.stat("f7")
            with pytest.raises(SourceUnavailable, match=r"dead\.git"):
                await tree_of(source)
            with pytest.raises(SourceUnavailable):
                await tree_of(other)
            await other.close()
            assert time.monotonic() - started < 15
            assert len(await names_in(source, "")) == 500, "what is known stays"

        other = build(uri)
        using(build(uri), use)


def test_a_server_that_says_nothing_is_a_timeout_and_leaves_no_process() -> None:
    before = _children()

    async def run() -> None:
        async with listening(_says_nothing) as (port, _connections):
            for scheme in ("http", "git"):
                access = Access(parse_address(f"{scheme}://{HOST}:{port}/x.git"), {})
                source = GitSource(access, timeouts=Timeouts(1.0, 0.5))
                started = time.monotonic()
                with pytest.raises(SourceTimeout):
                    await tree_of(source)
                assert time.monotonic() - started < 15
                await source.close()
            assert _children() == before

    asyncio.run(run())


async def _says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def _children() -> list[str]:
    """Names and states of this process's children, zombies included."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        name, state, parent = text[text.index("(") + 1 :].rpartition(") ")[0], *text.rpartition(") ")[2].split()[:2]
        if int(parent) == os.getpid() and "git" in name:
            found.append(f"{name} {state}")
    return found


def test_what_the_killed_have_left_goes_while_others_go_on(http: GitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be half a gigabyte, and one loop serves all datasets."""
    http.repository("room.git").commit(FILES)
    left = Path(tempfile.gettempdir()) / "dsfs-git-left"
    left.mkdir()
    (left / ".lock").touch()
    os.utime(left, (time.time() - 3600,) * 2)
    removing, others, really = threading.Event(), threading.Event(), shutil.rmtree

    def remove(path: str, *how: bool, **said: bool) -> None:
        if path == str(left):
            removing.set()
            assert others.wait(5), "nothing else went on meanwhile"
        really(path, *how, **said)

    async def use(source: GitSource) -> None:
        listing = asyncio.create_task(tree_of(source))
        assert await asyncio.to_thread(removing.wait, 10)
        others.set()
        assert FILES.keys() <= (await listing).keys()
        assert not left.exists()

    monkeypatch.setattr(shutil, "rmtree", remove)
    using(build(f"{http.url}room.git"), use)


def test_who_is_cancelled_leaves_nothing_and_ends_no_one_else(http: GitServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git_blobs, "LINGER_S", 0.005)
    before = _children()
    http.repository("cancel.git").commit({f"f{i}": random.Random(i).randbytes(2000) for i in range(400)})

    async def use(source: GitSource) -> None:
        for delay_s in (0.0, 0.01, 0.03, 0.06, 0.1, 0.15):
            listing = asyncio.create_task(tree_of(source))
            await asyncio.sleep(delay_s)
            listing.cancel()
            await asyncio.gather(listing, return_exceptions=True)
        tasks = [asyncio.create_task(source.stat(f"f{i}")) for i in range(50)]
        await asyncio.sleep(0.02)
        for task in tasks[:-1]:
            task.cancel()
        last = await tasks[-1]
        assert last is not None
        assert await read_range(source, last, 0, 2000) == random.Random(49).randbytes(2000)
        assert len(await tree_of(source)) == 400

    using(build(f"{http.url}cancel.git"), use)
    assert _children() == before


@pytest.mark.parametrize("version_2", [True, False])
def test_ssh_with_a_key(version_2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", f"ssh -F none -o UserKnownHostsFile={tmp_path}/known_hosts")
    plain, locked = make_key(tmp_path / "plain"), make_key(tmp_path / "locked", "open sesame 7")
    make_key(tmp_path / "stranger")
    keys = {name: (tmp_path / name).read_text().strip() for name in ("plain", "locked", "stranger")}
    with ssh_git(tmp_path, plain + locked, version_2=version_2) as server:
        server.repository("s.git").commit(FILES)
        uri = f"{server.url}s.git"
        assert using(build(uri, {"ssh-privatekey": keys["plain"]}), content_of) == FILES
        found = using(build(uri, {"ssh-privatekey": keys["plain"]}), lambda source: source.stat("a.txt"))
        assert found is not None

        async def reads_without_listing(source: GitSource) -> bytes:
            return await read_range(source, found, 0, 5)

        assert using(build(uri, {"ssh-privatekey": keys["plain"]}), reads_without_listing) == b"first"
        secret = {"ssh-privatekey": keys["locked"], "ssh-privatekey-passphrase": "open sesame 7"}
        assert using(build(uri, secret), content_of) == FILES
        refused = [
            {"ssh-privatekey": keys["stranger"]},
            {"ssh-privatekey": "no key"},
            {**secret, "ssh-privatekey-passphrase": "no"},
        ]
        for wrong in refused:
            with pytest.raises(SourceError, match="refused") as caught:
                using(build(uri, wrong), tree_of)
            assert keys["locked"][100:140] not in str(caught.value)
        (tmp_path / "known_hosts").write_text(
            (tmp_path / "known_hosts").read_text().split()[0] + " " + (tmp_path / "stranger.pub").read_text()
        )
        with pytest.raises(SourceError, match="known_hosts"):
            using(build(uri, {"ssh-privatekey": keys["plain"]}), tree_of)
