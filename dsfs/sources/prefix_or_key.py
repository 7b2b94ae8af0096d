"""What a name is in a store of keys: a prefix of some, a key itself, both, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from dsfs.errors import SourceError, first_of
from dsfs.model import Kind, SourceObject


async def prefix_or_key(
    path: str, has_keys: Coroutine[Any, Any, bool], head: Coroutine[Any, Any, SourceObject | None]
) -> SourceObject | None:
    """The directory if there are keys below the name, else what ``head`` found; both are asked at once.

    Raises the SourceError of either.
    """
    try:
        async with asyncio.TaskGroup() as group:
            inside, object_ = group.create_task(has_keys), group.create_task(head)
    except BaseExceptionGroup as errors:
        ours = first_of(errors, SourceError)
        if ours is None:
            raise
        raise ours from ours.__cause__  # one is enough: the other was cancelled
    return SourceObject(path, Kind.DIRECTORY) if inside.result() else object_.result()
