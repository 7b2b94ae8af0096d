"""``dsfs``: the verbs, and what becomes of failures: 0 done, 1 failed with one line, 2 wrong usage."""

from __future__ import annotations

import io
import os
import sys
from importlib import metadata

import typer

from daemon.cli import apart, bench, cache, dataset, export, look, mount, top, warm
from daemon.cli.output import LONGEST_LINE, say
from dsfs.errors import DsfsError, one_line

app = typer.Typer(
    name="dsfs",
    help="Remote datasets as one read-only tree, at the speed of the local disk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every verb
)
app.command("mount")(mount.mount)
app.command("unmount")(mount.unmount)
app.command("restart")(mount.restart)
app.command("status")(look.status)
app.command("warm")(warm.warm)
app.command("hint")(warm.hint)
app.command("evict")(cache.evict)
app.command("pin")(cache.pin)
app.command("unpin")(cache.unpin)
app.command("verify")(cache.verify)
app.command("export")(export.export)
app.command("top")(top.top)
app.command("stats")(top.stats)
app.command("bench")(bench.bench)
app.command("doctor")(look.doctor)
app.command("probe")(look.probe)
app.command("keeper")(apart.keeper)
app.command("serve")(apart.serve)
app.add_typer(dataset.app, name="dataset")

Debug = typer.Option(False, "--debug", help="Show tracebacks, and log more.")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dsfs {metadata.version('dsfs')}")
        raise typer.Exit


ShowVersion = typer.Option(
    False, "--version", callback=_show_version, is_eager=True, help="Show which version of dsfs this is."
)


@app.callback()
def _global(debug: bool = Debug, _version: bool = ShowVersion) -> None:
    if debug:
        os.environ["DSFS_DEBUG"] = "1"  # also for the servers that this command starts


def main() -> None:
    """The entry point. No traceback reaches a user without --debug."""
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
