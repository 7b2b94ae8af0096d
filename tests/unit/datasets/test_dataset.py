"""A listing that has begun is of one revision, whoever goes on with it."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio

from dsfs import metrics
from dsfs.bridge import Bridge, network_side
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.store import DatasetStore
from dsfs.errors import ConfigError, SourceMissing, SourceRefused, SourceUnavailable
from dsfs.fetch.origin import Origin
from dsfs.manifest.schema import Manifest, SourceSpec
from dsfs.model import Kind, ListingPage, Phase, SourceObject
from dsfs.sources.base import Source
from dsfs.sources.prefixed import PrefixedSource
from dsfs.sources.reference import ReferenceSource
from dsfs.sources.s3_client import CredentialsExpired
from dsfs.sources.unusable import UnusableSource


class Branch:
    """Lists ``head``, whatever that is when it is first asked, and breaks off in the middle ``failures`` times."""

    identity = uri = "test://branch"
    head = "a"
    failures = 0
    gone: frozenset[str] = frozenset()
    read_at_revisions: list[str] = []  # noqa: RUF012  # each test that looks at it has its own

    def __init__(self) -> None:
        self.revision = ""
        self._wanted = ""

    def go_on_at(self, revision: str) -> None:
        self._wanted = revision

    def read_at(self, revision: str) -> None:
        Branch.read_at_revisions.append(revision)

    async def list_tree(self) -> AsyncIterator[ListingPage]:
        if self._wanted in Branch.gone:
            raise SourceMissing(f"{self._wanted} is gone")
        self.revision = self.revision or self._wanted or Branch.head
        yield ListingPage(
            (SourceObject("d", Kind.DIRECTORY), SourceObject("d/one", size=1, version_tag=self.revision)), ("d",)
        )
        if Branch.failures:
            Branch.failures -= 1
            raise SourceUnavailable("broke off")
        yield ListingPage((SourceObject("two", size=1, version_tag=self.revision),), ("",))

    async def close(self) -> None:
        return


@pytest.fixture(params=["itself", "below", "referred to"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Branch]:
    monkeypatch.setattr(Branch, "head", "a")
    monkeypatch.setattr(Branch, "failures", 0)
    monkeypatch.setattr(Branch, "gone", frozenset())
    ways = {
        "itself": lambda source: source,
        "below": lambda source: PrefixedSource(source, "p"),
        "referred to": lambda source: ReferenceSource(source, "dataset://a/b", ""),
    }
    return lambda: ways[request.param](Branch())  # type: ignore[return-value]


def tags(dataset: Dataset) -> set[str]:
    return {row.tag for _path, row in dataset.catalog.files()}


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("by", ["another server", "another source"])
def test_a_branch_that_moves_while_it_is_listed(tmp_path: Path, make: type[Branch], by: str, forced: bool) -> None:
    """``forced``: and the commit is gone."""

    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            begin = partial(begun, bridge, tmp_path, make)
            Branch.failures = 1
            dataset = begin()
            first = trio.CancelScope()
            nursery.start_soon(run_until, dataset, first)
            await dataset.settled.wait()
            assert dataset.message == "broke off"
            Branch.head = "b"
            if forced:
                Branch.gone = frozenset("a")
            if by == "another server":
                first.cancel()
                dataset = begin(*dataset.shown())
                nursery.start_soon(dataset.run)
            else:
                await dataset.renew()
                dataset.ask_for_resync()
            with trio.fail_after(10):
                while not dataset.catalog.sealed:  # noqa: ASYNC110  # nothing tells of it but this
                    await trio.sleep(0.01)
            shown = "b" if forced else "a"
            assert (dataset.catalog.revision, tags(dataset)) == (shown, {shown})
            with trio.fail_after(10):
                assert await dataset.resync() == "b"
            assert tags(dataset) == {"b"}
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        trio.run(main)


def test_what_was_listed_is_told_to_a_source_that_is_only_read(
    tmp_path: Path, make: type[Branch], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Branch, "read_at_revisions", told)

    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            dataset = begun(bridge, tmp_path, make)
            first = trio.CancelScope()
            nursery.start_soon(run_until, dataset, first)
            await dataset.settled.wait()
            first.cancel()
            assert told == []
            Branch.head = "b"
            dataset = begun(bridge, tmp_path, make, *dataset.shown())
            assert told == ["a"]
            nursery.start_soon(dataset.run)
            await dataset.renew()
            assert told == ["a", "a"]
            assert await dataset.resync() == "b", "what is listed next is what the name means by then"
            assert told == ["a", "a"]
            with monkeypatch.context() as silent:
                silent.setattr(Branch, "list_tree", unreachable)
                dataset = begun(bridge, tmp_path, make)
                nursery.start_soon(dataset.run)
                await dataset.settled.wait()
            assert told == ["a", "a", "b"]
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        trio.run(main)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What ``Vault`` is built with; nothing can be once it is empty."""
    monkeypatch.setattr(Branch, "head", "a")
    monkeypatch.setattr(Branch, "failures", 0)
    monkeypatch.setattr(Branch, "gone", frozenset())
    monkeypatch.setattr(Vault, "secret", {"token": "made-up"})
    return Vault.secret


class Vault(Branch):
    """Cannot be built without its Secret."""

    secret: dict[str, str] = {}  # noqa: RUF012  # each test has its own

    def __init__(self) -> None:
        if not Vault.secret:
            raise ConfigError("secretRef 'vault' is not there")
        super().__init__()


def test_a_secret_that_goes_takes_the_source_with_it_and_not_the_names(tmp_path: Path, secret: dict[str, str]) -> None:
    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            dataset = begun(bridge, tmp_path, Vault)
            nursery.start_soon(dataset.run)
            await dataset.resync()
            kept = dict(secret)
            secret.clear()
            await dataset.renew()
            await dataset.renew()
            status = await dataset.status()
            assert (dataset.phase, status.phase, status.message) == (Phase.FAILED, Phase.FAILED, dataset.message)
            assert dataset.message == "secretRef 'vault' is not there"
            assert isinstance(dataset.origin.source, UnusableSource)
            assert tags(dataset) == {"a"}
            with pytest.raises(ConfigError):
                await dataset.resync()
            assert dataset.message == "secretRef 'vault' is not there"
            Branch.head = "b"
            secret.update(kept)
            await dataset.renew()
            assert dataset.phase is Phase.READY
            await dataset.swapped.wait()
            assert tags(dataset) == {"b"}
            await dataset.resync()
            assert (dataset.phase, dataset.message) == (Phase.READY, "")
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs() as logs:
        trio.run(main)
    assert [log["reason"] for log in logs if log["event"] == "dataset cannot be used"] == [
        "secretRef 'vault' is not there"
    ]


def test_a_server_that_begins_without_the_secret_says_so_over_what_was_listed(
    tmp_path: Path, secret: dict[str, str]
) -> None:
    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            dataset = begun(bridge, tmp_path, Vault)
            first = trio.CancelScope()
            nursery.start_soon(run_until, dataset, first)
            await dataset.settled.wait()
            first.cancel()
            without = begun(bridge, tmp_path, lambda: UnusableSource("test://branch", "no Secret"), *dataset.shown())
            assert (without.phase, without.message, tags(without)) == (Phase.FAILED, "no Secret", {"a"})
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        trio.run(main)


def test_a_listing_that_outlives_its_secret_does_not_bring_the_source_back(
    tmp_path: Path, secret: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def open_gate() -> None:
        gate.set()

    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            reached = trio.Event()

            async def held(source: Vault) -> AsyncIterator[ListingPage]:
                bridge.soon(reached.set)
                await gate.wait()
                async for page in Branch.list_tree(source):
                    yield page

            dataset = begun(bridge, tmp_path, Vault)
            nursery.start_soon(dataset.run)
            await dataset.settled.wait()
            Branch.head = "b"
            monkeypatch.setattr(Vault, "list_tree", held)
            dataset.ask_for_resync()
            await reached.wait()
            secret.clear()
            await dataset.renew()
            await bridge.call(open_gate)
            await dataset.swapped.wait()
            assert tags(dataset) == {"b"}
            assert (dataset.phase, dataset.message) == (Phase.FAILED, "secretRef 'vault' is not there")
            assert isinstance(dataset.origin.source, UnusableSource)
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        trio.run(main)


def begun(bridge: Bridge, directory: Path, make: type[Branch], *shown_before: str) -> Dataset:
    """A dataset as a server begins with it; ``shown_before``: what the one before it has shown."""

    async def build() -> Source:
        return make()  # type: ignore[return-value]

    manifest = Manifest(namespace="vision", name="data", source=SourceSpec(type="GIT", uri="https://h/r.git"))
    origin = Origin(make(), "vision", "data")  # type: ignore[arg-type]
    dataset = Dataset(manifest, 2, DatasetStore(str(directory)), bridge, origin, build, 5.0)
    dataset.open_revision(shown_before)
    return dataset


async def run_until(dataset: Dataset, scope: trio.CancelScope) -> None:
    with scope:
        await dataset.run()


def test_how_current_it_is_lives_longer_than_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Branch, "head", "a")

    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            begin = partial(begun, bridge, tmp_path, Branch)
            began_s = time.time() - 1  # the clock of files is not as fine
            dataset = begin()
            assert dataset.rounds.listed_s == 0
            first = trio.CancelScope()
            nursery.start_soon(run_until, dataset, first)
            await dataset.settled.wait()
            assert dataset.rounds.listed_s > began_s
            monkeypatch.setattr(Branch, "failures", 1)
            with pytest.raises(SourceUnavailable):
                await dataset.resync()
            assert dataset.rounds.failures == 1
            first.cancel()
            os.utime(dataset.catalog.file, (1000, 1000))
            dataset = begin(*dataset.shown())
            assert (dataset.rounds.listed_s, dataset.rounds.failures) == (1000, 0)
            nursery.start_soon(dataset.run)
            file = dataset.catalog.file
            await dataset.resync()
            assert dataset.catalog.file == file, "nothing has changed"
            assert dataset.rounds.listed_s > began_s
            assert begin(*dataset.shown()).rounds.listed_s > began_s
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        trio.run(main)


def test_a_listing_is_one_request_whatever_it_takes_and_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Branch, "head", "a")
    monkeypatch.setattr(Branch, "gone", frozenset())
    manifest = Manifest(namespace="vision", name="counted", source=SourceSpec(type="GIT", uri="https://h/r.git"))

    async def build() -> Source:
        return Branch()  # type: ignore[return-value]

    def counted(outcome: str) -> float:
        return metrics.ORIGIN_REQUESTS.labels("vision", "counted", outcome)._value.get()

    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            origin = Origin(Branch(), "vision", "counted")  # type: ignore[arg-type]
            dataset = Dataset(manifest, 2, DatasetStore(str(tmp_path)), bridge, origin, build, 5.0)
            dataset.open_revision()
            monkeypatch.setattr(Branch, "failures", 1)
            nursery.start_soon(dataset.run)
            await dataset.resync()
            assert (counted("ok"), counted("failed")) == (1, 1)
            await dataset.resync()
            monkeypatch.setattr(Branch, "list_tree", refuse)
            with pytest.raises(SourceRefused):
                await dataset.resync()
            assert (counted("ok"), counted("failed"), counted("refused")) == (2, 1, 1)
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        trio.run(main)
    assert metrics.ORIGIN_REQUEST_SECONDS.labels("vision", "counted")._sum.get() == 0


def test_a_resync_that_was_refused_is_tried_again_with_the_next_credentials(
    tmp_path: Path, secret: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            dataset = begun(bridge, tmp_path, Vault)
            nursery.start_soon(dataset.run)
            await dataset.settled.wait()
            Branch.head = "b"
            with monkeypatch.context() as old:
                old.setattr(Vault, "list_tree", refuse)
                with pytest.raises(SourceRefused):
                    await dataset.resync()
            assert (dataset.rounds.failures, dataset.rounds.heals_within_s) == (1, math.inf)
            await dataset.renew()
            with trio.fail_after(10):
                await dataset.swapped.wait()
            assert tags(dataset) == {"b"}
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        trio.run(main)


@pytest.mark.parametrize("kind", [SourceRefused, CredentialsExpired, None])
def test_a_first_listing_that_is_refused_has_its_source_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[SourceRefused] | None
) -> None:
    """Its credentials may be others by now. ``None``: of one key that is refused nobody can say that it is there."""
    monkeypatch.setattr(Branch, "head", "a")
    built: list[Branch] = []

    class Refusing(Branch):
        def __init__(self) -> None:
            super().__init__()
            built.append(self)

        async def list_tree(self) -> AsyncIterator[ListingPage]:
            if built[0] is self:
                error = (kind or SourceRefused)("refused")
                raise error if kind else SourceMissing("there is nothing") from error
            async for page in super().list_tree():
                yield page

    async def main() -> None:
        async with network_side() as bridge, trio.open_nursery() as nursery:
            dataset = begun(bridge, tmp_path, Refusing)
            nursery.start_soon(dataset.run)
            await dataset.settled.wait()
            with trio.fail_after(10):
                while not dataset.catalog.sealed:
                    dataset.ask_for_resync()  # in place of waiting for the next try
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    with structlog.testing.capture_logs():
        trio.run(main)
    assert len(built) > 1


async def unreachable(_source: Branch) -> AsyncIterator[ListingPage]:
    raise SourceUnavailable("nothing answers")
    yield ListingPage(())  # makes this an asynchronous generator


async def refuse(_source: Branch) -> AsyncIterator[ListingPage]:
    raise SourceRefused("its token has ended")
    yield ListingPage(())  # makes this an asynchronous generator
