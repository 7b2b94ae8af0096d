"""Looking: ``dsfs status``, ``dsfs doctor`` and ``dsfs probe``."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from daemon import running
from daemon.cli.options import AsJson, Mountpoint, one_mountpoint
from daemon.cli.output import DATASET_COLUMNS, dataset_row, say, show_json, show_table, size
from daemon.control.client import ask, ask_keeper
from daemon.settings import Settings
from dsfs.client import place_of
from dsfs.errors import ConfigError, MountError
from dsfs.manifest.durations import parse_duration

_KEEPER_S = 1.0
_SERVER_S = 10.0
_START_S = 3.0
Bundle = Annotated[
    str | None,
    typer.Option(metavar="FILE.tar.gz", help="Also write what a maintainer needs to see, secrets left out."),
]


def status(
    where: Annotated[str | None, typer.Argument(metavar="[MOUNTPOINT]", help="Which mount; all if left out.")] = None,
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """What is mounted, how it is, and how much of it is cached."""
    found = running.all_mounts()
    if (mountpoint := one_mountpoint(where, mountpoint)) is not None:
        place = place_of(mountpoint)
        found = [each for each in found if each.mountpoint == place] or [running.find(mountpoint)]
    mounts = [_status_of(each) for each in found]
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
        if "message" in each:
            typer.echo(f"  {each['message']}")
        if shared := each.get("shared_cache"):
            typer.echo(
                f"  shared cache {size(shared['used'])} of {size(shared['size'])} in {shared['dir']}"
                + (f"  NOT USED AS IT SHOULD: {shared['message']}" if shared["message"] else "")
            )
        show_table(DATASET_COLUMNS, [dataset_row(dataset) for dataset in each["datasets"]])


def _status_of(found: running.Running) -> dict[str, Any]:
    """From its server; when that does not answer, what is known without it. Never enters the mount."""
    seen: dict[str, Any] = {}
    reason = ""
    patience_s = 0.0  # also without a keeper a server may be there: it is just starting another
    if found.alive:
        try:
            seen = ask_keeper(found, {"op": "look"}, _KEEPER_S)
            patience_s = 0.0 if seen["failures"] > 1 else _START_S
        except MountError as error:
            say(f"dsfs: {error}")
    try:
        return ask(found, "GET", "/api/v1/status", timeout_s=_SERVER_S, patience_s=patience_s)
    except MountError as error:
        if not found.alive:
            say(f"dsfs: {found.mountpoint}: its keeper and its server are gone (dsfs doctor --clear, or mount it anew)")
        elif not seen:
            say(f"dsfs: {error}")
        reason = str(error)
    settings = Settings.of(found.runtime_dir)
    return {
        "mountpoint": found.mountpoint,
        "session": settings.session if settings else "",
        "keeper_pid": found.keeper_pid,
        "server_pid": seen.get("server_pid", 0),
        "http": settings.http if settings else None,
        "cache_dir": settings.cache_dir if settings else "",
        "cache_size": 0,
        "cache_used": 0,
        "healthy": False,
        **({"message": _without_server(seen, reason)} if seen else {}),
        "datasets": [],
    }


def _without_server(seen: dict[str, Any], reason: str) -> str:
    """A line from what the keeper knows, and why the server has not answered."""
    if seen["state"] == "serving":
        return reason
    what = "a server is starting" if seen["state"] == "starting" else f"the next server starts in {seen['next_s']:g} s"
    if seen["failures"] > 1:
        what = f"{seen['failures']} servers in a row have failed; {what}"
    return f"{what}; the last one: {seen['problem']}" if seen["problem"] else what


def doctor(
    as_json: AsJson = False,
    bundle: Bundle = None,
    clear: Annotated[bool, typer.Option("--clear", help="Detach dead mounts first.")] = False,
) -> None:
    """What this machine can do, and what to install for more; dead mounts of dsfs."""
    from daemon.dead import clear as clear_dead
    from daemon.doctor import examine

    if clear:
        for line in clear_dead():
            say(f"dsfs: {line}")

    checks = examine()
    if bundle is not None:
        from daemon.bundle import write_bundle

        missing = write_bundle(os.path.abspath(bundle), checks)
        say(f"dsfs: wrote {bundle}, with no secret in it; look it through before you hand it on")
        for line in missing:
            say(f"dsfs: not in it: {line}")
    if as_json:
        show_json({"checks": [check.as_dict() for check in checks]})
    else:
        show_table(("CHECK", "RESULT", "WHAT TO DO"), [(check.name, check.result, check.remedy) for check in checks])
    fatal = [f"{check.name} {check.result} ({check.remedy})" for check in checks if check.fatal]
    if fatal:
        raise MountError(f"nothing can be mounted here: {'; '.join(fatal)}")


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
