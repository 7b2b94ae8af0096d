"""Sees every open of a file that the kernel serves alone (openless): fanotify on the FUSE super block, fd mode.

A process of its own, standard library only: it could wait for the server, and the server never waits for it. The kernel
opens each event's file for us, and its attributes are taken as the kernel has them. A process that hangs in a mount
cannot be killed, and one in the server's container would be in the way of the container's end, so of the next server.
It ends when its stdin does, so with the server that started it.

    python -m daemon.open_listener

    stdin, a line each                                    stdout, a line each
    {"watch": NAME, "path": PATH, "dev": "0:52"}          {"watching": NAME} or {"failed": NAME, "reason": …}
    {"forget": NAME}                                      {"opens": [[NAME, POD, COUNT, BYTES], …],
                                                           "used": {NAME: [NODEID, …]}, "overflows": N, "share": 1.0}

``opens`` are those since the last line, at most one line a second. ``used`` names a file once in ten minutes.

The kernel joins an event with one like it that is still queued: a process that opens the same file several times within
a millisecond or so is counted once.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import select
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

# <linux/fanotify.h>
_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_CLASS_NOTIF = 0x1, 0x2, 0x0
_FAN_MARK_ADD, _FAN_MARK_FLUSH, _FAN_MARK_FILESYSTEM = 0x1, 0x80, 0x100
_FAN_OPEN, _FAN_Q_OVERFLOW = 0x20, 0x4000
_EVENT = struct.Struct("=IBBHQii")  # fanotify_event_metadata: event_len vers reserved metadata_len mask fd pid
_EVENTS_AT_ONCE = 256
# <linux/stat.h>
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000
_STATX_INO, _STATX_SIZE = 0x100, 0x200
_STATX = struct.Struct("=32x2Q88x2I112x")  # statx: … stx_ino stx_size … stx_dev_major stx_dev_minor …

_TICK_S = 1.0
_USED_S = 600.0
_POD_S = 10.0  # how long a pid is believed to be the same process
_LARGEST_INO = 1 << 26  # 8 MiB of bits a dataset
_INO_MASK = (1 << 40) - 1  # filesystem/nodes.py; this program imports nothing of ours

# …/kubepods-burstable-pod0a1b_….slice/… of systemd, …/kubepods/burstable/pod0a1b-…/… of cgroupfs
_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?:/|$)")

MOST_OPENS_A_SECOND = 10_000
SAMPLE_SHARE = 0.1
"""An open costs its reader about 3 µs and this process 5. Up to so many a second each is counted; above, those of a
tenth of the time, scaled up: what is busiest need not be slowed down for what a sample of a thousand tells as well."""


def pod_of(cgroups: str) -> str:
    """The uid of the pod in the text of /proc/PID/cgroup; "" for a process that is in none."""
    found = _POD.findall(cgroups)
    return found[-1].replace("_", "-") if found else ""


def next_share(share: float, opens_a_second: float) -> float:
    """Which part of the next second to watch, from how many opens there were in the last one."""
    if share == 1.0:
        return SAMPLE_SHARE if opens_a_second > MOST_OPENS_A_SECOND else 1.0
    return 1.0 if opens_a_second < MOST_OPENS_A_SECOND / 2 else SAMPLE_SHARE


class Used:
    """Which files of a dataset were named already: a bit each, as their numbers are dense."""

    def __init__(self) -> None:
        self._bits = bytearray(1024)
        self.new: list[int] = []

    def note(self, nodeid: int) -> None:
        ino = nodeid & _INO_MASK
        at, bit = ino >> 3, 1 << (ino & 7)
        if ino >= _LARGEST_INO:
            return
        if at >= len(self._bits):
            self._bits.extend(bytes(at + 1024 - len(self._bits)))
        if not self._bits[at] & bit:
            self._bits[at] |= bit
            self.new.append(nodeid)

    def begin_anew(self) -> None:
        self._bits = bytearray(len(self._bits))


class Opened(NamedTuple):
    """A file that was opened, as the kernel knew it."""

    dev: int
    ino: int
    size_bytes: int


class Attributes:
    """statx(2) that never asks the file system's server."""

    def __init__(self, libc: ctypes.CDLL) -> None:
        self._libc = libc
        self._libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
        self._buffer = ctypes.create_string_buffer(_STATX.size)

    def of(self, fd: int) -> Opened:
        """Raises OSError."""
        flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
        if self._libc.statx(fd, b"", flags, _STATX_INO | _STATX_SIZE, self._buffer) < 0:
            raise OSError(ctypes.get_errno(), "statx")
        ino, size_bytes, major, minor = _STATX.unpack(self._buffer)
        return Opened(os.makedev(major, minor), ino, size_bytes)


class Fanotify:
    """One group with a mark on each file system that is watched. Raises OSError where there is no fanotify."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.fanotify_mark.argtypes = [
            *(ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
        ]
        self._attributes = Attributes(self._libc)
        self.fd: int = self._libc.fanotify_init(
            _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_CLASS_NOTIF, os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE
        )
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "fanotify_init")

    def watch(self, path: str, dev: int) -> None:
        """Watch the file system that is mounted at a path. Raises OSError, also when another one is."""
        root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if (
                self._attributes.of(root).dev != dev
            ):  # not mounted in this mount namespace: never watch what is not ours
                raise OSError(errno.ENODEV, "another file system is mounted there")
            if self._libc.fanotify_mark(self.fd, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, _FAN_OPEN, root, b".") < 0:
                raise OSError(ctypes.get_errno(), f"fanotify_mark: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(root)

    def watch_nothing(self) -> None:
        self._libc.fanotify_mark(self.fd, _FAN_MARK_FLUSH | _FAN_MARK_FILESYSTEM, 0, -1, None)

    def read(self, opened: Callable[[Opened, int], None]) -> tuple[int, int]:
        """Take what is queued, a file and a pid at a time; how many events and overflows that were."""
        events = overflows = 0
        try:
            raw = os.read(self.fd, _EVENT.size * _EVENTS_AT_ONCE)
        except BlockingIOError:
            return 0, 0
        except OSError:  # of one event, whose file could not be opened: the others come with the next read
            return 0, 1
        for _length, _vers, _reserved, _metadata_length, mask, fd, pid in _EVENT.iter_unpack(raw):
            if mask & _FAN_Q_OVERFLOW:
                overflows += 1
            if fd < 0:
                continue
            try:
                opened(self._attributes.of(fd), pid)
                events += 1
            except OSError:  # its file system is gone
                overflows += 1
            finally:
                os.close(fd)
        return events, overflows


class Listener:
    def __init__(self, fanotify: Fanotify) -> None:
        self._fanotify = fanotify
        self._watched: dict[str, tuple[str, int]] = {}  # name → path, device
        self._names: dict[int, str] = {}  # device → name
        self._used: dict[str, Used] = {}
        self._used_since_s = time.monotonic()
        self._pods: dict[int, str] = {}
        self._pods_since_s = 0.0
        self._opens: dict[tuple[str, str], list[float]] = {}  # (name, pod) → count and bytes
        self._overflows = 0
        self._events = 0
        self._share = 1.0
        self._watching = True
        self._period_s = time.monotonic()  # since when
        self._window_s = _TICK_S  # how long of this period was watched
        self._told_share = 1.0

    def run(self) -> None:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._fanotify.fd, select.POLLIN)
        asked = b""
        while True:
            now_s = time.monotonic()
            ready = dict(poll.poll(max(1, int((self._next_turn_s() - now_s) * 1000))))
            if 0 in ready:
                more = os.read(0, 65536)
                if not more:
                    return
                *lines, asked = (asked + more).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
            if self._fanotify.fd in ready:
                events, overflows = self._fanotify.read(self._opened)
                self._events += events
                self._overflows += overflows
            if time.monotonic() >= self._next_turn_s():
                self._turn()

    def _next_turn_s(self) -> float:
        return self._period_s + (_TICK_S * self._share if self._watching else _TICK_S)

    def _turn(self) -> None:
        """The end of a second, or of the part of it that is watched. Either may come late, and is taken as it was."""
        now_s = time.monotonic()
        if self._watching:
            self._window_s = now_s - self._period_s
            if self._share < 1.0:
                self._fanotify.watch_nothing()
                self._watching = False
                self._drain()
                return
        self._report(scale=(now_s - self._period_s) / self._window_s)
        self._share = next_share(self._share, self._events / self._window_s)
        self._events = 0
        self._period_s = now_s
        if not self._watching:
            self._watching = True
            for name in list(self._watched):
                self._watch(name)
        if now_s - self._used_since_s >= _USED_S:
            self._used_since_s = now_s
            for used in self._used.values():
                used.begin_anew()

    def _drain(self) -> None:
        while True:
            events, overflows = self._fanotify.read(self._opened)
            self._events += events
            self._overflows += overflows
            if not events and not overflows:
                return

    def _obey(self, order: dict[str, str]) -> None:
        if "watch" in order:
            name = order["watch"]
            major, minor = order["dev"].split(":")
            self._watched[name] = order["path"], os.makedev(int(major), int(minor))
            self._used[name] = Used()
            if self._watch(name):
                _say({"watching": name})
        else:
            _path, dev = self._watched.pop(order["forget"], ("", 0))
            self._used.pop(order["forget"], None)
            self._names.pop(dev, None)

    def _watch(self, name: str) -> bool:
        path, dev = self._watched[name]
        self._names[dev] = name
        if not self._watching:
            return True
        try:
            self._fanotify.watch(path, dev)
        except OSError as error:
            del self._watched[name], self._names[dev]
            _say({"failed": name, "reason": error.strerror or str(error)})
            return False
        return True

    def _opened(self, file: Opened, pid: int) -> None:
        name = self._names.get(file.dev)
        if name is None:
            return  # just forgotten
        pod = self._pods.get(pid)
        if pod is None:
            pod = self._pods[pid] = self._pod(pid)
        counted = self._opens.get((name, pod))
        if counted is None:
            counted = self._opens[name, pod] = [0, 0]
        counted[0] += 1
        counted[1] += file.size_bytes
        self._used[name].note(file.ino)

    def _pod(self, pid: int) -> str:
        try:
            with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:
                return pod_of(file.read())
        except OSError:
            return ""  # it has ended, or is in a pid namespace that is not ours to see

    def _report(self, scale: float) -> None:
        if self._opens or self._overflows or self._told_share != self._share:
            _say(
                {
                    "opens": [
                        [name, pod, round(count * scale), round(size * scale)]
                        for (name, pod), (count, size) in self._opens.items()
                    ],
                    "used": {name: used.new for name, used in self._used.items() if used.new},
                    "overflows": self._overflows,
                    "share": self._share,
                }
            )
            self._told_share = self._share
            self._opens.clear()
            self._overflows = 0
            for used in self._used.values():
                used.new = []
        now_s = time.monotonic()
        if now_s - self._pods_since_s >= _POD_S:
            self._pods.clear()
            self._pods_since_s = now_s


def _say(what: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> int:
    try:
        fanotify = Fanotify()
    except OSError as error:
        _say({"unable": error.strerror or str(error)})
        return 1
    with contextlib.suppress(BrokenPipeError):  # the server is gone
        Listener(fanotify).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
