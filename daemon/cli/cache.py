"""The cache: ``dsfs evict``, ``dsfs pin``, ``dsfs unpin`` and ``dsfs verify``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from daemon import running
from daemon.cli.options import AsJson, CacheDir, Mountpoint, Selector, asked_of
from daemon.cli.output import show_json, show_table, size
from daemon.control.client import ask
from daemon.settings import Settings, default_cache_dir
from dsfs.errors import MountError


def evict(selector: Selector, mountpoint: Mountpoint = None, as_json: AsJson = False) -> None:
    """Give back the space of a dataset, or of the paths that a glob names. What is pinned stays."""
    found, selector = asked_of(selector, mountpoint)
    answer = ask(found, "POST", "/api/v1/evict", {"selector": selector}, timeout_s=None)
    if as_json:
        show_json(answer)
    else:
        kept = answer.get("pinned_files")
        stay = f"; {kept} cached files stay, as they are pinned (dsfs unpin lets go of them)" if kept else ""
        typer.echo(f"evicted {size(answer['evicted_bytes'])}{stay}")


def pin(
    selector: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAMESPACE/]DATASET[/GLOB]",
            help="A dataset, or a path or pattern in one; or where it is in a mount.",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--list", help="Show what is pinned, and change nothing.")] = False,
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """Keep a dataset, or what a glob names, in the cache: what is here, and what comes later. Fetches nothing.

    Holds until ``dsfs unpin``, whatever is restarted, and in later revisions too.
    """
    if (selector is None) is not every:
        raise typer.BadParameter("give [NAMESPACE/]DATASET[/GLOB], or --list")
    if selector is None:
        pins = ask(running.find(mountpoint), "GET", "/api/v1/pins")
        if as_json:
            show_json(pins["pins"])
        else:
            rows = [
                (each["selector"], "yes" if each["mounted"] else "no", size(each["dataset_pinned_bytes"]))
                for each in pins["pins"]
            ]
            show_table(("PINNED", "MOUNTED", "CACHED AND PINNED OF THE DATASET"), rows)
        return
    found, selector = asked_of(selector, mountpoint)
    answer = ask(found, "POST", "/api/v1/pin", {"selector": selector}, timeout_s=None)
    if as_json:
        show_json(answer)
    elif answer["files"]:
        typer.echo(f"pinned {answer['files']} files, {size(answer['pinned_bytes'])}")
    else:
        typer.echo("pinned; it names no file that is known now")


def unpin(selector: Selector, mountpoint: Mountpoint = None, as_json: AsJson = False) -> None:
    """Let go of what was pinned: of every pin that is this one, or lies inside of it."""
    found, selector = asked_of(selector, mountpoint)
    answer = ask(found, "POST", "/api/v1/unpin", {"selector": selector}, timeout_s=None)
    if as_json:
        show_json(answer)
    else:
        still = f"; {answer['files']} files of it are held by other pins" if answer["files"] else ""
        typer.echo(f"unpinned{still}")


def verify(
    cache_dir: CacheDir = None,
    mountpoint: Annotated[str | None, typer.Option("--mountpoint", "-m", hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Check every cached block against its checksum; bad ones are dropped. Exit status 1 if there were any."""
    directory = os.path.realpath(cache_dir or default_cache_dir())
    user = running.find(mountpoint) if mountpoint is not None else _user_of(cache_dir)
    found = ask(user, "POST", "/api/v1/verify", {}, timeout_s=None) if user else _verify_unmounted(directory)
    if as_json:
        show_json(found)
    else:
        typer.echo(
            f"{found['objects']} objects, {found['blocks']} blocks, {size(found['bytes'])} right; {found['bad']} bad"
            + (", dropped" if found["bad"] else "")
        )
    if found["bad"]:
        raise MountError(
            f"bad blocks were found and dropped: {found['bad']} (they are fetched again; look at the cache's disk)"
        )


def _user_of(cache_dir: str | None) -> running.Running | None:
    """The running mount that uses a cache directory; the only one that runs where none is named."""
    alive = [each for each in running.all_mounts() if each.alive]
    if cache_dir is None and len(alive) == 1:
        return alive[0]
    directory = os.path.realpath(cache_dir or default_cache_dir())
    for each in alive:
        settings = Settings.of(each.runtime_dir)
        if settings is not None and os.path.realpath(settings.cache_dir) == directory:
            return each
    return None


def _verify_unmounted(directory: str) -> dict[str, int]:
    import time
    from dataclasses import asdict

    from daemon import logs
    from dsfs.cache.layout import open_layout, trust_id
    from dsfs.cache.node import NodeTier
    from dsfs.cache.open_index import open_index
    from dsfs.cache.verify import verify as verify_tier

    if not os.path.isfile(f"{directory}/version"):
        raise MountError(f"{directory} is not a dsfs cache (name one with --cache-dir)")
    logs.configure(debug=False)
    layout = open_layout(directory)
    try:
        index = open_index(layout.index)
        index.is_whole = index.was_clean  # else the next server has to rebuild it
        found = verify_tier(NodeTier(layout, index, lambda: 0, trust_id(layout.root)))
        index.close(time.time())
    finally:
        layout.release()
    return asdict(found)
