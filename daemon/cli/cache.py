"""The cache: ``dsfs evict`` and ``dsfs verify``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from daemon import running
from daemon.cli.options import AsJson, CacheDir, Mountpoint, Selector
from daemon.cli.output import show_json, size
from daemon.control.client import ask
from daemon.settings import Settings, default_cache_dir
from dsfs.errors import MountError


def evict(selector: Selector, mountpoint: Mountpoint = None, as_json: AsJson = False) -> None:
    """Give back the space of a dataset, or of the paths that a glob names."""
    answer = ask(running.find(mountpoint), "POST", "/api/v1/evict", {"selector": selector}, timeout_s=None)
    if as_json:
        show_json(answer)
    else:
        typer.echo(f"evicted {size(answer['evicted_bytes'])}")


def verify(
    cache_dir: CacheDir = None,
    mountpoint: Annotated[str | None, typer.Option("--mountpoint", "-m", hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Check every cached block against its checksum; bad ones are dropped. Exit status 1 if there were any."""
    directory = os.path.abspath(cache_dir or default_cache_dir())
    user = _server_of(directory) if mountpoint is None else running.find(mountpoint)
    found = ask(user, "POST", "/api/v1/verify", {}, timeout_s=None) if user else _verify_unmounted(directory)
    if as_json:
        show_json(found)
    else:
        typer.echo(
            f"{found['objects']} objects, {found['blocks']} blocks, {size(found['bytes'])} right; {found['bad']} bad"
            + (", dropped" if found["bad"] else "")
        )
    if found["bad"]:
        raise typer.Exit(1)


def _server_of(directory: str) -> running.Running | None:
    """The running mount that uses a cache directory."""
    for each in running.all_mounts():
        if each.alive and Settings.load(each.runtime_dir).cache_dir == directory:
            return each
    return None


def _verify_unmounted(directory: str) -> dict[str, int]:
    import time
    from dataclasses import asdict

    from daemon import logs
    from dsfs.cache.index import open_index
    from dsfs.cache.layout import boot_id, open_layout
    from dsfs.cache.node import NodeTier
    from dsfs.cache.verify import verify as verify_tier

    if not os.path.isfile(f"{directory}/version"):
        raise MountError(f"{directory} is not a dsfs cache (name one with --cache-dir)")
    logs.configure(debug=False)
    layout = open_layout(directory)
    try:
        index = open_index(layout.index)
        boot = boot_id()
        found = verify_tier(NodeTier(layout, index, lambda: 0, boot), boot)
        index.close(time.time())
    finally:
        layout.release()
    return asdict(found)
