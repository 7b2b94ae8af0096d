"""The command line's side of the control interface: HTTP over the mount's unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from daemon.keeping.peers import LARGEST_MESSAGE
from daemon.running import Running
from dsfs.client import SERVER_START_S, PatientConnection
from dsfs.errors import MountError


class NoAnswer(MountError):
    """The server of a mount could not be asked; a new one may be starting."""


def ask(
    running: Running,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    timeout_s: float | None = 30.0,
    patience_s: float = SERVER_START_S,
) -> dict[str, Any]:
    """One request to a running mount; ``patience_s`` for one that is just starting.

    Raises MountError with what it said; NoAnswer if that was nothing.
    """
    try:
        answer = PatientConnection(running.control_socket, timeout_s, patience_s).ask(method, path, body)
    except TimeoutError as error:
        raise NoAnswer(
            f"{running.mountpoint}: its server does not answer (see {running.runtime_dir}/server.log)"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoAnswer(
            f"{running.mountpoint}: its server cannot be reached: {error} (see {running.runtime_dir}/server.log)"
        ) from error
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
            answer: dict[str, Any] = json.loads(keeper.recv(LARGEST_MESSAGE) or b'{"error": "its keeper is gone"}')
        except OSError as error:
            reason = error.strerror or str(error)
            raise MountError(
                f"{running.mountpoint}: its keeper (pid {running.keeper_pid}) does not answer: {reason}"
            ) from error
    if "error" in answer:
        raise MountError(f"{running.mountpoint}: {answer['error']}")
    return answer
