"""Looking: ``dsfs status``, ``dsfs doctor`` and ``dsfs probe``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from daemon import running
from daemon.cli.options import AsJson
from daemon.cli.output import DATASET_COLUMNS, dataset_row, show_json, show_table, size
from daemon.control.client import ask
from dsfs.errors import ConfigError, MountError
from dsfs.manifest.durations import parse_duration


def status(
    mountpoint: Annotated[
        str | None, typer.Argument(metavar="[MOUNTPOINT]", help="Which mount; all if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is mounted, how it is, and how much of it is cached."""
    if mountpoint is not None:
        place = os.path.abspath(mountpoint)
        dead = [each for each in running.all_mounts() if each.mountpoint == place and not each.alive]
        mounts = [_status_of(dead[0] if dead else running.find(mountpoint))]  # a dead mount is what it is asked about
    else:
        mounts = [_status_of(each) for each in running.all_mounts()]
    if as_json:
        show_json({"mounts": mounts})
        return
    if not mounts:
        typer.echo("nothing is mounted")
    for each in mounts:
        health = "healthy" if each["healthy"] else "NOT HEALTHY"
        typer.echo(
            f"{each['mountpoint']}  {health}  session {each['session']}  cache {size(each['cache_used'])} of "
            f"{size(each['cache_size'])} in {each['cache_dir']}" + (f"  http {each['http']}" if each["http"] else "")
        )
        show_table(DATASET_COLUMNS, [dataset_row(dataset) for dataset in each["datasets"]])


def _status_of(found: running.Running) -> dict[str, Any]:
    """From its server; when that does not answer, what is known without it. Never enters the mount."""
    if found.alive:
        try:
            return ask(found, "GET", "/api/v1/status")
        except MountError:
            pass  # shown as not healthy below; the server may be starting anew just now
    return {
        "mountpoint": found.mountpoint,
        "session": "",
        "keeper_pid": found.keeper_pid,
        "server_pid": 0,
        "http": None,
        "cache_dir": "",
        "cache_size": 0,
        "cache_used": 0,
        "healthy": False,
        "datasets": [],
    }


def doctor(as_json: AsJson = False) -> None:
    """What this machine can do, and what to install for more."""
    from daemon.doctor import examine

    checks = examine()
    if as_json:
        show_json({"checks": [check.as_dict() for check in checks]})
    else:
        show_table(("CHECK", "RESULT", "WHAT TO DO"), [(check.name, check.result, check.remedy) for check in checks])
    if any(check.fatal for check in checks):
        raise typer.Exit(1)


def probe(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A mount point, a directory above some, or a file.")],
    within: Annotated[str, typer.Option(metavar="DURATION", help="How long all of it may take.")] = "5s",
) -> None:
    """Look through the mounts at PATH as a reader would; for a health check. Ends in time even if they hang."""
    from daemon.probe import probe as look

    try:
        within_s = parse_duration(within)
    except ConfigError as error:
        raise typer.BadParameter(f"--within {within}: {error}") from None
    problems = look(os.path.abspath(path), within_s)
    if problems:
        raise MountError("; ".join(problems))
