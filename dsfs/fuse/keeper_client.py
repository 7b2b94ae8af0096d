"""The server's side of the keeper's protocol (described in daemon/keeper.py): descriptors come in, state goes out."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from dsfs.errors import MountError

VERSION = 1
_LARGEST_MESSAGE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """A connection that the keeper holds. ``dev`` is "major:minor"; ``state`` is what an earlier server left."""

    name: str
    fd: int
    dev: str
    state: dict[str, Any] = field(default_factory=dict)


class KeeperClient:
    """Made by ``connect``. One request at a time waits for its answer; the others queue behind a lock."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock
        self._lock = trio.Lock()
        self.restarts = 0
        self.held: dict[str, Held] = {}
        self.texts: dict[str, str] = {}

    async def greet(self) -> None:
        """Say hello and take over what there is."""
        await self._send({"op": "hello", "version": VERSION, "pid": os.getpid()})
        hello, _fd = await self._receive()
        if hello.get("version") != VERSION:
            raise MountError(f"the keeper speaks version {hello.get('version')} of its protocol, this server {VERSION}")
        self.restarts = int(hello["restarts"])
        for _ in range(int(hello["connections"])):
            message, fd = await self._receive()
            held = _held(message, fd)
            self.held[held.name] = held
        for _ in range(int(hello.get("held", 0))):
            message, fd = await self._receive()
            self.texts[str(message["name"])] = _text_of(fd)

    async def mount(self, name: str, path: str, source: str) -> Held:
        """Mount a new connection at a path. Raises MountError."""
        async with self._lock:
            await self._send({"op": "mount", "name": name, "path": path, "source": source})
            message, fd = await self._receive()
        if "error" in message:
            raise MountError(str(message["error"]))
        return _held(message, fd)

    async def unmount(self, name: str) -> None:
        """Detach a connection. Raises MountError."""
        async with self._lock:
            await self._send({"op": "unmount", "name": name})
            message, _fd = await self._receive()
        if "error" in message:
            raise MountError(str(message["error"]))

    async def keep_state(self, name: str, state: dict[str, Any]) -> None:
        """Have the next server told this about a connection."""
        await self._send({"op": "state", "name": name, "state": state})

    async def hold(self, name: str, text: str) -> None:
        """Have the next server given a text that must not lie on a disk."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.write(fd, text.encode())
            rights = array.array("i", [fd])
            message = json.dumps({"op": "hold", "name": name}).encode()
            await self._socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            os.close(fd)

    async def ready(self) -> None:
        await self._send({"op": "ready"})

    async def failed(self, error: str) -> None:
        await self._send({"op": "failed", "error": error})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._socket.send(json.dumps(message).encode())

    async def _receive(self) -> tuple[dict[str, Any], int]:
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        raw, ancillary, _flags, _address = await self._socket.recvmsg(_LARGEST_MESSAGE, room)
        if not raw:
            raise MountError("the keeper is gone")
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data)
        message = json.loads(raw)
        return message, fds[0] if fds else -1


def _text_of(fd: int) -> str:
    with open(fd, encoding="utf-8") as file:
        file.seek(0)  # a descriptor that was handed over shares its offset
        return file.read()


def _held(message: dict[str, Any], fd: int) -> Held:
    if fd < 0:
        raise MountError(f"the keeper sent no descriptor for {message.get('name')}")
    os.set_inheritable(fd, False)
    return Held(str(message["name"]), fd, str(message["dev"]), dict(message["state"]))


@asynccontextmanager
async def connect(path: str) -> AsyncIterator[KeeperClient]:
    """A connection to the keeper, greeted."""
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        await sock.connect(path)
        client = KeeperClient(sock)
        await client.greet()
        yield client
    finally:
        sock.close()
