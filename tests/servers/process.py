"""A real server in a child process, on loopback: started, waited for, killed by its pid."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HOST = "127.0.0.1"
START_WITHIN_S = 120.0
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw"))
_PORTS = itertools.cycle(range(10_000 + _WORKER % 10 * 2_000, 12_000 + _WORKER % 10 * 2_000))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on. Nobody else here is given them soon: each process that tests has a part of its own
    of those below the ones that the kernel chooses by itself (32768 and more: ip_local_port_range)."""
    ports = []
    while len(ports) < count:
        with contextlib.suppress(OSError), socket.socket() as probe:
            port = next(_PORTS)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            ports.append(port)
    return ports


def program(name: str, *elsewhere: str) -> str | None:
    """A program beside the running Python (wheels put theirs there), on PATH, or in one of the other places."""
    beside = str(Path(sys.executable).parent)
    for directory in (beside, *os.get_exec_path(), *elsewhere):
        candidate = Path(directory) / name
        if os.access(candidate, os.X_OK):
            return str(candidate)
    return None


class Server:
    """One child process in a session of its own."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def wait_for_port(self, port: int) -> None:
        """Until it accepts connections. A foreign program has no better event than that, so this one place polls."""
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self._process.args} does not listen: {self._log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.02)

    def kill(self) -> None:
        """The process and its children are gone when this returns. May be called twice."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it leads a session, so its group has its own number
        self._process.wait()


@contextlib.contextmanager
def running(argv: Sequence[str], port: int, log: Path, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server that accepts connections at ``port`` inside the block."""
    server = Server(argv, log, env)
    try:
        server.wait_for_port(port)
        yield server
    finally:
        server.kill()
