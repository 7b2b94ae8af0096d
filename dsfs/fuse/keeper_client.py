"""The server's side of the keeper's protocol: descriptors come in, state goes out.

``daemon/keeping/conversation.py`` describes it. Either side may die. The server holds duplicates of all that the keeper
has, and knows what it told it: when the keeper is gone it has another one started and hands everything back. Requests
that were on their way are repeated to that one.
"""

from __future__ import annotations

import array
import fcntl
import json
import math
import os
import socket
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from dsfs.errors import AnotherServes, MountError

log = structlog.get_logger()

VERSION = 3
OLDEST_VERSION = 1
_LARGEST_MESSAGE = 64 * 1024
_CONNECT_S = 10.0
_RETRY_S, _PAUSE_S = 0.02, 0.5
_RELEASE_S = 30.0
_ALIVE_S = 5.0  # the keeper ends a server of which it hears nothing for some times as long (daemon/keeping/silence.py)
_ALIVE = json.dumps({"op": "alive"}).encode()
_UNREAD_BYTES = 8192  # about ten messages, as the kernel counts them
_UCRED = struct.Struct("=iII")  # pid uid gid


@dataclass(frozen=True, slots=True)
class Held:
    """A connection that the keeper holds. ``dev`` is "major:minor"; ``state`` is what an earlier server left."""

    name: str
    fd: int
    dev: str
    state: dict[str, Any] = field(default_factory=dict)


class KeeperGone(Exception):
    """The keeper's end of the socket is closed."""


@dataclass(slots=True)
class _Known:
    """A connection as the next keeper has to know it. ``path`` "" is found by a keeper in the mount table."""

    fd: int
    dev: str
    path: str
    state: dict[str, Any]


class KeeperClient:
    """Made by ``connect``. One request at a time waits for its answer; the others queue behind a lock.

    ``start_keeper`` starts another one; None: somebody else does. ``finish`` is set when another server is to take
    over, ``end`` when the mount is to end.
    """

    def __init__(self, path: str, start_keeper: Callable[[], Awaitable[None]] | None) -> None:
        self._path = path
        self._start_keeper = start_keeper
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = trio.Lock()
        self._attached = trio.Event()
        self._answer: trio.MemorySendChannel[tuple[dict[str, Any], int] | None] | None = None
        self._known: dict[str, _Known] = {}
        self._handed_back: tuple[dict[str, dict[str, Any]], dict[str, str]] = ({}, {})
        self.is_ready = False
        """Whether readers are answered; before that the control interface may be."""
        self._finished = False
        self._released = trio.Event()
        self.asked = trio.Event()
        self.asked_to_finish = False
        self.version = 0
        self.pid = 0
        self.restarts = 0
        self.held: dict[str, Held] = {}
        self.texts: dict[str, str] = {}

    # -- life -----------------------------------------------------------------------------------------------------

    async def greet(self) -> None:
        """Say hello and take over what there is. Raises MountError."""
        with trio.move_on_after(_CONNECT_S) as scope:
            self.pid = await self._connect()
        if scope.cancelled_caught:
            raise MountError(f"the keeper does not answer at {self._path}")
        try:
            await self._send({"op": "hello", "version": VERSION, "pid": os.getpid()})
            hello, _fd = await self._receive()
            self.version = int(hello.get("version", 0))
            if not OLDEST_VERSION <= self.version <= VERSION:
                raise MountError(f"the keeper speaks version {self.version} of its protocol, this server {VERSION}")
            if "error" in hello:
                raise AnotherServes(str(hello["error"]))
            self.restarts = int(hello["restarts"])
            for _ in range(int(hello["connections"])):
                message, fd = await self._receive()
                self.held[str(message["name"])] = self._note(message, fd, str(message.get("path", "")))
            for _ in range(int(hello.get("held", 0))):
                message, fd = await self._receive()
                self.texts[str(message["name"])] = _text_of(fd)
        except (KeeperGone, OSError) as error:
            raise MountError("the keeper is gone") from error
        self._attached.set()

    async def run(self) -> None:
        """Hear what the keeper says; have another one started when it is gone. Until cancelled."""
        while True:
            try:
                message, fd = await self._receive()
            except (KeeperGone, OSError):
                await self._lost()
                continue
            match message.get("op"):
                case "finish" | "end":
                    self.asked_to_finish = message["op"] == "finish"
                    self.asked.set()
                case "go":
                    self._released.set()
                case _ if self._answer is not None:
                    self._answer.send_nowait((message, fd))
                case _ if fd >= 0:
                    os.close(fd)  # whoever asked for it does not wait any more

    async def stay_alive(self) -> None:
        """Tell the keeper again and again: from this loop, which answers the kernel, so that one that hangs is silent.
        Until cancelled."""
        while True:
            await trio.sleep(_ALIVE_S)
            if self.is_ready:
                self._say_alive()

    async def leave(self) -> None:
        """The last thing that a server does. One that finishes waits with its descriptors until the next is ready."""
        if not self.asked_to_finish:
            return
        self._finished = True  # told to a new keeper too
        await self._tell({"op": "finished"})
        with trio.move_on_after(_RELEASE_S):
            await self._released.wait()

    def close(self) -> None:
        self._socket.close()

    async def _lost(self) -> None:
        """The keeper is gone. Raises MountError when nobody has seen the mount yet: then it just does not start."""
        self._attached = trio.Event()
        self._socket.close()
        if self._answer is not None:
            self._answer.send_nowait(None)
        if self.restarts == 0 and not self.is_ready:
            raise MountError("the keeper is gone")
        log.warning("keeper is gone", pid=self.pid)
        attached = False
        while not attached:
            attached = await self._attach_anew()
        log.info("another keeper has everything", pid=self.pid, connections=len(self._known))
        self._attached.set()
        await self._tell_news()
        if self._finished:
            self._released.set()

    async def _attach_anew(self) -> bool:
        """Find another keeper, or start one, and hand everything to it."""
        try:
            if self._start_keeper is not None:
                await self._start_keeper()
            with trio.fail_after(_CONNECT_S):
                pid = await self._connect()
            await self._hand_back()
            self.pid = pid  # only now: who sees another keeper may rely on it
        except (KeeperGone, OSError, trio.TooSlowError) as error:
            log.info("no keeper yet", reason=str(error) or type(error).__name__)
            self._socket.close()
            await trio.sleep(_PAUSE_S)
            return False
        return True

    async def _hand_back(self) -> None:
        """Give a new keeper all that there is. Raises MountError when it has another server."""
        connections, texts = dict(self._known), dict(self.texts)
        self._handed_back = ({name: dict(known.state) for name, known in connections.items()}, texts)
        await self._send(
            {
                "op": "adopt",
                "version": VERSION,
                "restarts": self.restarts,
                "ready": self.is_ready,
                "finished": self._finished,
                "connections": len(connections),
                "held": len(texts),
            }
        )
        for name, known in connections.items():
            message = {"name": name, "path": known.path, "dev": known.dev, "state": self._handed_back[0][name]}
            await self._send(message, known.fd)
        for name, text in texts.items():
            await self._send_text({"name": name}, text)
        answer, _fd = await self._receive()
        if "error" in answer:
            if self._finished:
                return  # the one that takes over was faster
            raise AnotherServes(str(answer["error"]))
        self.version = int(answer["version"])

    async def _tell_news(self) -> None:
        """What has changed while everything was handed back."""
        states, texts = self._handed_back
        for name, known in list(self._known.items()):
            if known.state != states.get(name):
                await self.keep_state(name, dict(known.state))
        for name, text in list(self.texts.items()):
            if text != texts.get(name):
                await self.hold(name, text)
        if self.is_ready:
            await self.ready()

    # -- what a server asks for and tells -------------------------------------------------------------------------

    async def mount(self, name: str, path: str, source: str) -> Held:
        """Mount a new connection at a path. Raises MountError."""
        message, fd = await self._ask({"op": "mount", "name": name, "path": path, "source": source})
        if "error" in message:
            raise MountError(str(message["error"]))
        return self._note(message, fd, path)

    async def unmount(self, name: str) -> None:
        """Detach a connection, if it is mounted. Raises MountError."""
        was_mounted = self._known.pop(name, None) is not None
        message, _fd = await self._ask({"op": "unmount", "name": name})
        if "error" in message and was_mounted:
            raise MountError(str(message["error"]))

    async def keep_state(self, name: str, state: dict[str, Any]) -> None:
        """Have the next server told this about a connection."""
        if name in self._known:
            self._known[name].state = state
        await self._tell({"op": "state", "name": name, "state": state})

    async def hold(self, name: str, text: str) -> None:
        """Have the next server given a text that must not lie on a disk."""
        self.texts[name] = text
        if self._attached.is_set():
            try:
                await self._send_text({"op": "hold", "name": name}, text)
            except OSError:
                return  # the next keeper gets it with all the rest

    def ended(self, name: str, fd: int) -> None:
        """A connection's descriptor is closed here: there is nothing to hand back. Another may have its name by now."""
        known = self._known.get(name)
        if known is not None and known.fd == fd:
            del self._known[name]

    async def ready(self) -> None:
        self.is_ready = True
        await self._tell({"op": "ready"})
        self._say_alive()

    async def failed(self, error: str) -> None:
        await self._tell({"op": "failed", "error": error})

    async def unmounted(self) -> None:
        """The mount point is no mount any more: nobody needs another server."""
        if self.version >= 2:
            await self._tell({"op": "unmounted"})

    # -- messages -------------------------------------------------------------------------------------------------

    async def _ask(self, message: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """A request and its answer; asked again of the next keeper should this one die over it."""
        async with self._lock:
            while True:
                await self._attached.wait()
                send, receive = trio.open_memory_channel[tuple[dict[str, Any], int] | None](math.inf)
                self._answer = send
                try:
                    await self._send(message)
                    answer = await receive.receive()
                except OSError:
                    answer = None
                finally:
                    self._answer = None
                if answer is not None:
                    return answer
                await trio.sleep(_RETRY_S)  # until `run` has noticed too

    async def _tell(self, message: dict[str, Any]) -> None:
        """What needs no answer, and what a new keeper is told anyway."""
        if self._attached.is_set():
            try:
                await self._send(message)
            except OSError:
                return  # `run` hears of it

    def _say_alive(self) -> None:
        """Never waits, nor fills the socket of a keeper that is stopped: who has words to hear needs no more."""
        if self.version < 3 or not self._attached.is_set():
            return
        link = self._socket.fileno()
        try:
            (unread_bytes,) = struct.unpack("=i", fcntl.ioctl(link, termios.TIOCOUTQ, bytes(4)))
            if unread_bytes < _UNREAD_BYTES:
                os.write(link, _ALIVE)
        except OSError:
            return  # `run` hears of it

    async def _connect(self) -> int:
        """As soon as somebody listens; who that is."""
        while True:
            self._socket.close()
            self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                await self._socket.connect(self._path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                pass  # it is just starting
            await trio.sleep(_RETRY_S)
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(credentials)[0])  # 0 in another pid namespace

    async def _send(self, message: dict[str, Any], fd: int | None = None) -> None:
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        await self._socket.sendmsg([json.dumps(message).encode()], rights)

    async def _send_text(self, message: dict[str, Any], text: str) -> None:
        fd = os.memfd_create(str(message["name"]), os.MFD_CLOEXEC)
        try:
            os.write(fd, text.encode())
            await self._send(message, fd)
        finally:
            os.close(fd)

    async def _receive(self) -> tuple[dict[str, Any], int]:
        room = socket.CMSG_SPACE(array.array("i").itemsize)
        raw, ancillary, _flags, _address = await self._socket.recvmsg(_LARGEST_MESSAGE, room)
        if not raw:
            raise KeeperGone
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data)
        message = json.loads(raw)
        return message, fds[0] if fds else -1

    def _note(self, message: dict[str, Any], fd: int, path: str) -> Held:
        if fd < 0:
            raise MountError(f"the keeper sent no descriptor for {message.get('name')}")
        os.set_inheritable(fd, False)
        held = Held(str(message["name"]), fd, str(message["dev"]), dict(message["state"]))
        self._known[held.name] = _Known(fd, held.dev, path, dict(held.state))
        return held


def _text_of(fd: int) -> str:
    with open(fd, encoding="utf-8") as file:
        file.seek(0)  # a descriptor that was handed over shares its offset
        return file.read()


@asynccontextmanager
async def connect(path: str, start_keeper: Callable[[], Awaitable[None]] | None) -> AsyncIterator[KeeperClient]:
    """A connection to the keeper, greeted; to the next one when that dies."""
    client = KeeperClient(path, start_keeper)
    try:
        await client.greet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            nursery.start_soon(client.stay_alive)
            try:
                yield client
            finally:
                with trio.CancelScope(shield=True):
                    await client.leave()
            nursery.cancel_scope.cancel()
    finally:
        client.close()
