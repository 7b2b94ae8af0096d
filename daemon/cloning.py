"""What a clone of a dataset is, and whether it may be one: the same source, read with credentials of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import trio

from dsfs.bridge import Bridge
from dsfs.datasets.dataset import Dataset
from dsfs.datasets.selection import CATALOG
from dsfs.errors import ConfigError, SourceError, one_line
from dsfs.fetch.entitlement import Unread
from dsfs.manifest.names import check_dataset_name, check_namespace
from dsfs.manifest.schema import MANUAL_URI, Manifest, SourceType
from dsfs.model import SourceObject
from dsfs.ranges import ByteRange
from dsfs.sources.base import Source

_CLOSE_S = 2.0


def clone_of(manifest: Manifest, namespace: str, name: str) -> Manifest:
    """The same dataset under another name. Sharing is not cloned: that is for the owner of each to say.

    Raises ConfigError for what is no name.
    """
    try:
        check_namespace(namespace)
        check_dataset_name(name)
    except ValueError as error:
        raise ConfigError(f"{one_line(f'{namespace}/{name}')}: {error}") from None
    source = manifest.source
    if source.type is SourceType.MANUAL and source.uri == MANUAL_URI:
        source = source.model_copy(update={"uri": f"{MANUAL_URI}{manifest.name}"})  # the claim of the original
    changed = {"namespace": namespace, "name": name, "source": source}
    return manifest.model_copy(update={**changed, "share": False, "share_to_namespace_selector": None})


async def check_same_source(
    bridge: Bridge,
    build: Callable[[], Coroutine[Any, Any, Source]],
    manifest: Manifest,
    original: Dataset,
    timeout_s: float | None,
) -> None:
    """Raises ConfigError when a clone would read another source; with a time, also when it gets no byte within that."""
    source = await bridge.call(build)
    try:
        if source.identity != original.origin.source.identity:
            raise ConfigError(
                f"{manifest.id}: {manifest.source.uri} is not the same in namespace {manifest.namespace} "
                f"(refer to dataset://{original.manifest.id} instead)"
            )
        if timeout_s is not None:
            file = await trio.to_thread.run_sync(original.any_file, limiter=CATALOG)
            with trio.fail_after(timeout_s):
                await bridge.call(_ask_for_a_byte, source, file)
    except (SourceError, trio.TooSlowError) as error:
        reason = str(error) or "nothing answered in time"
        raise ConfigError(f"{manifest.id}: its own credentials do not read the source: {reason}") from error
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
            await bridge.call(source.close)


async def _ask_for_a_byte(source: Source, file: SourceObject | None) -> None:
    """On the network side: have the source give a byte of a file, or a listing if it has none with a byte in it."""
    if file is not None:
        await source.read(file, ByteRange(0, 1), Unread())
        return
    async for _page in source.list_directory(""):
        return
