"""``dsfs``: the verbs, and what becomes of failures: 0 done, 1 failed with one line, 2 wrong usage.

A verb is imported when somebody asks for it: all of them take longer than most of them run.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from daemon.cli.output import LONGEST_LINE, say
from dsfs.errors import DsfsError, one_line

VERBS: Final = {
    "mount": "mount:mount",
    "unmount": "mount:unmount",
    "restart": "mount:restart",
    "status": "look:status",
    "warm": "warm:warm",
    "hint": "warm:hint",
    "evict": "cache:evict",
    "pin": "cache:pin",
    "unpin": "cache:unpin",
    "verify": "cache:verify",
    "export": "export:export",
    "top": "top:top",
    "stats": "top:stats",
    "bench": "bench:bench",
    "doctor": "look:doctor",
    "probe": "look:probe",
    "keeper": "apart:keeper",
    "serve": "apart:serve",
    "dataset": "dataset:app",
}
"""Where below ``daemon.cli`` each of them is."""


class _Commands(Mapping[str, Any]):
    """Those of ``VERBS``, made when they are looked at."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, _, attribute = VERBS[name].partition(":")
            verb = getattr(import_module(f"daemon.cli.{module}"), attribute)
            if not isinstance(verb, typer.Typer):
                alone = typer.Typer(add_completion=False, rich_markup_mode=None)
                alone.command(name)(verb)
                verb = alone
            self._made[name] = get_command(verb)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _Group(TyperGroup):
    def __init__(self, **said: Any) -> None:
        super().__init__(**said)
        self.commands = _Commands()  # type: ignore[assignment]  # none is ever added

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    name="dsfs",
    cls=_Group,
    help="Remote datasets as one read-only tree, at the speed of the local disk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},  # of every verb
)

Debug = typer.Option(False, "--debug", help="Show tracebacks, and log more.")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"dsfs {metadata.version('dsfs')}")
        raise typer.Exit


ShowVersion = typer.Option(
    False, "--version", callback=_show_version, is_eager=True, help="Show which version of dsfs this is."
)


@app.callback()
def _global(debug: bool = Debug, _version: bool = ShowVersion) -> None:
    gc.enable()
    if debug:
        os.environ["DSFS_DEBUG"] = "1"  # also for the servers that this command starts


def main() -> None:
    """The entry point. No traceback reaches a user without --debug."""
    gc.disable()  # until a verb begins: importing makes no garbage
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not be text
    try:
        app()
    except DsfsError as error:
        if os.environ.get("DSFS_DEBUG"):
            raise
        say(f"dsfs: {one_line(str(error), LONGEST_LINE)}")
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if os.environ.get("DSFS_DEBUG"):
            raise
        say(f"dsfs: {error.filename or ''}: {error.strerror or error}".replace(" : ", " "))
        sys.exit(1)
    except Exception as error:  # a bug: one line, and how to see the rest
        if os.environ.get("DSFS_DEBUG"):
            raise
        say(f"dsfs: {type(error).__name__}: {error} (dsfs --debug shows where)".replace("\n", " "))
        sys.exit(1)


if __name__ == "__main__":
    main()
