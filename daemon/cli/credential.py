"""``dsfs dataset set-credential``: a credential on its way to the daemon, never as an argument."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

from daemon.cli.options import AsJson, DatasetName, Mountpoint, asked_of
from daemon.cli.output import show_json
from daemon.control.client import ask
from dsfs.errors import ConfigError

_LARGEST_INPUT_BYTES = 8 << 20


def set_credential(
    dataset: DatasetName,
    from_file: Annotated[
        list[str] | None,
        typer.Option("--from-file", metavar="KEY=PATH", help="Take a value from a file; may be repeated."),
    ] = None,
    from_env: Annotated[
        list[str] | None,
        typer.Option("--from-env", metavar="KEY=VARIABLE", help="Take a value from the environment; may be repeated."),
    ] = None,
    from_stdin: Annotated[
        bool, typer.Option("--stdin", help="Take a JSON object of keys and values from stdin; {} takes them back.")
    ] = False,
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """Give a dataset a credential of its own, used from the next request on. It wins over secretRef.

    Held in memory by the daemon, over restarts of its server, until it is unmounted; on no disk.
    """
    if not (from_file or from_env or from_stdin):
        raise typer.BadParameter("give --from-file KEY=PATH, --from-env KEY=VARIABLE or --stdin")
    values: dict[str, Any] = _from_stdin() if from_stdin else {}
    for option, given, read in (("--from-file", from_file, _file), ("--from-env", from_env, _variable)):
        for pair in given or ():
            key, equals, where = pair.partition("=")
            if not (key and equals and where):
                raise typer.BadParameter("is not KEY=" + ("PATH" if read is _file else "VARIABLE"), param_hint=option)
            if key in values:
                raise ConfigError(f"key {key!r} is given twice (give it once)")
            values[key] = read(where)
    found, dataset = asked_of(dataset, mountpoint)
    body = {"selector": dataset, "values": values}
    answer = ask(found, "POST", "/api/v1/credential", body, timeout_s=None)
    if as_json:
        show_json(answer)
    elif answer["keys"]:
        typer.echo(f"{answer['dataset']} reads with {', '.join(answer['keys'])} from now on")
    else:
        typer.echo(f"{answer['dataset']} has no credential of its own any more")


def _file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(_LARGEST_INPUT_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error
    return raw.decode("utf-8", "surrogateescape")


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ConfigError(f"{name} is not in the environment (export it, or use --from-file)")
    return value


def _from_stdin() -> dict[str, Any]:
    try:
        values = json.loads(sys.stdin.buffer.read(_LARGEST_INPUT_BYTES))
    except ValueError:
        values = None  # not its text: that may hold the credential
    if not isinstance(values, dict):
        raise ConfigError('stdin is no JSON object (such as {"token": "…"})')
    return values
