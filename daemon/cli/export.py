"""``dsfs export``: an offline copy of a dataset."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, BinaryIO

import typer

from daemon import running
from daemon.cli.options import DatasetName, Mountpoint, asked_of
from daemon.cli.output import say, size
from daemon.control.client import ask
from daemon.exporting import Checksums, Export
from daemon.settings import Settings
from dsfs.cache.owner import uid_in
from dsfs.errors import ConfigError, MountError, one_line

_SQUEEZED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst", ".zip")


def export(
    dataset: DatasetName,
    target: Annotated[
        str, typer.Argument(metavar="DIR|FILE.tar|-", help="A directory, a tar file, or - for a tar on stdout.")
    ],
    mountpoint: Mountpoint = None,
) -> None:
    """Copy all of a dataset: names, bytes, modes, links, times. Each cached block is compared with its checksum.

    Into a directory it goes on where an interrupted one ended.
    """
    if target.endswith(_SQUEEZED):
        raise ConfigError(f"{target}: tar files are written as they are (give NAME.tar, or - and a pipe to gzip)")
    found, dataset = asked_of(dataset, mountpoint)
    about = ask(found, "GET", f"/api/v1/datasets/{dataset}")
    name = f"{about['namespace']}/{about['name']}"
    if about["phase"] != "READY":
        raise MountError(f"{name}: is {about['phase']} {about['message']}".rstrip() + " (export it when it is READY)")
    single = Settings.load(found.runtime_dir).source_uri is not None
    root = found.mountpoint if single else f"{found.mountpoint}/{name}"
    with _progress(name, about["bytes"]) as progress:
        made = Export(root, name, _Daemon(found, name), progress)
        if target == "-":
            if sys.stdout.isatty():
                raise ConfigError("-: a tar does not belong on a terminal (redirect stdout)")
            made.to_tar(sys.stdout.buffer)
        elif target.endswith(".tar"):
            _to_file(made, target)
        else:
            made.to_directory(target, about["bytes"])
    say(f"exported {name} to {target}: {made.files} files, {size(made.bytes)}")
    if made.left_out:
        first = one_line(made.left_out[0])
        raise MountError(
            f"{name}: {len(made.left_out)} names that the source refuses or that cannot be read are not in the copy, "
            f"{first} is one (dsfs status)"
        )


def _to_file(made: Export, target: str) -> None:
    if os.path.exists(target):
        raise ConfigError(f"{target}: is there already (remove it, or give another name)")
    part = f"{target}.part"
    output = _new_part(part)
    try:
        with output:
            made.to_tar(output)
            output.flush()
            with suppress(OSError):  # a file system without modes
                os.fchmod(output.fileno(), _tar_mode(made.mode))
            os.fsync(output.fileno())
        os.rename(part, target)
    except BaseException:  # ^C too leaves no half of a tar
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise


def _new_part(part: str) -> BinaryIO:
    """A new file for us alone, in the place of what a killed export has left. Others may be able to write beside it:
    nothing of theirs is written to, or through."""
    with suppress(FileNotFoundError):
        found = os.lstat(part)
        ours = found.st_uid == os.geteuid() or found.st_uid == uid_in(os.path.dirname(part) or ".")
        if not stat.S_ISREG(found.st_mode) or not ours:
            raise ConfigError(f"{part}: is a link, or no file of yours (remove it, or give another name)")
        os.unlink(part)
    return open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb")


def _tar_mode(of_all: int) -> int:
    """As a new file has, but closed to those who may not read all that is in it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask & (0o600 | (of_all & 0o040 and 0o060) | (of_all & 0o004 and 0o006))


class _Daemon:
    def __init__(self, found: running.Running, name: str) -> None:
        self._found = found
        self._name = name

    def revision(self) -> str:
        return str(ask(self._found, "GET", f"/api/v1/datasets/{self._name}")["revision"])

    def checksums(self, paths: Sequence[str]) -> list[Checksums]:
        answer = self._checksums(paths)
        return [Checksums(answer["block_bytes"], each) for each in answer["checksums"]]

    def is_unreadable(self, path: str) -> bool:
        return path in self._checksums([path]).get("unreadable", ())  # a server from before an upgrade does not say

    def _checksums(self, paths: Sequence[str]) -> dict[str, Any]:
        body: dict[str, Any] = {"selector": self._name, "paths": list(paths)}
        answer: dict[str, Any] = ask(self._found, "POST", "/api/v1/checksums", body, timeout_s=None)
        return answer

    def verify(self, path: str) -> None:
        ask(self._found, "POST", "/api/v1/verify-file", {"selector": self._name, "path": path}, timeout_s=None)


@contextmanager
def _progress(name: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total_bytes)
        yield lambda count: bar.advance(task, count)
