"""The command line's side of the control interface: HTTP over the mount's unix socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any
from urllib.parse import quote

from daemon.running import Running
from dsfs.errors import MountError

_SERVER_START_S = 3.0


class NoAnswer(MountError):
    """The server of a mount could not be asked; a new one may be starting."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None, patience_s: float) -> None:
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
            except (FileNotFoundError, ConnectionRefusedError):  # the next server is just starting, perhaps
                self.sock.close()
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(0.05)  # nothing tells when it listens


def ask(
    running: Running,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    timeout_s: float | None = 30.0,
    patience_s: float = _SERVER_START_S,
) -> dict[str, Any]:
    """One request to a running mount; ``patience_s`` for one that is just starting.

    Raises MountError with what it said; NoAnswer if that was nothing.
    """
    connection = _UnixConnection(running.control_socket, timeout_s, patience_s)
    try:
        connection.request(
            method, quote(path), json.dumps(body) if body is not None else None, {"Content-Type": "application/json"}
        )
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    except TimeoutError as error:
        raise NoAnswer(
            f"{running.mountpoint}: its server does not answer (see {running.runtime_dir}/server.log)"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoAnswer(
            f"{running.mountpoint}: its server cannot be reached: {error} (see {running.runtime_dir}/server.log)"
        ) from error
    finally:
        connection.close()
    if "error" in answer:
        raise MountError(str(answer["error"]))
    return answer


def ask_keeper(running: Running, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """One request to a mount's keeper. Raises MountError with what it said, or that it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.settimeout(timeout_s)
        try:
            keeper.connect(running.keeper_socket)
            keeper.send(json.dumps(message).encode())
            answer: dict[str, Any] = json.loads(keeper.recv(64 * 1024) or b'{"error": "its keeper is gone"}')
        except OSError as error:
            reason = error.strerror or str(error)
            raise MountError(
                f"{running.mountpoint}: its keeper (pid {running.keeper_pid}) does not answer: {reason}"
            ) from error
    if "error" in answer:
        raise MountError(f"{running.mountpoint}: {answer['error']}")
    return answer
