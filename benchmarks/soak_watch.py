"""Watches the servers of a soak: how many requests they have answered, and how much memory each came to hold."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.mounts import Mount

LOOK_EVERY_S = 0.5
SAME_AGE_S = 2.0
"""Servers are compared with each other when they are this old: most live no longer under faults."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Server:
    """One server: requests by its own count, and (age in seconds, resident bytes, descriptors) at each look."""

    pid: int
    seen_s: float
    requests: float = 0.0
    looks: list[tuple[float, int, int]] = field(default_factory=list)

    def rss_at(self, age_s: float) -> int | None:
        """Resident bytes at the first look at this age or later."""
        return next((rss for age, rss, _fds in self.looks if age >= age_s), None)


class Watch:
    """``look`` is also called before each kill, so that hardly a request of a server that dies is missed."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.servers: dict[float, Server] = {}  # by how many there were before it
        self.calm_at: tuple[float, float] | None = None  # the server that is to live on, and its age then

    @property
    def requests(self) -> float:
        return sum(server.requests for server in list(self.servers.values()))

    def look(self) -> None:
        with self._lock:
            try:
                samples = self._mount.metrics()
            except OSError:
                return  # just being replaced
            restarts = samples.get("dsfs_server_restarts_total", 0.0)
            answered = sum(value for name, value in samples.items() if name.startswith("dsfs_operation_seconds_count"))
            server = self.servers.get(restarts)
            if server is None:
                pid = self._mount.server_pid_now()
                if pid is None:
                    return
                server = self.servers[restarts] = Server(pid, time.monotonic())
            server.requests = max(server.requests, answered)
            with contextlib.suppress(OSError):  # it was killed meanwhile
                rss = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * _PAGE_BYTES
                descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
                server.looks.append((time.monotonic() - server.seen_s, rss, descriptors))

    def calm(self) -> None:
        """No server is killed from here on."""
        if self.calm_at is None and self.servers:
            last = max(self.servers)
            self.calm_at = last, time.monotonic() - self.servers[last].seen_s

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.look()

    # -- what it comes to -----------------------------------------------------------------------------------------

    def growth(self) -> list[str]:
        """A line for servers of one age, and one for the server that lived through the calm."""
        told = []
        young = [rss for _n, server in sorted(self.servers.items()) if (rss := server.rss_at(SAME_AGE_S)) is not None]
        if len(young) >= 4:
            part = max(2, len(young) // 4)
            first, last = statistics.median(young[:part]), statistics.median(young[-part:])
            told.append(
                f"{len(young)} servers that came to be {SAME_AGE_S:g} s old, RSS then, median of the first and of the"
                f" last {part}: {first / 1e6:.1f} -> {last / 1e6:.1f} MB ({_percent(first, last)})"
            )
        if self.calm_at is not None:
            number, age_s = self.calm_at
            looks = [each for each in self.servers[number].looks if each[0] >= age_s]
            if len(looks) >= 5:
                quarters = [looks[at * (len(looks) - 1) // 4] for at in range(5)]
                rss = " -> ".join(f"{each[1] / 1e6:.1f}" for each in quarters)
                told.append(
                    f"the server of the last third ({looks[-1][0] - age_s:.0f} s), RSS at each quarter: {rss} MB;"
                    f" start to end {_percent(looks[0][1], looks[-1][1])},"
                    f" first quarter to end {_percent(quarters[1][1], looks[-1][1])};"
                    f" descriptors {looks[0][2]} -> {looks[-1][2]}"
                )
        return told


def _percent(before: float, after: float) -> str:
    return f"{(after / before - 1) * 100:+.1f} %"
