"""A bucket that keeps versions, as it was at a time: out of all versions of each key, the latest one of then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

from dsfs.errors import SourceUnavailable


async def pages_at(ask: Callable[..., Awaitable[dict[str, Any]]], at: datetime) -> AsyncIterator[dict[str, Any]]:
    """Pages as ``list_objects_v2`` gives them, with ``VersionId`` beside each key.

    ``ask`` is ``list_object_versions`` of the prefix that is wanted. It has versions and delete markers apart, each in
    the order of keys; those of one key may be spread over two pages.
    """
    marker: dict[str, str] = {}
    key, best = "", None
    while True:
        page = await ask(**marker)
        if "IsTruncated" not in page:
            raise SourceUnavailable("the answer is no listing of versions (check the endpoint)")
        listed: list[dict[str, Any]] = []
        found = [*page.get("Versions", ()), *({**each, "Size": None} for each in page.get("DeleteMarkers", ()))]
        for item in sorted(found, key=lambda item: item["Key"].encode("utf-8", "surrogateescape")):
            if item["Key"] != key:
                listed += _shown(best)
                key, best = item["Key"], None
            if item["LastModified"] <= at and (best is None or _newer(item, best)):
                best = item
        if not page["IsTruncated"]:
            listed += _shown(best)
        yield {"Contents": listed, "CommonPrefixes": page.get("CommonPrefixes", ())}
        if not page["IsTruncated"]:
            return
        following = {
            "KeyMarker": page.get("NextKeyMarker") or "",
            "VersionIdMarker": page.get("NextVersionIdMarker") or "",
        }
        following = {name: value for name, value in following.items() if value}
        if not following or following == marker:
            raise SourceUnavailable("the listing of versions is cut off and says not where it goes on")
        marker = following


def _newer(item: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether this is the later one of two versions of a key. Times are of whole seconds, and within one of them the
    server lists the later one first, versions and markers apart: ``IsLatest`` decides where they meet."""
    if item["LastModified"] != best["LastModified"]:
        return bool(item["LastModified"] > best["LastModified"])
    return bool(item.get("IsLatest")) and not best.get("IsLatest")


def _shown(best: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What was there then: nothing, if that was a delete marker."""
    return [] if best is None or best["Size"] is None else [best]
