"""The descriptor store of a service manager (sd_notify, FDSTORE=1): what is in it outlives a restart of the keeper.

A descriptor is stored under a short name; which connection it is, where it is mounted and its state are lines of JSON
in a memfd that is stored too. A line that was not written whole is not there.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
from typing import Any

from daemon.keeping.loop import say

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_TABLE = "table"
_COMPACT_BYTES = 8 << 20
_PUNCH_HOLE, _KEEP_SIZE = 2, 1  # <linux/falloc.h>

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Store:
    """``entries``: what is stored, by the name it is stored under. Without a service manager all of it does nothing."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self.there = bool(self._address) and os.environ.get("FDSTORE", "1") != "0"
        self.entries: dict[str, dict[str, Any]] = {}
        self._next = 0
        self._table = -1
        self._begins = 0  # offset of the first line that counts

    def restore(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """What was stored by the process before this one: (descriptor, entry) by stored name."""
        fds = self._given()
        table = fds.pop(_TABLE, -1)
        if table >= 0:
            self._table = table
            self.entries = _read(table)
        elif self.there:
            self._table = os.memfd_create("dsfs-table", os.MFD_CLOEXEC)
            self._notify(f"FDSTORE=1\nFDNAME={_TABLE}", self._table)
        found = {}
        for key, fd in fds.items():
            if key in self.entries:
                found[key] = (fd, self.entries[key])
            else:
                os.close(fd)
        self.entries = {key: entry for key, (_fd, entry) in found.items()}
        self._next = max((int(key[1:]) + 1 for key in found), default=0)
        return found

    @staticmethod
    def _given() -> dict[str, int]:
        if os.environ.get("LISTEN_PID") != str(os.getpid()):
            return {}
        names = os.environ.get("LISTEN_FDNAMES", "").split(":")
        fds = {name: _FIRST_FD + number for number, name in enumerate(names) if name}
        for fd in fds.values():
            os.set_inheritable(fd, False)
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        return fds

    def put(self, fd: int, entry: dict[str, Any]) -> str:
        """Store a descriptor; the name it is stored under."""
        key = f"d{self._next}"
        self._next += 1
        if self.there:
            self.update(key, entry)  # first what it is, then that it is there
            self._notify(f"FDSTORE=1\nFDNAME={key}", fd)
        return key

    def update(self, key: str, entry: dict[str, Any]) -> None:
        if self.there:
            self.entries[key] = entry
            self._write({"key": key, "entry": entry})

    def drop(self, key: str) -> None:
        if self.there and self.entries.pop(key, None) is not None:
            self._notify(f"FDSTOREREMOVE=1\nFDNAME={key}")
            self._write({"key": key})

    def is_ready(self) -> None:
        self._notify("READY=1")

    def _write(self, line: dict[str, Any]) -> None:
        os.lseek(self._table, 0, os.SEEK_END)
        os.write(self._table, json.dumps(line).encode() + b"\n")
        end = os.lseek(self._table, 0, os.SEEK_CUR)
        if end - self._begins >= _COMPACT_BYTES:
            os.write(self._table, json.dumps({"all": self.entries}).encode() + b"\n")
            _libc.fallocate(self._table, _PUNCH_HOLE | _KEEP_SIZE, 0, end)
            self._begins = end

    def _notify(self, text: str, fd: int | None = None) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            try:
                manager.connect(address)
                socket.send_fds(manager, [text.encode()], [] if fd is None else [fd])
            except OSError as error:
                say(f"the service manager is not told {text.partition(chr(10))[0]}: {error}")


def _read(table: int) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    with open(table, "rb", closefd=False) as file:
        if os.fstat(table).st_size == 0:
            return {}
        file.seek(os.lseek(table, 0, os.SEEK_DATA))  # lines before that were given back
        data = file.read()
    *lines, _unfinished = data.split(b"\n")
    for line in lines:
        try:
            change = json.loads(line.lstrip(b"\0"))
        except ValueError:
            continue  # the rest of one whose beginning was given back
        if "all" in change:
            entries = change["all"]
        elif "entry" in change:
            entries[change["key"]] = change["entry"]
        else:
            entries.pop(change["key"], None)
    return entries
