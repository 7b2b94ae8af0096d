"""The stand-by: has imported all that a server needs, and forks one when the keeper says so.

Starting Python and importing takes ten times as long as what a server does from there on, and that is how long readers
would wait after a crash. A stand-by serves nothing and has no thread, so it may fork at any time; half of its memory is
shared with the server that it forked. It hears of its end too, and tells the keeper how it was.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from daemon import lean
from daemon.keeping.peers import LARGEST_MESSAGE, VERSION
from daemon.process import name_process

_RETRY_S = 0.02
_STOP_S = 8.0
_PRELOAD_S = 3.0  # after a fork, when that has started
NOTHING_MORE = "--no-preload"


def run(keeper_socket: str, serve: Callable[[], int], preload: Callable[[], None], *, foreground: bool) -> int:
    """Wait and fork until the keeper says "go"; the exit status.

    ``preload`` imports what servers imported while they ran; it is called when there is time for it.
    ``foreground``: the keeper is somebody else's and may come later or again. This ends with its server, as that has.
    """
    standby = _StandBy(keeper_socket, serve, preload, foreground)
    return standby.run()


class _StandBy:
    def __init__(
        self, keeper_socket: str, serve: Callable[[], int], preload: Callable[[], None], foreground: bool
    ) -> None:
        self._path = keeper_socket
        self._serve = serve
        self._preload = preload
        self._preload_at = math.inf
        self._foreground = foreground
        self._link: socket.socket | None = None
        self._children: set[int] = set()
        self._unreported: list[dict[str, Any]] = []
        self._takes_over = foreground
        self._started = time.monotonic()
        self._installed = _installed()
        self._stopping = False
        self._status = 0
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        name_process("dsfs-standby")
        self._import_more()
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for all of its processes: the keeper decides
        signal.signal(signal.SIGTERM, self._on_sigterm)
        while not self._stopping:
            if self._link is None and not self._connect():
                break
            link = self._link
            waiting = [self._wake_r] if link is None else [self._wake_r, link.fileno()]
            ready, _w, _x = select.select(waiting, [], [], self._timeout(link))
            if not ready and time.monotonic() >= self._preload_at:
                self._import_more()
            if self._wake_r in ready:
                os.read(self._wake_r, 4096)
                self._reap()
            if link is not None and link.fileno() in ready:
                self._hear(link)
        self._end()
        return self._status

    def _timeout(self, link: socket.socket | None) -> float | None:
        if link is None:
            return _RETRY_S
        return None if self._preload_at == math.inf else max(0.0, self._preload_at - time.monotonic())

    def _import_more(self) -> None:
        self._preload_at = math.inf
        self._preload()
        if len(os.listdir("/proc/self/task")) > 1:  # a fork would have one thread, and locks that nobody gives back
            os.execv(sys.executable, [*sys.orig_argv, NOTHING_MORE])
        lean.imported()

    def _connect(self) -> bool:
        """To the keeper, if there is one; False when there is no use in trying again."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.connect(self._path)
        except OSError:
            link.close()
            return self._foreground or bool(self._children)  # it is our server that starts another keeper
        self._link = link
        self._say(
            {
                "op": "standby",
                "version": VERSION,
                "started": self._started,
                "takes_over": self._takes_over,
                "serving": bool(self._children),
                "children": sorted(self._children),
            }
        )
        self._takes_over = False  # only when it is new: not again after a keeper's death
        unreported, self._unreported = self._unreported, []
        for message in unreported:
            self._say(message)
        return True

    def _hear(self, link: socket.socket) -> None:
        try:
            raw = link.recv(LARGEST_MESSAGE)
        except OSError:
            raw = b""
        if not raw:
            link.close()
            self._link = None
            return
        message = json.loads(raw)
        if message.get("op") == "go":
            self._stopping = True
        elif message.get("op") == "kill":
            if message["pid"] in self._children:  # not reaped yet, so it is nobody else
                os.kill(message["pid"], signal.SIGKILL)
        elif message.get("op") == "take":
            if not message.get("stale") and _installed() != self._installed:
                self._say({"op": "stale"})  # a half of what it imports later would be of another version
            else:
                self._fork()

    def _fork(self) -> None:
        pid = os.fork()
        if pid:
            self._children.add(pid)
            self._preload_at = time.monotonic() + _PRELOAD_S
            self._say({"op": "forked", "pid": pid})
            return
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._link is not None:
                self._link.close()
            os.close(self._wake_r)
            os.close(self._wake_w)
            name_process("dsfs-server")
            status = self._serve()
        except BaseException:
            with contextlib.suppress(OSError):  # of a log on a full disk
                traceback.print_exc()
            status = 1
        _exit(status)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            self._say({"op": "ended", "pid": pid, "status": code})
            if self._foreground and code > 0:  # it said why, and whoever started us should see that it failed
                self._stopping, self._status = True, code

    def _say(self, message: dict[str, Any]) -> None:
        if self._link is None:
            self._unreported.append(message)
            return
        try:
            self._link.send(json.dumps(message).encode())
        except OSError:
            self._unreported.append(message)  # it has ended: `_hear` is about to see that

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _end(self) -> None:
        """`dsfs serve` takes its servers along; else they are the keeper's, and may outlive this."""
        if not self._foreground:
            return
        for pid in self._children:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while self._children:
            pid, _status = os.waitpid(-1, os.WNOHANG)
            self._children.discard(pid)
            if not pid:
                if time.monotonic() > deadline:
                    for child in self._children:
                        os.kill(child, signal.SIGKILL)
                time.sleep(_RETRY_S)


def _exit(status: int) -> NoReturn:
    """End a fork: nothing that was meant for the end of the stand-by is run."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _installed() -> int:
    """Changes when another version is installed (a few milliseconds)."""
    here = Path(__file__).resolve().parent
    found = []
    for package in (here, here.parent / "dsfs"):
        for directory, _names, files in os.walk(package):
            for file in files:
                if file.endswith(".py"):
                    path = os.path.join(directory, file)
                    found.append((path, os.stat(path).st_mtime_ns))
    return hash(tuple(sorted(found)))
