"""Git LFS: files with their real size and bytes, from an LFS server behind nginx, beside it, or on this disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dsfs.errors import RetryLater, SourceChanged, SourceError, SourceMissing, SourceRefused, SourceUnavailable
from dsfs.model import Kind, SourceObject
from dsfs.ranges import MiB
from dsfs.sources.git import GitSource
from tests.servers.git_server import GitServer, Repository, basic, http_git, make_key, shell_script, ssh_git
from tests.servers.lfs_server import LfsServer, lfs_server, pointer
from tests.servers.process import HOST, free_ports
from tests.sources.sinks import read_range, tree_of
from tests.sources.test_git import build, using

BIG = random.Random(1).randbytes(9 * MiB)
SMALL = b"a small file"
ATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with http_git(tmp_path_factory.mktemp("http")) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def serving(server: LfsServer, source: GitSource, use: Callable[[GitSource], Awaitable[None]]) -> None:
    async def run() -> None:
        async with lfs_server(server):
            try:
                await use(source)
            finally:
                await source.close()

    asyncio.run(run())


def _commit(repository: Repository, server: LfsServer) -> None:
    files = {".gitattributes": ATTRIBUTES, "d/big.bin": server.add(BIG), "d/small.bin": server.add(SMALL)}
    repository.commit({**files, "text.txt": b"text"})


def test_files_have_their_real_size_and_bytes(http: GitServer) -> None:
    server = LfsServer(http.lfs_port)
    _commit(http.repository("lfs.git"), server)
    seen: list[SourceObject] = []

    async def use(source: GitSource) -> None:
        tree = await tree_of(source)
        big, small = tree["d/big.bin"], tree["d/small.bin"]
        assert (big.size, small.size, tree["text.txt"].size) == (len(BIG), len(SMALL), 4)
        assert big.version_tag == f"lfs:{hashlib.sha256(BIG).hexdigest()}"
        assert await source.stat("d/small.bin") == small
        assert await read_range(source, small, 0, len(SMALL)) == SMALL
        assert await read_range(source, small, 2, 7) == SMALL[2:7]
        ranges = [(0, 8 * MiB), (8 * MiB, len(BIG)), (5, 6), (MiB - 1, MiB + 1), (0, len(BIG))]
        found = await asyncio.gather(*(read_range(source, big, start, stop) for start, stop in ranges))
        assert found == [BIG[start:stop] for start, stop in ranges]
        assert server.batches == [1, 1], "an answer is used until it expires, and waiters share a request"
        assert server.ranges.count(None) == 2, "all but what is wanted whole is asked for in ranges"
        assert server.seen[0] == ("/lfs.git/info/lfs/objects/batch", None)
        seen.append(big)

    serving(server, build(f"{http.url}lfs.git"), use)

    async def reads_without_listing(source: GitSource) -> None:
        assert await read_range(source, seen[0], 7, 9) == BIG[7:9]

    serving(server, build(f"{http.url}lfs.git"), reads_without_listing)


def test_a_read_after_a_restart_knows_the_commit_of_a_short_name(http: GitServer) -> None:
    server = LfsServer(http.lfs_port)
    repository = http.repository("lfs-short.git")
    _commit(repository, server)
    first = repository.commit({".gitattributes": ATTRIBUTES, "a.bin": server.add(SMALL)})
    repository.commit({"text.txt": b"other"})
    small = SourceObject("a.bin", Kind.FILE, len(SMALL), version_tag=f"lfs:{hashlib.sha256(SMALL).hexdigest()}")

    async def use(source: GitSource) -> None:
        with pytest.raises(SourceMissing, match="no branch or tag is at such a commit"):  # at once, not out of time
            await read_range(source, small, 0, 3)
        source.read_at(first)
        assert await read_range(source, small, 0, len(SMALL)) == SMALL
        (opened,) = source.repositories()
        assert "history" not in os.listdir(opened.program.directory)

    serving(server, build(f"{http.url}lfs-short.git", commit=first[:7]), use)


def test_many_reads_share_batches(http: GitServer) -> None:
    server = LfsServer(http.lfs_port)
    contents = {f"{i}.bin": b"content %d" % i for i in range(150)}
    files = {name: server.add(content) for name, content in contents.items()}
    http.repository("lfs-many.git").commit({".gitattributes": ATTRIBUTES, **files})

    async def use(source: GitSource) -> None:
        tree = await tree_of(source)
        names = sorted(contents)
        found = await asyncio.gather(*(read_range(source, tree[name], 0, tree[name].size or 0) for name in names))
        assert found == [contents[name] for name in names]
        assert sorted(server.batches) == [50, 100]

    serving(server, build(f"{http.url}lfs-many.git"), use)


def test_what_only_looks_like_a_pointer_is_a_file(http: GitServer) -> None:
    server = LfsServer(http.lfs_port)
    text = server.add(SMALL)
    http.repository("lfs-not.git").commit(
        {"a.bin": text, "x/.gitattributes": ATTRIBUTES, "x/b.bin": text, "x/c": text[:-9]}
    )

    async def use(source: GitSource) -> None:
        tree = await tree_of(source)
        sizes = {path: obj.size for path, obj in tree.items() if obj.kind is Kind.FILE and "git" not in path}
        assert sizes == {"a.bin": len(text), "x/b.bin": len(SMALL), "x/c": len(text) - 9}
        assert await read_range(source, tree["a.bin"], 0, len(text)) == text

    serving(server, build(f"{http.url}lfs-not.git"), use)


def test_credentials_as_for_the_repository_and_for_no_other_host(tmp_path: Path) -> None:
    with http_git(tmp_path, auth=True) as git_server:
        git_server.set_password("alice", "pw-1234")
        server = LfsServer(git_server.lfs_port, authorization=basic("alice", "pw-1234"))
        _commit(git_server.repository("lfs.git"), server)  # its hrefs have another port: that is another host

        async def use(source: GitSource) -> None:
            tree = await tree_of(source)
            assert await read_range(source, tree["d/small.bin"], 0, 3) == SMALL[:3]
            assert [given for path, given in server.seen if path.endswith("batch")] == [server.authorization]
            assert [given for path, given in server.seen if path.startswith("/objects/")] == [None]

        serving(server, build(f"{git_server.url}lfs.git", {"username": "alice", "password": "pw-1234"}), use)


def test_lfsconfig_names_another_server_which_gets_no_credentials(tmp_path: Path) -> None:
    with http_git(tmp_path, auth=True) as git_server:
        git_server.set_password("alice", "pw-1234")
        server = LfsServer(free_ports(1)[0])
        config = f"[lfs]\n\turl = {server.url}/other/place\n".encode()
        repository = git_server.repository("lfs.git")
        repository.commit({".lfsconfig": config, ".gitattributes": ATTRIBUTES, "a.bin": server.add(SMALL)})

        async def use(source: GitSource) -> None:
            obj = await source.stat("a.bin")
            assert obj is not None
            assert await read_range(source, obj, 0, len(SMALL)) == SMALL
            assert server.seen[0] == ("/other/place/objects/batch", None)
            server.authorization = "Basic something"
            server.ticket = "ticket-2"
            with pytest.raises(SourceRefused):
                await read_range(source, obj, 0, len(SMALL))
            assert {given for _, given in server.seen} == {None}

        serving(server, build(f"{git_server.url}lfs.git", {"username": "alice", "password": "pw-1234"}), use)


def test_what_goes_wrong_has_a_name_and_no_wrong_bytes_come(http: GitServer) -> None:
    server = LfsServer(http.lfs_port)
    _commit(http.repository("lfs-wrong.git"), server)
    gone = hashlib.sha256(SMALL).hexdigest()

    async def use(source: GitSource) -> None:
        tree = await tree_of(source)
        small, big = tree["d/small.bin"], tree["d/big.bin"]
        assert await read_range(source, small, 0, 5) == SMALL[:5]
        server.ticket = "ticket-2"  # the URL is taken back before its time: asked for anew, once
        assert await read_range(source, small, 0, 5) == SMALL[:5]
        server.corrupt = True
        with pytest.raises(SourceUnavailable, match="other bytes"):
            await read_range(source, small, 0, len(SMALL))
        server.corrupt, server.expires_in = False, 1
        content = server.objects.pop(gone)
        server.ticket = "ticket-3"
        with pytest.raises(SourceChanged, match=f"{gone}.*does not exist|Object does not exist") as caught:
            await read_range(source, small, 0, 5)
        assert "s3cr3t-signature" not in str(caught.value)
        server.objects[gone] = content
        server.refuse_with = 429
        with pytest.raises(RetryLater) as later:
            await read_range(source, big, 0, 5)
        assert later.value.retry_after_s == 7
        server.refuse_with = 403
        with pytest.raises(SourceRefused):
            await read_range(source, big, 0, 5)
        server.refuse_with, server.batch_status = None, 206
        with pytest.raises(SourceUnavailable, match="a part of an answer"):
            await read_range(source, big, 0, 5)
        server.batch_status = 200
        assert await read_range(source, big, 0, 5) == BIG[:5]

    serving(server, build(f"{http.url}lfs-wrong.git"), use)

    async def when_it_is_down() -> None:
        source = build(f"{http.url}lfs-wrong.git")
        try:
            obj = (await tree_of(source))["d/big.bin"]
            with pytest.raises(SourceUnavailable) as caught:
                await read_range(source, obj, 0, 5)
            assert "s3cr3t-signature" not in str(caught.value)
        finally:
            await source.close()

    asyncio.run(when_it_is_down())


def test_a_local_repository_has_its_objects_beside_it(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "local.git")
    oid = hashlib.sha256(BIG).hexdigest()
    place = repository.path / "lfs" / "objects" / oid[:2] / oid[2:4]
    place.mkdir(parents=True)
    (place / oid).write_bytes(BIG)
    repository.commit({".gitattributes": ATTRIBUTES, "big.bin": pointer(BIG), "lost.bin": pointer(b"lost")})

    async def run() -> None:
        source = build(f"file://{repository.path}")
        try:
            tree = await tree_of(source)
            assert await read_range(source, tree["big.bin"], MiB, 7 * MiB) == BIG[MiB : 7 * MiB]
            with pytest.raises(SourceChanged, match="not fetched"):
                await read_range(source, tree["lost.bin"], 0, 4)
        finally:
            await source.close()

    asyncio.run(run())


def test_over_ssh_the_server_says_where_and_lends_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", f"ssh -F none -o UserKnownHostsFile={tmp_path}/known_hosts")
    public = make_key(tmp_path / "key")
    server = LfsServer(free_ports(1)[0], authorization="RemoteAuth lent")
    with ssh_git(tmp_path, public) as ssh:
        _commit(ssh.repository("s.git"), server)
        answer = f'{{"href":"{server.url}/ssh","header":{{"Authorization":"RemoteAuth lent"}},"expires_in":600}}'
        shell_script(tmp_path / "bin" / "git-lfs-authenticate", f"test \"$2\" = download && echo '{answer}'")

        async def use(source: GitSource) -> None:
            tree = await tree_of(source)
            assert await read_range(source, tree["d/small.bin"], 0, len(SMALL)) == SMALL
            assert server.seen[0] == ("/ssh/objects/batch", "RemoteAuth lent")

        serving(server, build(f"{ssh.url}s.git", {"ssh-privatekey": (tmp_path / "key").read_text().strip()}), use)


def test_who_is_to_log_in_is_not_shown(tmp_path: Path) -> None:
    """Of a password that somebody has put into .lfsconfig nothing reaches an error."""
    (port,) = free_ports(1)
    config = f"[lfs]\n\turl = http://someone:fake-password@{HOST}:{port}/lfs\n".encode()
    repository = Repository(tmp_path / "shown.git", filters=False)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9\n" % (b"1" * 64)
    repository.commit({".lfsconfig": config, ".gitattributes": b"*.bin filter=lfs\n", "x.bin": pointer})

    async def use(source: GitSource) -> None:
        found = await source.stat("x.bin")
        assert found is not None
        with pytest.raises(SourceError) as caught:
            await read_range(source, found, 0, 9)
        assert "fake-password" not in str(caught.value)
        assert f"{HOST}:{port}/lfs" in str(caught.value)

    using(build(f"git+file://{repository.path}"), use)
