"""Asks a running mount from another program, a training job say. Standard library only.

``dsfs.hint`` is what it is for; the command line sends hints with it too.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import quote

from dsfs.errors import MountError

_LINKS_MAX = 40  # as the kernel's MAXSYMLINKS
SERVER_START_S = 3.0
_LOOK_AGAIN_S = 0.05  # nothing tells when it listens
_PART_PATHS = 20_000  # a request: small enough to be taken in between reads

Ask = Callable[[str, str, dict[str, Any]], dict[str, Any]]


def runtime_root(environ: Mapping[str, str] = os.environ) -> str:
    """Where running mounts are found: one directory each. Raises MountError where others could put theirs."""
    if os.getuid() == 0:
        return "/run/dsfs"
    session = environ.get("XDG_RUNTIME_DIR")
    if session:
        return f"{session}/dsfs"
    own = f"/tmp/dsfs-{os.getuid()}"
    if not is_own(own):
        raise MountError(f"{own}: others may write there (chmod 700 it if it is yours, else set XDG_RUNTIME_DIR)")
    return f"{own}/dsfs"


def runtime_roots(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where running mounts of this user may be: of a session that has a runtime directory, and of one that has none.
    Raises MountError as ``runtime_root``."""
    first = runtime_root(environ)
    if os.getuid() == 0:
        return [first]
    bases = (f"/run/user/{os.getuid()}", f"/tmp/dsfs-{os.getuid()}")
    roots = [first, *(f"{base}/dsfs" for base in bases if is_own(base))]
    return list({os.path.realpath(root): root for root in reversed(roots)}.values())[::-1]


def is_own(directory: str) -> bool:
    """Whether it is a directory of this user, in which nobody else can put anything, or not there."""
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def runtime_directories() -> Iterator[str]:
    """One for each running mount of this user, and what ended ones have left."""
    for root in runtime_roots():
        try:
            names = sorted(os.listdir(root))
        except OSError:  # nothing is mounted from there
            continue
        yield from (f"{root}/{name}" for name in names)


def place_of(mountpoint: str) -> str:
    """Where a path leads, as the mount table has it. What may be mounted there is not asked."""
    parent, name = os.path.split(os.path.abspath(mountpoint))
    place = os.path.join(os.path.realpath(parent), name)
    for _ in range(_LINKS_MAX):
        try:
            target = os.readlink(place)
        except OSError:  # no link, or not there
            break
        parent, name = os.path.split(os.path.normpath(os.path.join(os.path.dirname(place), target)))
        place = os.path.join(os.path.realpath(parent), name)
    return place


def is_below(path: str, directory: str) -> bool:
    """Whether an absolute path is a directory, or in it, by its name alone."""
    return os.path.commonpath([os.path.normpath(path), os.path.normpath(directory)]) == os.path.normpath(directory)


def to_mount(mountpoint: str | None, timeout_s: float) -> Ask:
    """Asks the mount at a place, or the only one there is. Raises MountError."""
    place = _socket_of(mountpoint)
    return lambda method, path, body: _ask(place, method, path, body, timeout_s)


def send_hint(ask: Ask, dataset: str, paths: Iterable[str | os.PathLike[str]]) -> dict[str, Any]:
    """In parts, so that fetching begins with the first one, and a million paths need no memory at either end. No more
    are sent once a newer hint has taken the place of this one."""
    answer: dict[str, Any] = {}
    for part, last in _parts(os.fspath(path) for path in paths):
        body = {"selector": dataset, "paths": part, "last": last, **({"id": answer["id"]} if answer else {})}
        answer = ask("POST", "/api/v1/hint", body)
        if answer["state"] == "replaced":
            break
    return answer


def _parts(paths: Iterator[str]) -> Iterator[tuple[list[str], bool]]:
    part = list(islice(paths, _PART_PATHS))
    while True:
        following = list(islice(paths, _PART_PATHS))
        yield part, not following
        if not following:
            return
        part = following


class PatientConnection(http.client.HTTPConnection):
    """HTTP over a unix socket. A server that is just starting gets ``patience_s`` until it listens."""

    def __init__(self, path: str, timeout_s: float | None, patience_s: float = SERVER_START_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._patience_s = patience_s

    def connect(self) -> None:
        deadline_s = time.monotonic() + self._patience_s
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            try:
                self.sock.connect(self._path)
                return
            except (FileNotFoundError, ConnectionRefusedError):
                self.sock.close()
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(_LOOK_AGAIN_S)

    def ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """One request; what the server says to it. Raises OSError, ValueError or HTTPException if that is nothing."""
        headers = {"Content-Type": "application/json"}
        try:
            self.request(method, quote(path), None if body is None else json.dumps(body), headers)
            answer: dict[str, Any] = json.loads(self.getresponse().read())
        finally:
            self.close()
        return answer


def _socket_of(mountpoint: str | None) -> str:
    """The control socket of a mount, or of the only one there is; of one whose next server is just starting too."""
    deadline_s = time.monotonic() + SERVER_START_S
    while True:
        answering, silent = _sockets()
        try:
            return _chosen(answering, mountpoint)
        except MountError:
            awaited = silent if mountpoint is None else silent & {place_of(mountpoint)}
            if not awaited or (mountpoint is None and answering) or time.monotonic() > deadline_s:
                raise
        time.sleep(_LOOK_AGAIN_S)


def _chosen(answering: Mapping[str, str], mountpoint: str | None) -> str:
    if mountpoint is not None:
        place = place_of(mountpoint)
        if place not in answering:
            raise MountError(f"{place}: no dsfs mount of this user answers there")
        return answering[place]
    if len(answering) != 1:
        many = f"several dsfs mounts are running: name one with mountpoint= ({', '.join(sorted(answering))})"
        raise MountError(many if answering else "no dsfs mount of this user is running (start one with dsfs mount)")
    return next(iter(answering.values()))


def _sockets() -> tuple[dict[str, str], set[str]]:
    """By mount point, the control sockets of the servers that answer; and the mount points of those that do not."""
    answering: dict[str, str] = {}
    silent: set[str] = set()
    for path in runtime_directories():
        try:
            with open(f"{path}/keeper.json", encoding="utf-8") as file:
                place = str(json.load(file)["mountpoint"])
        except (OSError, ValueError, KeyError):
            continue  # not one that runs
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(5)
                probe.connect(f"{path}/control.sock")
        except OSError:
            silent.add(place)
        else:
            answering[place] = f"{path}/control.sock"
    return answering, silent


def _ask(place: str, method: str, path: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Of the next server, if this one goes."""
    until_s: float | None = None
    while True:
        try:
            answer = PatientConnection(place, timeout_s).ask(method, path, body)
            break
        except (OSError, ValueError, http.client.HTTPException) as error:
            until_s = until_s or time.monotonic() + SERVER_START_S
            if not _may_be_repeated(error, body) or time.monotonic() > until_s:
                reason = error or type(error).__name__
                raise MountError(f"the dsfs server at {place} does not answer: {reason}") from error
        time.sleep(_LOOK_AGAIN_S)
    if "error" in answer:
        raise MountError(str(answer["error"]))
    return answer


def _may_be_repeated(error: Exception, body: dict[str, Any]) -> bool:
    """Whether the server has gone without taking in more of what it has a part of already."""
    gone = isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError)
    return gone and "id" not in body
