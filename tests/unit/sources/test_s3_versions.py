"""A bucket as of a time, out of pages that split the versions of a key anywhere."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsfs.errors import SourceUnavailable
from dsfs.sources.s3_versions import pages_at

KEYS = st.sampled_from(["a", "a/b", "ab", "b"])
EVENTS = st.lists(st.tuples(KEYS, st.booleans()), max_size=25)


def when(second: int) -> datetime:
    return datetime.fromtimestamp(1_700_000_000 + second, UTC)


@given(EVENTS, st.integers(-1, 26), st.integers(1, 5))
def test_the_latest_version_of_then(events: list[tuple[str, bool]], until: int, page_size: int) -> None:
    """``events`` are puts (True) and deletes, one a second."""
    wanted: dict[str, int] = {}
    for second, (key, put) in enumerate(events[: until + 1]):
        wanted.pop(key, None)
        if put:
            wanted[key] = second
    newest_first = sorted(range(len(events)), key=lambda second: (events[second][0], -second))

    async def ask(**marker: str) -> dict[str, Any]:
        start = int(marker.get("VersionIdMarker", 0))
        page: dict[str, Any] = {"Versions": [], "DeleteMarkers": [], "IsTruncated": start + page_size < len(events)}
        for second in newest_first[start : start + page_size]:
            key, put = events[second]
            item = {"Key": key, "LastModified": when(second), "VersionId": str(second)}
            page["Versions" if put else "DeleteMarkers"].append({**item, "Size": second} if put else item)
        return {**page, "NextKeyMarker": "k", "NextVersionIdMarker": str(start + page_size)}

    async def run() -> list[tuple[str, int]]:
        return [(item["Key"], item["Size"]) async for page in pages_at(ask, when(until)) for item in page["Contents"]]

    found = asyncio.run(run())
    assert [key for key, _second in found] == sorted(wanted)
    assert dict(found) == wanted


@pytest.mark.parametrize("page", [{}, {"IsTruncated": True}])
def test_an_answer_that_is_no_listing(page: dict[str, Any]) -> None:
    async def ask(**_marker: str) -> dict[str, Any]:
        return page

    async def run() -> None:
        async for _page in pages_at(ask, when(0)):
            pass

    with pytest.raises(SourceUnavailable):
        asyncio.run(run())
