"""A URI's own name as a key, where the credentials are for what is below it alone: a HEAD of that is refused."""

from __future__ import annotations

import asyncio

import pytest

from dsfs.errors import SourceMissing, SourceRefused
from dsfs.model import SourceObject
from dsfs.sources.prefix_or_key import Root


class Store:
    """As S3 answers under a policy with a condition ``s3:prefix``."""

    def __init__(self, *keys: str) -> None:
        self.keys = set(keys)
        self.refused = {"sets/imagenet"}
        self.root = Root("sets/imagenet", self._has_keys, self._head)

    async def _has_keys(self, prefix: str) -> bool:
        await asyncio.sleep(0.001)  # so that a HEAD at the same time would be the first to answer
        return any(key.startswith(prefix) for key in self.keys)

    async def _head(self, path: str, key: str) -> SourceObject | None:
        if key in self.refused:
            raise SourceRefused(f"{key}: access refused")
        return SourceObject(path) if key in self.keys else None


def test_a_file_that_is_called_as_its_prefix_is_read_though_the_prefix_is_no_key_to_look_at() -> None:
    store = Store("sets/imagenet/imagenet")
    assert asyncio.run(store.root.key("imagenet")) == "sets/imagenet/imagenet"
    assert store.root.known_key("imagenet") == "sets/imagenet/imagenet"


def test_a_prefix_that_is_empty_for_a_moment_is_missing_and_not_refused() -> None:
    store = Store()
    with pytest.raises(SourceMissing, match="sets/imagenet: access refused, and there is nothing under this prefix"):
        asyncio.run(store.root.file())
    store.keys.add("sets/imagenet/imagenet")
    assert asyncio.run(store.root.key("imagenet")) == "sets/imagenet/imagenet"


def test_one_key_that_is_refused_by_now_is_refused_and_no_other_is_read() -> None:
    store = Store("sets/imagenet")
    store.refused.clear()
    assert asyncio.run(store.root.file()) == SourceObject("imagenet")
    assert asyncio.run(store.root.key("imagenet")) == "sets/imagenet"
    store.refused.add("sets/imagenet")
    with pytest.raises(SourceMissing):
        asyncio.run(store.root.file())
    with pytest.raises(SourceRefused):
        asyncio.run(store.root.key("imagenet"))
