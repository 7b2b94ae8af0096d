"""Ahead of reading: ``dsfs warm`` and ``dsfs hint``."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Any, TextIO

import typer

from daemon import running
from daemon.cli.options import AsJson, DatasetName, Mountpoint, Selector, asked_of
from daemon.cli.output import say, show_json, size
from daemon.control.client import NoAnswer, ask
from dsfs.client import send_hint
from dsfs.errors import ConfigError, MountError

_NEXT_SERVER_S = 60.0
_LINE_EVERY_S = 5.0
_SMOOTH = 0.2  # of the rate that is shown, how much is the latest moment's
_RUNNING = ("listing", "warming")

Show = Callable[[dict[str, Any]], None]


def warm(
    selector: Selector,
    pin: Annotated[
        bool, typer.Option("--pin", help="Keep it from eviction; refused, before anything is fetched, if it cannot be.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return at once; the daemon goes on, and its next server too.")
    ] = False,
    rate: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Fetch no more than this in a second, such as 100MiB.")
    ] = None,
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """Bring a dataset into the cache, or the paths that a glob names, behind whoever reads.

    What is there already is not fetched again. Ctrl-C ends it, and what came stays.
    """
    bytes_per_s = None if rate is None else _parse_rate(rate)
    found, selector = asked_of(selector, mountpoint)
    if pin:
        ask(found, "POST", "/api/v1/pin", {"selector": selector, "warm": True}, timeout_s=None)
    wanted = {"selector": selector, "bytes_per_s": bytes_per_s}
    if no_wait:
        job = ask(found, "POST", "/api/v1/warm", wanted)
    else:
        with _progress(quiet=as_json) as show:
            job = _follow(found, wanted, show)
    if as_json:
        show_json(job)
    if job["state"] not in (*_RUNNING, "done"):
        raise MountError(f"{job['dataset']}: warm-up {job['state']}: {job['message']}")
    if as_json:
        return
    if job["state"] in _RUNNING:
        typer.echo(f"warming {job['dataset']} (dsfs status shows how far it is)")
    else:
        there = job["bytes"] - job["fetched_bytes"]
        typer.echo(
            f"{job['dataset']}: {job['files']} files, {size(job['bytes'])} are warm"
            + (f"; {size(there)} were already" if there > 0 else "")
        )


def hint(
    dataset: DatasetName,
    order: Annotated[
        str,
        typer.Option(metavar="FILE", help="Paths in the coming order: one a line, or a JSON list; - reads stdin."),
    ],
    mountpoint: Mountpoint = None,
    as_json: AsJson = False,
) -> None:
    """Say in which order files will be read: they are fetched in that order, a bounded distance ahead of the reads.

    A newer hint for a dataset replaces the one before.
    """
    found, dataset = asked_of(dataset, mountpoint)
    with _order(order) as paths:
        answer = send_hint(lambda method, path, body: ask(found, method, path, body, timeout_s=None), dataset, paths)
    if as_json:
        show_json(answer)
    if answer["state"] == "replaced":
        say(f"dsfs: {answer['dataset']}: a newer hint has taken the place of this one")
        return
    if answer["unknown"]:
        some = ", ".join(answer["unknown_paths"])
        more = answer["unknown"] - len(answer["unknown_paths"])
        line = f"{answer['unknown']} of {answer['files'] + answer['unknown']} paths are no files there: {some}"
        line += f" and {more} more" if more else ""
        if not answer["files"]:
            raise MountError(f"{answer['dataset']}: {line} (paths are relative to the dataset)")
        say(f"dsfs: {answer['dataset']}: {line}")
    if not as_json:
        typer.echo(f"{answer['dataset']}: {answer['files']} files will be fetched ahead in this order")


@contextmanager
def _order(name: str) -> Iterator[Iterator[str]]:
    """The paths in a file: read as they are sent, unless it is JSON. Raises ConfigError, OSError."""
    import sys

    with contextlib.ExitStack() as stack:
        if name == "-":
            file: TextIO = sys.stdin
            file.reconfigure(errors="surrogateescape")  # type: ignore[attr-defined]  # of TextIOWrapper, which it is
        else:
            file = stack.enter_context(open(name, encoding="utf-8", errors="surrogateescape"))
        first = next((line for line in file if line.strip()), "")
        if not first.lstrip().startswith("["):
            yield (line.rstrip("\n") for line in chain([first], file) if line.strip())
            return
        try:
            paths = json.loads(first + file.read())
        except ValueError as error:
            raise ConfigError(f"{name}: is no JSON list of paths: {error}") from error
        if not all(isinstance(path, str) for path in paths):
            raise ConfigError(f"{name}: is no JSON list of paths")
        yield iter(paths)


def _parse_rate(text: str) -> int:
    from dsfs.manifest.sizes import parse_size

    try:
        return parse_size(text.removesuffix("/s"))
    except ConfigError as error:
        raise typer.BadParameter(f"--rate {text}: {error}") from None


def _follow(found: running.Running, wanted: dict[str, Any], show: Show) -> dict[str, Any]:
    """Ask for it, and wait until it has ended, whichever server carries it out. Being interrupted cancels it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    job: dict[str, Any] = {}
    try:
        with _uninterrupted():
            job = ask(found, "POST", "/api/v1/warm", wanted)
        heard_s = time.monotonic()
        while job["state"] in _RUNNING:
            show(job)
            try:
                job = ask(found, "GET", f"/api/v1/warm/{job['id']}/next")
                heard_s = time.monotonic()
            except NoAnswer:
                if time.monotonic() - heard_s > _NEXT_SERVER_S:
                    raise
                time.sleep(0.2)  # nothing tells when the next server listens
            except MountError:  # a server that does not know of it: what is here is not fetched again
                with _uninterrupted():
                    job = ask(found, "POST", "/api/v1/warm", wanted)
        show(job)
    except KeyboardInterrupt:
        if job:
            ask(found, "DELETE", f"/api/v1/warm/{job['id']}")
            say(f"dsfs: warm-up of {job['dataset']} cancelled; what came stays")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    return job


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """While a warm-up begins: one of which the number is not known cannot be cancelled."""
    interrupts = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupts)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Show]:
    """A bar on a terminal; elsewhere a line now and then, or nothing when only JSON is wanted."""
    import sys

    if quiet:
        yield lambda _job: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        said_s = time.monotonic()
        pace = Pace()

        def line(job: dict[str, Any]) -> None:
            nonlocal said_s
            pace.note(job, time.monotonic())
            if job["state"] in _RUNNING and time.monotonic() - said_s >= _LINE_EVERY_S:
                said_s = time.monotonic()
                say(f"{job['dataset']}: {pace.line(job)}")

        yield line


@contextmanager
def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[dataset]}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[line]}", markup=False),
    )
    pace = Pace()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None, dataset="", line="listing")

        def show(job: dict[str, Any]) -> None:
            pace.note(job, time.monotonic())
            known = job["state"] != "listing"
            total = max(job["bytes"], 1) if known else None
            done = job["bytes_done"] if job["bytes"] else 1
            line = pace.line(job) if known else "listing"
            progress.update(task, total=total, completed=done, dataset=job["dataset"], line=line)

        yield show


class Pace:
    """How fast bytes come and how long the rest will take, from what a warm-up says again and again."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self.bytes_per_s = 0.0

    def note(self, job: dict[str, Any], now_s: float) -> None:
        fetched = int(job["fetched_bytes"])
        if self._last is not None and now_s > self._last[0]:
            latest = max(0, fetched - self._last[1]) / (now_s - self._last[0])
            self.bytes_per_s += (latest - self.bytes_per_s) * (_SMOOTH if self.bytes_per_s else 1)
        self._last = now_s, fetched

    def line(self, job: dict[str, Any]) -> str:
        """Bytes, files, rate, time left."""
        left = job["bytes"] - job["bytes_done"]
        text = f"{size(job['bytes_done'])} of {size(job['bytes'])}, {job['files_done']} of {job['files']} files"
        text += f", {size(int(self.bytes_per_s))}/s"
        if self.bytes_per_s >= 1:
            minutes, seconds = divmod(int(left / self.bytes_per_s), 60)
            hours, minutes = divmod(minutes, 60)
            text += f", {hours}:{minutes:02}:{seconds:02} left"
        return text + (f", {job['failed_files']} failed" if job["failed_files"] else "")
