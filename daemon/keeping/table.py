"""What a keeper keeps: connections and texts, a descriptor each, and what servers want their successors to know."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, field
from typing import Any

from daemon.keeping.loop import say
from daemon.keeping.mounting import TYPES, detach, device_of, mount_fuse, mount_table, place_of
from daemon.keeping.store import Store


@dataclass
class Connection:
    """A mounted file system: its descriptor, where it is, and what servers want their successors to know."""

    fd: int
    path: str
    dev: str
    state: dict[str, Any] = field(default_factory=dict)
    stored_as: str = ""

    def described(self, name: str) -> dict[str, Any]:
        return {"name": name, "path": self.path, "dev": self.dev, "state": self.state}


class Table:
    """``careful``: there may have been a keeper before this one, and what it mounted."""

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        self._held: dict[str, tuple[int, str]] = {}  # descriptor, what it is stored as
        self._lock = threading.Lock()  # guards the two; mounts and unmounts run in threads
        self._mounting = threading.Lock()  # one at a time: a name that is asked for twice is mounted once
        self._store = Store()
        self.careful = False
        self.made = False  # mount points are made when they are not there

    def snapshot(self) -> tuple[dict[str, Connection], dict[str, int]]:
        with self._lock:
            return dict(self.connections), {name: fd for name, (fd, _stored_as) in self._held.items()}

    @property
    def stored(self) -> bool:
        """Whether a service manager keeps all of this over a restart of the keeper."""
        return self._store.there

    def mount(self, name: str, path: str, source: str) -> Connection:
        """Mount, or what is mounted already for a server that died between asking and hearing. Raises OSError."""
        with self._mounting:
            known = self.connections.get(name)
            if known is not None:
                return known
            if self.careful:
                self._clear(path, source)
            if self.made and not self.connections:
                self._make(path)
            fd = mount_fuse(path, source)
            return self.add(name, fd, path, device_of(fd, path), {})

    def _clear(self, path: str, source: str) -> None:
        """Detach what a keeper before this one has mounted there without living to tell anybody."""
        known = {connection.dev for connection in self.connections.values()}
        for mounted in mount_table():
            if mounted.path == path and mounted.type in TYPES and mounted.source == source and mounted.dev not in known:
                detach(path)  # the innermost of what lies there, as often as there is one

    def unmount(self, name: str) -> bool:
        with self._mounting:
            with self._lock:
                connection = self.connections.pop(name, None)
            if connection is None:
                return False
            detach(connection.path)
            os.close(connection.fd)
            self._store.drop(connection.stored_as)
            return True

    def add(self, name: str, fd: int, path: str, dev: str, state: dict[str, Any]) -> Connection:
        connection = Connection(fd, path or place_of(dev), dev, state)
        with self._lock:
            before = self.connections.get(name)
            connection.stored_as = self._store.put(fd, connection.described(name))
            self.connections[name] = connection
        if before is not None:
            os.close(before.fd)
            self._store.drop(before.stored_as)
        return connection

    def keep_state(self, name: str, state: dict[str, Any]) -> None:
        with self._lock:
            connection = self.connections.get(name)
            if connection is not None:
                connection.state = state
                self._store.update(connection.stored_as, connection.described(name))

    def hold(self, name: str, fd: int) -> None:
        with self._lock:
            before = self._held.pop(name, None)
            self._held[name] = (fd, self._store.put(fd, {"held": name}))
        if before is not None:
            os.close(before[0])
            self._store.drop(before[1])

    def clear(self) -> None:
        """Forget everything: it is unmounted."""
        with self._lock:
            connections, self.connections = self.connections, {}
            held, self._held = self._held, {}
        stored = [(connection.fd, connection.stored_as) for connection in connections.values()]
        for fd, stored_as in (*stored, *held.values()):
            os.close(fd)
            self._store.drop(stored_as)

    def restore(self) -> None:
        """Take what a service manager has kept for us."""
        for key, (fd, entry) in self._store.restore().items():
            if "held" in entry:
                self._held[entry["held"]] = (fd, key)
            else:
                path, dev, state = entry["path"], entry["dev"], entry["state"]
                self.connections[entry["name"]] = Connection(fd, path, dev, state, key)
        if self.connections:
            say(f"{len(self.connections)} connections were kept")
        self._store.is_ready()

    @staticmethod
    def _make(path: str) -> None:
        """The mount point of a keeper that lives alone: it may be the first that looks at it."""
        os.makedirs(path, exist_ok=True)
        if os.listdir(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
