"""A repository of Hugging Face's hub, against a server that speaks its API and has a content host of its own."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

import pytest
import structlog

from dsfs.errors import (
    RetryLater,
    SourceChanged,
    SourceError,
    SourceMissing,
    SourceRefused,
    SourceTimeout,
    SourceUnavailable,
)
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind
from dsfs.ranges import MiB
from dsfs.sources.hub import Filters, Token
from dsfs.sources.hub_address import HubAddress
from dsfs.sources.hub_read import VERIFIED_MAX_BYTES
from dsfs.sources.huggingface import HuggingFaceSource, huggingface_source
from dsfs.sources.timeouts import Timeouts
from tests.servers import hub_server as h
from tests.servers.process import HOST
from tests.sources import test_conformance as conformance
from tests.sources.conftest import Place
from tests.sources.sinks import names_in, read_range, tree_of

T = TypeVar("T")

BIG: Final = random.Random(5).randbytes(VERIFIED_MAX_BYTES + MiB)
FILES: Final = {"README.md": b"words", "data/big.bin": BIG, "data/a/x.json": b"{}", "data/b/y.txt": b"why"}
TOKEN: Final = "hf_secretSecretSecret"
REPO: Final = ("datasets", "Org/Name")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[h.Hub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent/token")
    with h.hub() as hub:
        hub.tokens.add(TOKEN)
        hub.commit(*REPO, FILES)
        yield hub


def make(server: h.Hub, uri: str = "hf://datasets/Org/Name", token: str = "", **options: str) -> HuggingFaceSource:
    given = {"endpoint": server.url, **options}
    spec = SourceSpec(type=SourceType.HUGGING_FACE, uri=uri, options={k: v for k, v in given.items() if v})
    return huggingface_source(spec, {"token": token} if token else {})


def using(source: HuggingFaceSource, use: Callable[[HuggingFaceSource], Awaitable[T]]) -> T:
    async def run() -> T:
        try:
            return await use(source)
        finally:
            await source.close()

    return asyncio.run(run())


async def whole(source: HuggingFaceSource, path: str) -> bytes:
    obj = await source.stat(path)
    assert obj is not None
    assert obj.size is not None
    return await read_range(source, obj, 0, obj.size)


# -- the suite of all sources -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        conformance.test_the_whole_tree_and_its_bytes,
        conformance.test_one_directory_at_a_time,
        conformance.test_a_root_that_is_not_there_is_missing,
        conformance.test_ranges,
        conformance.test_an_empty_file,
        conformance.test_names,
        conformance.test_stat,
        conformance.test_a_dead_server_is_unavailable_soon_and_nothing_disappears,
        conformance.test_a_cancelled_read_leaves_the_source_usable,
        conformance.test_errors_are_one_line,
    ],
)
@pytest.mark.parametrize("readers", [None, {TOKEN}], ids=["public", "gated"])
def test_conformance(server: h.Hub, check: Callable[[Place, str], None], readers: set[str] | None) -> None:
    server.repo(*REPO).readers = readers
    server.page_files, server.page_expanded = 3, 2
    place = Place(
        SourceType.HUGGING_FACE,
        lambda folder: f"hf://datasets/Org/Name/{folder}",
        lambda path, data: _ignore(server.commit(*REPO, {path: data})),
        lambda path: _ignore(server.commit(*REPO, {path: None})),
        server.kill,
        {"endpoint": server.url},
        {"token": TOKEN} if readers else {},
    )
    check(place, "case")


def _ignore(_: object) -> None:
    return None


# -- listing ----------------------------------------------------------------------------------------------------------


def test_sizes_times_and_tags(server: h.Hub) -> None:
    commit = server.commit(*REPO, {"late.txt": b"late"})

    async def use(source: HuggingFaceSource) -> None:
        assert source.revision == ""
        tree = await tree_of(source)
        assert source.revision == commit
        files = server.repo(*REPO).commits[commit]
        for path, file in files.items():
            tag = f"lfs:{file.sha256}" if file.lfs else f"git:{file.oid}"
            assert (tree[path].size, tree[path].version_tag) == (len(file.data), tag)
            assert tree[path].mtime_ns == file.time_s * 10**9
            assert await source.stat(path) == tree[path]
        assert {obj.mtime_ns for obj in tree.values() if obj.kind is Kind.FILE} != {tree["late.txt"].mtime_ns}

    using(make(server), use)


def test_a_large_repository_is_listed_without_a_commit_for_each_file(server: h.Hub) -> None:
    server.commit(*REPO, {f"many/{i:05}": b"" for i in range(1100)})

    async def use(source: HuggingFaceSource) -> None:
        tree = await tree_of(source)
        assert len([obj for obj in tree.values() if obj.kind is Kind.FILE]) == 1100 + len(FILES)
        assert len({obj.mtime_ns for obj in tree.values() if obj.kind is Kind.FILE}) == 1  # the revision's
        assert await source.stat("README.md") == tree["README.md"]
        assert server.count("hub", "/tree/") == 2  # not 23

    using(make(server), use)


def test_pages_of_a_mirror_stay_with_the_mirror(server: h.Hub) -> None:
    """A mirror hands on Link headers that name the original."""
    server.page_expanded, server.link_host = 2, "http://original.invalid"

    async def use(source: HuggingFaceSource) -> None:
        assert {path for path, obj in (await tree_of(source)).items() if obj.kind is Kind.FILE} == set(FILES)

    using(make(server, token=TOKEN), use)


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"include": "*.json"}, {"data/a/x.json"}),
        ({"exclude": "data/*"}, {"README.md"}),
        ({"include": "data/", "exclude": "*.bin"}, {"data/a/x.json", "data/b/y.txt"}),
        ({"include": "*.JSON"}, set()),
    ],
)
def test_include_and_exclude(server: h.Hub, options: dict[str, str], files: set[str]) -> None:
    async def use(source: HuggingFaceSource) -> None:
        tree = await tree_of(source)
        assert {path for path, obj in tree.items() if obj.kind is Kind.FILE} == files
        directories = {path.rpartition("/")[0] for path in files} | (
            {"data"} if any("/" in f for f in files) else set()
        )
        assert {path for path, obj in tree.items() if obj.kind is Kind.DIRECTORY} == directories - {""}
        walked: dict[str, Kind] = {}
        for directory in ("", *sorted(directories - {""})):
            walked |= await names_in(source, directory)
        assert walked == {path: obj.kind for path, obj in tree.items()}
        for path in (*FILES, "data", "data/a", "data/b"):
            assert (await source.stat(path) is not None) == (path in tree), path

    using(make(server, **options), use)


def test_a_directory_of_the_repository(server: h.Hub) -> None:
    async def use(source: HuggingFaceSource) -> None:
        tree = await tree_of(source)
        assert set(tree) == {"big.bin", "a", "a/x.json", "b", "b/y.txt"}
        assert await whole(source, "a/x.json") == b"{}"

    using(make(server, "hf://datasets/Org/Name/data"), use)
    with pytest.raises(SourceMissing, match=r"README\.md"):
        using(make(server, "hf://datasets/Org/Name/README.md"), tree_of)


@pytest.mark.parametrize(
    ("kind", "uri", "options"),
    [
        ("models", "hf://Org/Model", {}),
        ("models", "hf://models/Org/Model", {}),
        ("models", "huggingface://Org/Model", {"repoType": "MODEL"}),
        ("datasets", "huggingface://Org/Model", {"repoType": "dataset"}),
        ("datasets", "huggingface://Org/Model?repoType=DATASET", {}),
        ("spaces", "hf://spaces/Org/Model", {}),
    ],
)
def test_kinds(server: h.Hub, kind: str, uri: str, options: dict[str, str]) -> None:
    server.commit(kind, "Org/Model", {"f.bin": b"of LFS", "g": kind.encode()})

    async def use(source: HuggingFaceSource) -> None:
        assert await whole(source, "f.bin") == b"of LFS"
        assert await whole(source, "g") == kind.encode()

    using(make(server, uri, **options), use)


# -- revisions --------------------------------------------------------------------------------------------------------


def test_branch_tag_ref_and_commit(server: h.Hub) -> None:
    repo = server.repo(*REPO)
    first = repo.refs["main"]
    second = server.commit(*REPO, {"README.md": b"newer"})
    repo.refs |= {"v1.0": first, "refs/pr/7": first, "feature/x": first}

    async def use(source: HuggingFaceSource) -> tuple[bytes, str]:
        return await whole(source, "README.md"), source.revision

    for uri, revision in [("", ""), ("", "main"), ("@main", "")]:
        assert using(make(server, f"hf://datasets/Org/Name{uri}", revision=revision), use) == (b"newer", second)
    for uri in ("@v1.0", f"@{first}", "@refs/pr/7", "@feature%2Fx"):
        assert using(make(server, f"hf://datasets/Org/Name{uri}"), use) == (b"words", first)
    for revision in ("v1.0", first, "refs/pr/7", "feature/x"):
        assert using(make(server, revision=revision), use) == (b"words", first)
    assert using(make(server, "hf://datasets/Org/Name@refs/pr/7/data/b"), lambda s: whole(s, "y.txt")) == b"why"


def test_a_commit_after_the_listing_changes_nothing(server: h.Hub) -> None:
    async def use(source: HuggingFaceSource) -> None:
        tree = await tree_of(source)
        server.commit(*REPO, {"README.md": b"other", "data/big.bin": BIG[::-1], "data/b/y.txt": None})
        assert await read_range(source, tree["README.md"], 0, 5) == b"words"
        assert await read_range(source, tree["data/big.bin"], 7, 4000) == BIG[7:4000]
        assert await source.stat("README.md") == tree["README.md"]
        assert await tree_of(source) == tree

    using(make(server), use)


def test_a_listing_goes_on_with_the_commit_that_it_began_with(server: h.Hub) -> None:
    before = using(make(server), tree_of)
    first = server.repo(*REPO).refs["main"]
    server.commit(*REPO, {"README.md": b"other", "data/b/y.txt": None})
    source = make(server)
    source.go_on_at(first)

    async def use(source: HuggingFaceSource) -> None:
        assert await tree_of(source) == before
        assert source.revision == first
        assert await whole(source, "README.md") == b"words"

    using(source, use)


def test_a_source_of_the_next_commit_reads_the_files_of_the_last(server: h.Hub) -> None:
    """After a resync, and after a restart, an older catalog is read through the source of today."""
    tree = using(make(server), tree_of)
    for number in range(3):
        server.commit(*REPO, {"README.md": b"%d" % number, "data/big.bin": BIG[::-1], "data/b/y.txt": None}, lfs="")

    async def use(source: HuggingFaceSource) -> None:
        for path in ("README.md", "data/big.bin", "data/b/y.txt", "data/a/x.json"):
            assert await read_range(source, tree[path], 0, 2) == FILES[path][:2]
        asked = server.count("hub", "/paths-info/")
        assert await read_range(source, tree["README.md"], 2, 5) == FILES["README.md"][2:]
        assert server.count("hub", "/paths-info/") == asked  # it remembers the commit

    using(make(server), use)


def test_what_no_commit_has_is_changed(server: h.Hub) -> None:
    tree = using(make(server), tree_of)
    repo = server.repo(*REPO)
    repo.commits.clear()
    repo.times_s.clear()
    repo.refs.clear()
    server.commit(*REPO, {"README.md": b"another history"})

    async def use(source: HuggingFaceSource) -> None:
        for path in ("README.md", "data/b/y.txt"):
            with pytest.raises(SourceChanged):
                await read_range(source, tree[path], 0, 2)

    using(make(server), use)


@pytest.mark.parametrize("token", ["", TOKEN])
def test_unknown_repository_and_revision(server: h.Hub, token: str) -> None:
    # Without a token the hub does not tell "private" from "not there", so neither do we.
    with pytest.raises(SourceMissing if token else SourceRefused, match="Org/None"):
        using(make(server, "hf://Org/None", token), tree_of)
    with pytest.raises(SourceMissing, match="no revision 'v9'"):
        using(make(server, token=token, revision="v9"), tree_of)


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [True, False])
def test_a_repository_that_needs_a_token(server: h.Hub, gated: bool) -> None:
    repo = server.repo(*REPO)
    repo.readers, repo.gated = {TOKEN}, gated
    for token in ("", "hf_wrongWrongWrong"):
        with pytest.raises(SourceRefused, match="Secret or HF_TOKEN") as caught:
            using(make(server, token=token), tree_of)
        assert "hf_wrong" not in str(caught.value)
    server.tokens.add("hf_strangerStranger")
    with pytest.raises(SourceRefused if gated else SourceMissing):
        using(make(server, token="hf_strangerStranger"), tree_of)
    assert using(make(server, token=TOKEN), lambda source: whole(source, "README.md")) == b"words"


@pytest.mark.parametrize("callable_", [True, False])
def test_a_token_that_changes_counts_at_the_next_request(server: h.Hub, callable_: bool) -> None:
    server.repo(*REPO).readers = {TOKEN}
    secret = {"token": TOKEN}
    spec = SourceSpec(type=SourceType.HUGGING_FACE, uri="hf://datasets/Org/Name", options={"endpoint": server.url})
    source = huggingface_source(spec, (lambda: secret) if callable_ else secret)

    async def use(source: HuggingFaceSource) -> None:
        tree = await tree_of(source)
        server.tokens.clear()
        server.tokens.add("hf_rotated")
        server.repo(*REPO).readers = {"hf_rotated"}
        with pytest.raises(SourceRefused):
            await read_range(source, tree["README.md"], 0, 5)
        secret["token"] = "hf_rotated"
        assert await read_range(source, tree["README.md"], 0, 5) == b"words"
        secret["token"] = "hf_with\nbreak"
        with pytest.raises(SourceRefused, match="stray"):
            await read_range(source, tree["README.md"], 0, 5)

    using(source, use)


def test_the_token_of_the_environment(
    server: h.Hub, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server.repo(*REPO).readers = {TOKEN}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    file = tmp_path_factory.mktemp("home") / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(file))

    def read(**options: str) -> bytes:
        return using(make(server, **{"endpoint": "", **options}), lambda source: whole(source, "README.md"))

    assert read() == b"words"
    file.unlink()
    with pytest.raises(SourceRefused):
        read()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read() == b"words"
    # A manifest may name any endpoint: it does not get the node's token.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceRefused):
        read(endpoint=server.url)


def test_the_token_goes_nowhere_else(server: h.Hub) -> None:
    server.repo(*REPO).readers = {TOKEN}

    async def use(source: HuggingFaceSource) -> None:
        tree = await tree_of(source)
        await read_range(source, tree["data/big.bin"], 0, 10)
        await read_range(source, tree["README.md"], 0, 5)
        failures = [h.status(500), h.status(403), h.status(429), h.with_header("X-Repo-Commit", "0" * 40)]
        for failure in failures:
            server.on_hub.append(failure)
            with pytest.raises(SourceError) as caught:
                await read_range(source, tree["README.md"], 0, 5)
            error: BaseException | None = caught.value
            while error is not None:
                assert TOKEN not in str(error)
                assert "Signature" not in str(error)
                error = error.__cause__ or error.__context__

    with structlog.testing.capture_logs() as logs:
        using(make(server, token=TOKEN), use)
    assert TOKEN not in str(logs)
    assert server.count("cdn")
    for asked in server.asked:
        assert TOKEN not in asked.target
        assert ("Authorization" in asked.headers) == (asked.host == "hub")


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_signed_url_is_used_until_it_expires(server: h.Hub) -> None:
    async def use(source: HuggingFaceSource) -> None:
        obj = await source.stat("data/big.bin")
        assert obj is not None
        for start in range(0, 5000, 1000):
            assert await read_range(source, obj, start, start + 1000) == BIG[start : start + 1000]
        assert (server.count("hub", "/resolve/"), server.count("cdn")) == (1, 5)
        server.revoke_links()  # refused before it says that it expires: asked for anew, once
        assert await read_range(source, obj, 5, 10) == BIG[5:10]
        assert (server.count("hub", "/resolve/"), server.count("cdn")) == (2, 7)
        server.on_cdn.append(h.status(401))
        assert await read_range(source, obj, 5, 10) == BIG[5:10]
        server.on_cdn.extend([h.status(403), h.status(403)])
        with pytest.raises(SourceUnavailable, match="content host refuses") as caught:
            await read_range(source, obj, 5, 10)
        assert "Signature" not in str(caught.value)
        server.link_life_s = 10  # less than the margin: not kept
        asked = server.count("hub", "/resolve/")
        for _ in range(3):
            assert await read_range(source, obj, 5, 10) == BIG[5:10]
        assert server.count("hub", "/resolve/") == asked + 3

    using(make(server), use)


@pytest.mark.parametrize(
    ("path", "host", "behaviour", "error"),
    [
        ("README.md", "hub", h.status(429, Retry_After="7"), RetryLater),
        ("README.md", "hub", h.status(429, RateLimit='"api";r=0;t=7'), RetryLater),
        ("data/big.bin", "cdn", h.status(503, Retry_After="7"), RetryLater),
        ("README.md", "hub", h.status(500), SourceUnavailable),
        ("data/big.bin", "cdn", h.status(502), SourceUnavailable),
        ("README.md", "hub", h.with_header("X-Repo-Commit", "0" * 40), SourceChanged),
        ("data/big.bin", "hub", h.with_header("X-Repo-Commit", "0" * 40), SourceChanged),
        ("data/big.bin", "hub", h.with_header("X-Repo-Commit", None), SourceUnavailable),
        ("data/big.bin", "hub", h.with_header("X-Linked-Etag", '"00"'), SourceChanged),
        ("data/big.bin", "hub", h.with_header("X-Linked-Etag", None), SourceUnavailable),
        ("README.md", "hub", h.status(302, Location="/Org/login/resolve/main/x"), SourceMissing),
        ("README.md", "hub", h.status(302, Location="ftp://127.0.0.1/x"), SourceError),
        ("README.md", "hub", h.status(302, Location="http://[/"), SourceError),
        ("data/big.bin", "cdn", h.shorter, SourceUnavailable),
        ("data/big.bin", "cdn", h.with_header("Content-Range", None), SourceUnavailable),
        ("data/big.bin", "cdn", h.with_header("Content-Range", "bytes 0-9/10"), SourceChanged),
        ("data/big.bin", "cdn", h.with_header("Content-Encoding", "gzip"), SourceUnavailable),
        ("data/big.bin", "cdn", h.status(416, Content_Range="bytes */5"), SourceChanged),
    ],
)
def test_the_right_error_and_no_bytes(
    server: h.Hub, path: str, host: str, behaviour: h.Answer, error: type[SourceError]
) -> None:
    async def use(source: HuggingFaceSource) -> None:
        obj = await source.stat(path)
        assert obj is not None
        (server.on_hub if host == "hub" else server.on_cdn).append(behaviour)
        with pytest.raises(error) as caught:
            await read_range(source, obj, 1, 4)
        if isinstance(caught.value, RetryLater):
            assert caught.value.retry_after_s == 7
        assert await read_range(source, obj, 1, 4) == FILES[path][1:4]  # and it heals

    if behaviour is not None and path == "README.md" and host == "hub":
        server.repo(*REPO).readers = {TOKEN}  # then the hub gives the bytes itself
    using(make(server, token=TOKEN), use)


def test_a_small_file_that_came_spoilt_is_noticed(server: h.Hub) -> None:
    server.commit(*REPO, {"small.bin": b"small and large"})

    async def use(source: HuggingFaceSource) -> None:
        obj = await source.stat("small.bin")
        assert obj is not None
        server.on_cdn.append(h.spoilt)
        with pytest.raises(SourceUnavailable, match="hash"):
            await read_range(source, obj, 0, 15)
        assert await read_range(source, obj, 0, 15) == b"small and large"

    using(make(server), use)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (h.status(429, Retry_After="7"), RetryLater),
        (h.status(500), SourceUnavailable),
        (h.status(200), SourceUnavailable),  # no document
        (h.in_part, SourceUnavailable),
        (h.status(307, Location="/api/datasets/Org/Name/revision/main"), None),
        (h.status(307, Location="http://127.0.0.1:9/"), SourceUnavailable),
    ],
)
def test_failures_of_the_api(server: h.Hub, behaviour: h.Answer, error: type[SourceError] | None) -> None:
    server.on_api.append(behaviour)

    async def use(source: HuggingFaceSource) -> None:
        if error is not None:
            with pytest.raises(error) as caught:
                await tree_of(source)
            assert "\n" not in str(caught.value)
        assert {p for p, o in (await tree_of(source)).items() if o.kind is Kind.FILE} == set(FILES)

    using(make(server), use)


def test_a_circle_ends(server: h.Hub) -> None:
    server.on_api.extend([h.status(307, Location="/api/datasets/Org/Name/revision/main")] * 20)
    with pytest.raises(SourceUnavailable, match="circle"):
        using(make(server), tree_of)


def test_a_circle_of_a_read_ends(server: h.Hub) -> None:
    async def use(source: HuggingFaceSource) -> None:
        obj = await source.stat("README.md")
        assert obj is not None
        server.on_hub.extend([h.status(302, Location=f"/datasets/Org/Name/resolve/{source.revision}/README.md")] * 11)
        with pytest.raises(SourceUnavailable, match="circle"):
            await read_range(source, obj, 0, 5)
        assert await read_range(source, obj, 0, 5) == b"words"

    using(make(server), use)


def test_a_hub_that_says_nothing_is_not_waited_for() -> None:
    with socket.create_server((HOST, 0)) as listening:
        endpoint = f"http://{HOST}:{listening.getsockname()[1]}"
        address = HubAddress("models", "Org/Name", "", "", endpoint, Filters())
        source = HuggingFaceSource(address, endpoint, Token({}, lambda: None, "HF"), Timeouts(connect_s=1, idle_s=0.3))
        started = time.monotonic()
        with pytest.raises(SourceTimeout):
            using(source, tree_of)
        assert time.monotonic() - started < 15


def test_a_server_that_is_killed_is_unavailable_soon(server: h.Hub) -> None:
    async def use(source: HuggingFaceSource) -> None:
        tree = await tree_of(source)
        await read_range(source, tree["data/big.bin"], 0, 5)
        await asyncio.to_thread(server.kill)
        started = time.monotonic()
        for path in ("README.md", "data/big.bin"):
            with pytest.raises(SourceUnavailable):
                await read_range(source, tree[path], 0, 5)
        assert time.monotonic() - started < 15

    using(make(server), use)
