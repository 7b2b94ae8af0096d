"""What a keeper keeps: connections and texts, a descriptor each, and what servers want their successors to know."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

from daemon.keeping.mounting import TYPES, detach, device_of, mount_fuse, mount_table, place_of


@dataclass
class Connection:
    """A mounted file system: its descriptor, where it is, and what servers want their successors to know."""

    fd: int
    path: str
    dev: str
    state: dict[str, Any] = field(default_factory=dict)

    def described(self, name: str) -> dict[str, Any]:
        return {"name": name, "path": self.path, "dev": self.dev, "state": self.state}


class Table:
    """``stored``: somebody else keeps all of this over a restart of the keeper. ``careful``: there was one before."""

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()  # guards the two; mounts and unmounts run in threads
        self._mounting = threading.Lock()  # one at a time: a name that is asked for twice is mounted once
        self.stored = False
        self.careful = False

    def snapshot(self) -> tuple[dict[str, Connection], dict[str, int]]:
        with self._lock:
            return dict(self.connections), dict(self._held)

    def mount(self, name: str, path: str, source: str) -> Connection:
        """Mount, or what is mounted already for a server that died between asking and hearing. Raises OSError."""
        with self._mounting:
            known = self.connections.get(name)
            if known is not None:
                return known
            if self.careful:
                self._clear(path, source)
            fd = mount_fuse(path, source)
            os.set_inheritable(fd, False)
            return self.add(name, fd, path, device_of(fd, path), {})

    def _clear(self, path: str, source: str) -> None:
        """Detach what a keeper before this one has mounted there without living to tell anybody."""
        known = {connection.dev for connection in self.connections.values()}
        for mounted in mount_table():
            if mounted.path == path and mounted.type in TYPES and mounted.source == source and mounted.dev not in known:
                detach(path)

    def unmount(self, name: str) -> bool:
        with self._mounting:
            with self._lock:
                connection = self.connections.pop(name, None)
            if connection is None:
                return False
            detach(connection.path)
            os.close(connection.fd)
            return True

    def add(self, name: str, fd: int, path: str, dev: str, state: dict[str, Any]) -> Connection:
        connection = Connection(fd, path or place_of(dev), dev, state)
        with self._lock:
            before = self.connections.get(name)
            self.connections[name] = connection
        if before is not None:
            os.close(before.fd)
        return connection

    def keep_state(self, name: str, state: dict[str, Any]) -> None:
        with self._lock:
            if name in self.connections:
                self.connections[name].state = state

    def hold(self, name: str, fd: int) -> None:
        with self._lock:
            before = self._held.pop(name, None)
            self._held[name] = fd
        if before is not None:
            os.close(before)

    def clear(self) -> None:
        """Forget everything: it is unmounted."""
        with self._lock:
            connections, self.connections = self.connections, {}
            held, self._held = self._held, {}
        for fd in (*(connection.fd for connection in connections.values()), *held.values()):
            os.close(fd)

    def restore(self) -> None:
        """Take what was stored."""

    def notify(self, text: str) -> None:
        """Tell whoever has started this."""
