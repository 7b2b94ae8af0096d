"""A flat listing of GCS and Azure: what a name without content is, and what it costs to know that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError, InvalidPathError

from dsfs.model import Kind
from dsfs.sources import object_stores, retry
from dsfs.sources.object_stores import ObjectStoreSource

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Bucket:
    """Keys and their sizes, listed as obstore does: without the "/" at the end of a key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
        self.sizes = sizes
        self.meanwhile: Callable[[], object] = lambda: None
        """Called when a page of the flat listing is on its way."""
        self.listed_alone: Counter[str] = Counter()
        self.asked_for: Counter[str] = Counter()
        self.failures: list[Exception] = []
        self.refused: list[str] = []
        monkeypatch.setattr(obstore, "list", self._list)
        monkeypatch.setattr(obstore, "list_with_delimiter_async", self._list_with_delimiter)
        monkeypatch.setattr(obstore, "head_async", self._head)

    def tree(self) -> dict[str, set[Kind]]:
        async def run() -> dict[str, set[Kind]]:
            found: dict[str, set[Kind]] = {}
            async for page in ObjectStoreSource(self, "gs://bucket", "set", "gs:bucket", "").list_tree():
                self.refused += [path for path, _why in page.refused]
                for obj in page.objects:
                    found.setdefault(obj.path, set()).add(obj.kind)
            return found

        return asyncio.run(run())

    async def _list(self, _store: Bucket, prefix: str, chunk_size: int) -> AsyncIterator[list[dict[str, Any]]]:
        metas = [self._meta(key) for key in sorted(self.sizes) if key.startswith(prefix)]
        for start in range(0, len(metas), chunk_size):
            page = metas[start : start + chunk_size]
            self._check(meta["path"] for meta in page)
            self.meanwhile()
            yield page

    async def _list_with_delimiter(self, _store: Bucket, prefix: str) -> dict[str, Any]:
        self.listed_alone[prefix] += 1
        if self.failures:
            raise self.failures.pop()
        keys = [key for key in sorted(self.sizes) if key.startswith(prefix)]
        deeper = {key[: key.index("/", len(prefix))] for key in keys if "/" in key[len(prefix) :]}
        objects = [self._meta(key) for key in keys if "/" not in key[len(prefix) :]]
        self._check(deeper)
        return {"common_prefixes": sorted(deeper), "objects": objects}

    async def _head(self, _store: Bucket, key: str) -> dict[str, Any]:
        self.asked_for[key] += 1
        if self.failures:
            raise self.failures.pop()
        if key not in self.sizes:
            raise FileNotFoundError(key)
        return self._meta(key)

    @staticmethod
    def _check(paths: Iterable[str]) -> None:
        for path in paths:
            if "//" in f"{path}/":
                raise InvalidPathError(f'Path "{path}" contained empty path segment')

    def _meta(self, key: str) -> dict[str, Any]:
        return {"path": key.rstrip("/"), "size": self.sizes[key], "last_modified": NOW, "e_tag": '"e"'}


def test_an_empty_file_that_goes_while_it_is_listed_is_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(monkeypatch, **{"set/a": 1, "set/gone": 0, "set/kept": 0})
    bucket.meanwhile = lambda: bucket.sizes.pop("set/gone")
    assert bucket.tree() == {"a": {Kind.FILE}, "kept": {Kind.FILE}}


def test_a_few_empty_files_cost_no_listing_of_their_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be of any size, and obstore gathers all of it."""
    bucket = Bucket(monkeypatch, **{"set/_SUCCESS": 0, "set/a": 1, "set/d/": 0, "set/d/f": 1, "set/d/x": 0})
    bucket.failures = [GenericError("503")]
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 0.0)
    assert bucket.tree() == {name: {Kind.FILE} for name in ("_SUCCESS", "a", "d/f", "d/x")} | {"d": {Kind.DIRECTORY}}
    assert bucket.listed_alone == {}
    assert set(bucket.asked_for) == {"set/_SUCCESS", "set/d/x"}


def test_an_empty_file_beside_a_marker_of_its_name_is_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(monkeypatch, **{"set/x": 0, "set/x-1": 1, "set/x/": 0})
    assert bucket.tree() == {"x": {Kind.DIRECTORY}, "x-1": {Kind.FILE}}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few there are."""
    monkeypatch.setattr(object_stores, "_FEW", 0)


@pytest.mark.usefixtures("many")
def test_an_empty_file_beside_a_marker_that_does_not_come_next_is_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(monkeypatch, **{"set/x": 0, "set/x-1": 1, "set/x/": 0, "set/y": 0, "set/y-1": 1, "set/y/f": 1})
    found = bucket.tree()
    assert found == {
        "x": {Kind.DIRECTORY},
        "x-1": {Kind.FILE},
        "y": {Kind.DIRECTORY},
        "y-1": {Kind.FILE},
        "y/f": {Kind.FILE},
    }


@pytest.mark.usefixtures("many")
def test_empty_files_cost_one_listing_of_their_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "PAGE_NAMES", 4)
    sizes = {f"set/{directory}/{name}": 0 for directory in "abc" for name in range(11)}
    sizes |= {f"set/b/{name}/f": 0 for name in ("2-deep", "5-deep")} | {"set/full/f": 1, "set/z": 1}
    bucket = Bucket(monkeypatch, **sizes)
    found = bucket.tree()
    assert {path for path, kinds in found.items() if kinds == {Kind.FILE}} == {key[len("set/") :] for key in sizes}
    assert set(bucket.listed_alone) == {"set/a/", "set/b/", "set/b/2-deep/", "set/b/5-deep/", "set/c/"}
    assert set(bucket.listed_alone.values()) == {1}


@pytest.mark.usefixtures("many")
def test_a_look_that_fails_does_not_end_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 0.0)
    bucket = Bucket(monkeypatch, **{"set/a": 0})
    bucket.failures = [GenericError("kind: Timeout"), GenericError("503")]
    assert bucket.tree() == {"a": {Kind.FILE}}
    assert bucket.listed_alone == {"set/": 3}


@pytest.mark.usefixtures("many")
def test_a_look_may_meet_a_key_that_is_no_path_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "PAGE_NAMES", 1)
    bucket = Bucket(monkeypatch, **{"set/a": 1, "set/p/-e": 0, "set/p//x": 1, "set/z": 1})
    assert bucket.tree() == {"a": {Kind.FILE}, "p": {Kind.DIRECTORY}, "z": {Kind.FILE}}
    assert bucket.refused == ["p"]
