"""Options that several verbs share, each with its one help text."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from daemon import running
from dsfs.client import place_of

Mountpoint = Annotated[
    str | None,
    typer.Option("--mountpoint", "-m", metavar="MOUNTPOINT", help="Which mount; the only running one if left out."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Selector = Annotated[
    str,
    typer.Argument(
        metavar="[NAMESPACE/]DATASET[/GLOB]", help="A dataset, or a path or pattern in one; or where it is in a mount."
    ),
]
DatasetName = Annotated[
    str, typer.Argument(metavar="[NAMESPACE/]DATASET", help="Which one; or where it is in a mount.")
]
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir", metavar="DIR", help="Where blocks are kept (root: /var/cache/dsfs, else ~/.cache/dsfs)."
    ),
]


def one_mountpoint(argument: str | None, option: str | None) -> str | None:
    """Of a verb that takes its mount point in both ways. Raises BadParameter for two that differ."""
    if argument is not None and option is not None and argument != option:
        raise typer.BadParameter(f"two mount points are named, {argument} and {option}: name one")
    return argument if option is None else option


def asked_of(selector: str, mountpoint: str | None) -> tuple[running.Running, str]:
    """Which mount is meant, and what in it: a path that begins with "/", "./" or "../" is a place in a mount, and names
    that too.

    Raises BadParameter for a path in another mount than ``-m`` names, MountError for one in none.
    """
    if selector.split("/", 1)[0] in (".", ".."):  # no dataset is called that
        selector = os.path.abspath(selector)
    if not selector.startswith("/"):
        return running.find(mountpoint), selector
    found, place = running.find_below(selector)
    if mountpoint is not None and place_of(mountpoint) != found.mountpoint:
        raise typer.BadParameter(f"{selector} is in the mount {found.mountpoint}, and -m names {mountpoint}")
    return found, place
