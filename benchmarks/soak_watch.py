"""Watches the servers of a soak: how many requests they have answered, and how much memory each came to hold."""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.processes import descriptors, memory_bytes
from tests.mounts import Mount

LOOK_EVERY_S = 0.5
SAME_AGE_S = 2.0
"""Servers are compared with each other when they are this old: most live no longer under faults."""


class Look(NamedTuple):
    """``anonymous_bytes`` is the part of what is resident that is no page of a file."""

    age_s: float
    rss_bytes: int
    anonymous_bytes: int
    descriptors: int


@dataclass
class Server:
    """One server, and requests by its own count."""

    pid: int
    seen_s: float
    requests: float = 0.0
    looks: list[Look] = field(default_factory=list)

    def rss_at(self, age_s: float) -> int | None:
        """Resident bytes at the first look at this age or later."""
        return next((look.rss_bytes for look in self.looks if look.age_s >= age_s), None)


class Watch:
    """``look`` is also called before each kill, so that hardly a request of a server that dies is missed."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.servers: dict[float, Server] = {}  # by how many there were before it
        self._calm_s = math.inf  # monotonic: no server is killed from here on

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
                resident, anonymous = (memory_bytes(server.pid, what) for what in ("VmRSS", "RssAnon"))
                server.looks.append(
                    Look(time.monotonic() - server.seen_s, resident, anonymous, descriptors(server.pid))
                )

    def calm(self) -> None:
        """No server is killed from here on."""
        self._calm_s = min(self._calm_s, time.monotonic())

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
        for server in list(self.servers.values())[-1:]:
            looks = [each for each in server.looks if server.seen_s + each.age_s >= self._calm_s]
            if len(looks) >= 5:
                told += self._through_calm(looks)
        return told

    @staticmethod
    def _through_calm(looks: list[Look]) -> list[str]:
        start, end = looks[0], looks[-1]
        told = [f"the server of the last third ({end.age_s - start.age_s:.0f} s), at each quarter of it:"]
        quarters = [looks[at * (len(looks) - 1) // 4] for at in range(5)]
        for what, sizes in (
            ("RSS", [look.rss_bytes for look in quarters]),
            ("of which anonymous", [look.anonymous_bytes for look in quarters]),
        ):
            told.append(
                f"    {what} {' -> '.join(f'{size / 1e6:.1f}' for size in sizes)} MB,"
                f" start to end {_percent(sizes[0], sizes[-1])}, first quarter to end {_percent(sizes[1], sizes[-1])}"
            )
        return [*told, f"    descriptors {start.descriptors} -> {end.descriptors}"]


def _percent(before: float, after: float) -> str:
    return f"{(after / before - 1) * 100:+.1f} %"
