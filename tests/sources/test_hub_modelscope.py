"""A model and a dataset of ModelScope, against a server that speaks its API and has a content host of its own."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final, TypeVar

import pytest
import structlog

from dsfs.errors import RetryLater, SourceChanged, SourceError, SourceMissing, SourceRefused, SourceUnavailable
from dsfs.manifest.schema import SourceSpec, SourceType
from dsfs.model import Kind
from dsfs.ranges import MiB
from dsfs.sources import modelscope
from dsfs.sources.hub_read import VERIFIED_MAX_BYTES
from dsfs.sources.modelscope import ModelScopeSource, modelscope_source
from tests.servers import hub_server as h
from tests.sources import test_conformance as conformance
from tests.sources.conftest import Place
from tests.sources.sinks import names_in, read_range, tree_of

T = TypeVar("T")

BIG: Final = random.Random(6).randbytes(VERIFIED_MAX_BYTES + MiB)
FILES: Final = {"README.md": b"words", "data/big.bin": BIG, "data/a/x.json": b"{}", "data/b/y.txt": b"why"}
TOKEN: Final = "ms-secretSecretSecret"
KINDS: Final = ("models", "datasets")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[h.Hub]:
    for name in ("MODELSCOPE_API_TOKEN", "MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(modelscope, "PAGE_FILES", 3)
    with h.hub() as hub:
        for kind in KINDS:
            put(hub, kind, FILES)
        yield hub


def put(server: h.Hub, kind: str, changes: Mapping[str, bytes | None]) -> str:
    return server.commit(kind, "Ns/Name", changes, branch="master")


def make(server: h.Hub, kind: str = "models", token: str = "", path: str = "", **options: str) -> ModelScopeSource:
    given = {"endpoint": server.url, "repoType": kind.removesuffix("s"), **options}
    uri = f"modelscope://Ns/Name{path}"
    spec = SourceSpec(type=SourceType.MODEL_SCOPE, uri=uri, options={k: v for k, v in given.items() if v})
    return modelscope_source(spec, {"token": token} if token else {})


def using(source: ModelScopeSource, use: Callable[[ModelScopeSource], Awaitable[T]]) -> T:
    async def run() -> T:
        try:
            return await use(source)
        finally:
            await source.close()

    return asyncio.run(run())


async def whole(source: ModelScopeSource, path: str) -> bytes:
    obj = await source.stat(path)
    assert obj is not None
    assert obj.size is not None
    return await read_range(source, obj, 0, obj.size)


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
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tells_commit", [True, False])
def test_conformance(server: h.Hub, check: Callable[[Place, str], None], kind: str, tells_commit: bool) -> None:
    server.tells_commit = tells_commit
    place = Place(
        SourceType.MODEL_SCOPE,
        lambda folder: f"modelscope://Ns/Name/{folder}",
        lambda path, data: _ignore(put(server, kind, {path: data})),
        lambda path: _ignore(put(server, kind, {path: None})),
        server.kill,
        {"endpoint": server.url, "repoType": kind.removesuffix("s")},
    )
    check(place, "case")


def _ignore(_: object) -> None:
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_times_and_tags(server: h.Hub, kind: str) -> None:
    commit = put(server, kind, {"data/b/late.txt": b"late"})

    async def use(source: ModelScopeSource) -> None:
        tree = await tree_of(source)
        assert source.revision == commit
        for path, file in server.repo(kind, "Ns/Name").commits[commit].items():
            assert tree[path].version_tag == f"sha256:{file.sha256}@{file.commit}"
            assert (tree[path].size, tree[path].mtime_ns) == (len(file.data), file.time_s * 10**9)
            assert await source.stat(path) == tree[path]

    using(make(server, kind), use)


@pytest.mark.parametrize("kind", KINDS)
def test_branch_tag_and_commit(server: h.Hub, kind: str) -> None:
    repo = server.repo(kind, "Ns/Name")
    first = repo.refs["master"]
    second = put(server, kind, {"README.md": b"newer"})
    repo.refs["v1.0"] = first

    async def use(source: ModelScopeSource) -> tuple[bytes, str]:
        return await whole(source, "README.md"), source.revision

    assert using(make(server, kind), use) == (b"newer", second)
    for revision in ("v1.0", first):
        assert using(make(server, kind, revision=revision), use) == (b"words", first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_after_the_listing_changes_nothing(server: h.Hub, kind: str) -> None:
    tree = using(make(server, kind), tree_of)
    source = make(server, kind)

    async def use(source: ModelScopeSource) -> None:
        assert await tree_of(source) == tree
        put(server, kind, {"README.md": b"other", "data/big.bin": BIG[::-1], "data/b/y.txt": None})
        for old in (source, make(server, kind)):  # and a source that comes to know the repository only now
            for path, data in FILES.items():
                assert await read_range(old, tree[path], 0, 2) == data[:2]
            await old.close() if old is not source else None
        assert await tree_of(source) == tree

    using(source, use)


@pytest.mark.parametrize("kind", KINDS)
def test_a_listing_goes_on_with_the_commit_that_it_began_with(server: h.Hub, kind: str) -> None:
    before = using(make(server, kind), tree_of)
    first = server.repo(kind, "Ns/Name").refs["master"]
    put(server, kind, {"README.md": b"other", "data/b/y.txt": None})
    source = make(server, kind)
    source.go_on_at(first)

    async def use(source: ModelScopeSource) -> None:
        assert await tree_of(source) == before
        assert source.revision == first
        assert await whole(source, "README.md") == b"words"

    using(source, use)


@pytest.mark.parametrize(("tells", "reads"), [(False, True), (True, False)])
def test_a_hub_without_commits(server: h.Hub, tells: bool, reads: bool) -> None:
    """Then the listing is asked again behind the bytes: what did not change is read, and what changed is an error."""
    server.tells_commit, server.reads_commits = tells, reads

    async def use(source: ModelScopeSource) -> None:
        tree = await tree_of(source)
        assert tree["README.md"].version_tag.startswith("sha256:")
        assert bool(source.revision) == tells
        put(server, "models", {"data/b/y.txt": b"new", "data/a/x.json": None})
        assert await read_range(source, tree["README.md"], 0, 5) == b"words"
        assert await read_range(source, tree["data/big.bin"], 5, 4000) == BIG[5:4000]
        for path in ("data/b/y.txt", "data/a/x.json"):
            with pytest.raises(SourceChanged):
                await read_range(source, tree[path], 0, 2)

    using(make(server), use)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_repository_revision_and_empty_repository(server: h.Hub, kind: str) -> None:
    with pytest.raises(SourceMissing, match=r"no revision 'v9' \(it has master\)"):
        using(make(server, kind, revision="v9"), tree_of)
    with pytest.raises(SourceMissing, match="no revision"):
        using(make(server, kind, revision="0" * 40), tree_of)
    spec = SourceSpec(type=SourceType.MODEL_SCOPE, uri="modelscope://Ns/None", options={"endpoint": server.url})
    with pytest.raises(SourceMissing, match="check name and repoType"):
        using(modelscope_source(spec, {}), tree_of)
    put(server, kind, dict.fromkeys(FILES))
    assert using(make(server, kind), tree_of) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_include_and_exclude(server: h.Hub, kind: str) -> None:
    async def use(source: ModelScopeSource) -> None:
        assert set(await tree_of(source)) == {"data", "data/a", "data/a/x.json"}
        assert await names_in(source, "data") == {"data/a": Kind.DIRECTORY}
        assert await source.stat("data/b") is None
        assert await source.stat("data/b/y.txt") is None
        assert await source.stat("data/a") is not None

    using(make(server, kind, include="data/*", exclude="*.[tb]*"), use)


def test_a_directory_of_the_repository(server: h.Hub) -> None:
    async def use(source: ModelScopeSource) -> None:
        assert set(await tree_of(source)) == {"big.bin", "a", "a/x.json", "b", "b/y.txt"}
        assert await whole(source, "a/x.json") == b"{}"

    using(make(server, path="/data"), use)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens(server: h.Hub, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repo(kind, "Ns/Name").readers = {TOKEN}
    for token in ("", "ms-wrong"):
        with pytest.raises(SourceRefused, match="MODELSCOPE_API_TOKEN") as caught:
            using(make(server, kind, token), tree_of)
        assert "ms-wrong" not in str(caught.value)
    spec = SourceSpec(type=SourceType.MODEL_SCOPE, uri=f"modelscope://{kind}/Ns/Name", options={"endpoint": server.url})
    secret = {"token": TOKEN}

    async def use(source: ModelScopeSource) -> None:
        tree = await tree_of(source)
        assert await read_range(source, tree["data/big.bin"], 0, 9) == BIG[:9]
        server.repo(kind, "Ns/Name").readers = {"ms-rotated"}
        with pytest.raises(SourceRefused):
            await read_range(source, tree["README.md"], 0, 5)
        secret["token"] = "ms-rotated"
        assert await read_range(source, tree["README.md"], 0, 5) == b"words"

    with structlog.testing.capture_logs() as logs:
        using(modelscope_source(spec, secret), use)
    assert not logs
    assert server.count("cdn")
    for asked in server.asked:
        assert TOKEN not in asked.target
        assert asked.host == "hub" or not {"Authorization", "Cookie"} & asked.headers.keys()
    # The environment's token is for the environment's endpoint.
    server.repo(kind, "Ns/Name").readers = {TOKEN}
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    with pytest.raises(SourceRefused):
        using(make(server, kind), tree_of)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", server.url)
    assert using(make(server, kind, endpoint=""), lambda source: whole(source, "README.md")) == b"words"


def test_a_signed_url_is_used_until_it_expires(server: h.Hub) -> None:
    async def use(source: ModelScopeSource) -> None:
        obj = await source.stat("data/big.bin")
        assert obj is not None
        for start in range(0, 5000, 1000):
            assert await read_range(source, obj, start, start + 1000) == BIG[start : start + 1000]
        assert (server.count("hub", "/repo?"), server.count("cdn")) == (1, 5)
        server.revoke_links()
        assert await read_range(source, obj, 5, 10) == BIG[5:10]
        assert (server.count("hub", "/repo?"), server.count("cdn")) == (2, 7)
        server.on_cdn.extend([h.status(403), h.status(403)])
        with pytest.raises(SourceUnavailable, match="content host refuses") as caught:
            await read_range(source, obj, 5, 10)
        assert "auth_key" not in str(caught.value)

    using(make(server), use)


@pytest.mark.parametrize(
    ("path", "host", "behaviour", "error"),
    [
        ("README.md", "hub", h.status(429, Retry_After="7"), RetryLater),
        ("README.md", "hub", h.status(500), SourceUnavailable),
        ("README.md", "hub", h.shorter, SourceUnavailable),
        ("README.md", "hub", h.with_header("Content-Range", "bytes 0-1/5"), SourceUnavailable),
        ("data/big.bin", "cdn", h.shorter, SourceUnavailable),
        ("data/big.bin", "cdn", h.status(502), SourceUnavailable),
        ("data/big.bin", "hub", h.status(302, Location="ftp://127.0.0.1/x"), SourceError),
    ],
)
def test_the_right_error_and_no_bytes(
    server: h.Hub, path: str, host: str, behaviour: h.Answer, error: type[SourceError]
) -> None:
    async def use(source: ModelScopeSource) -> None:
        obj = await source.stat(path)
        assert obj is not None
        (server.on_hub if host == "hub" else server.on_cdn).append(behaviour)
        with pytest.raises(error):
            await read_range(source, obj, 1, 4)
        assert await read_range(source, obj, 1, 4) == FILES[path][1:4]
        if path == "README.md":
            server.on_hub.append(h.spoilt)
            with pytest.raises(SourceUnavailable, match="hash"):
                await read_range(source, obj, 0, 5)

    using(make(server), use)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (h.status(429, Retry_After="7"), RetryLater),
        (h.status(503), RetryLater),
        (h.status(500), SourceUnavailable),
        (h.status(200), SourceUnavailable),
        (h.status(403), SourceRefused),
    ],
)
def test_failures_of_the_api(server: h.Hub, behaviour: h.Answer, error: type[SourceError]) -> None:
    server.on_api.append(behaviour)

    async def use(source: ModelScopeSource) -> None:
        with pytest.raises(error) as caught:
            await tree_of(source)
        assert "\n" not in str(caught.value)
        assert {p for p, o in (await tree_of(source)).items() if o.kind is Kind.FILE} == set(FILES)

    using(make(server), use)


def test_a_server_that_is_killed_is_unavailable_soon(server: h.Hub) -> None:
    async def use(source: ModelScopeSource) -> None:
        tree = await tree_of(source)
        await read_range(source, tree["data/big.bin"], 0, 5)
        await asyncio.to_thread(server.kill)
        started = time.monotonic()
        for path in ("README.md", "data/big.bin"):
            with pytest.raises(SourceUnavailable):
                await read_range(source, tree[path], 0, 5)
        assert time.monotonic() - started < 15

    using(make(server), use)
