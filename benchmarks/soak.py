"""Reads at random under faults at random, for as long as is asked, and compares every byte with the truth.

    python -m benchmarks.soak --minutes 60 [--readers N] [--storm N] [--faults kill-server,kill-keeper,…] [--seed N]

One mount shows datasets on all read paths of the direct session: a directory, a web server and an S3 server that never
fail, and a web server behind a relay that does. Exit status 1 if one byte was wrong, or one operation failed that no
fault of its origin explains. In the last third no process is killed, so that the growth of a server can be seen.
A storm is N more processes whose requests all reach the server, as many as it can answer (``soak_storm.py``).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Table, circumstances, command_line, progress, say
from benchmarks.soak_process import UNTIL
from benchmarks.soak_scene import MIB, READ_TIMEOUT_S, Crowd, Scene, scene
from benchmarks.soak_watch import Watch
from tests.lab.wire import Mode
from tests.mounts import dsfs

PAUSE_S = (2.0, 6.0)  # between two faults
ORIGIN_FAILS_S, STOPPED_S, FULL_S = (1.0, 4.0), 0.3, 2.0
BLAME_S = 3.0  # a pause that begins so soon after a fault is that fault's


@dataclass
class Fault:
    """One thing that was done, and when (seconds on the monotonic clock)."""

    kind: str
    started_s: float
    ended_s: float = 0.0


class Soak:
    """The faults and their schedule. The crowd has to be there: it has the file that says when the origin may fail."""

    def __init__(self, at: Scene, watch: Watch, rng: random.Random) -> None:
        self._mount = at.mount
        self._wire = at.wire
        self._rng = rng
        self.faults: list[Fault] = []
        self._watch = watch
        with (at.directory / "until").open("r+b") as file:
            self._until = mmap.mmap(file.fileno(), 0)
        self.kinds: dict[str, Callable[[], None]] = {
            "kill-server": self._kill_server,
            "kill-keeper": self._kill_keeper,
            "stop-server": self._stop_server,
            "restart": self._restart,
            "origin-refuses": lambda: self._origin(Mode.REFUSE),
            "origin-stalls": lambda: self._origin(Mode.STALL),
            "origin-drips": lambda: self._origin(Mode.DRIP),
            "origin-cuts": self._cut,
            "disk-full": self._fill_disk,
            "evict": self._evict,
            "resync": self._resync,
            "drop-pages": self._drop_pages,
        }

    # -- faults ---------------------------------------------------------------------------------------------------

    def _kill_server(self) -> None:
        os.kill(self._server(), signal.SIGKILL)

    def _kill_keeper(self) -> None:
        os.kill(int(self._mount.status()["keeper_pid"]), signal.SIGKILL)
        time.sleep(2.0)  # time to heal, before the next fault can take the server

    def _stop_server(self) -> None:
        pid = self._server()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(STOPPED_S)  # this is the fault
            os.kill(pid, signal.SIGCONT)

    def _restart(self) -> None:
        self._watch.look()
        done = dsfs("restart", self._mount.mountpoint)
        if done.returncode != 0:
            progress(f"restart: {done.stderr.strip()}")

    def _origin(self, mode: Mode) -> None:
        self._may_fail_until(float("inf"))
        self._wire.set(mode)
        time.sleep(self._rng.uniform(*ORIGIN_FAILS_S))  # this is the fault
        self._wire.set(Mode.PASS)
        # a connection that hung is given up by its own timeout; what waits for it began before that
        self._may_fail_until(time.monotonic() + READ_TIMEOUT_S)

    def _cut(self) -> None:
        self._wire.cut()  # nothing may fail: a reset is tried again

    def _fill_disk(self) -> None:
        filler = self._mount.cache_dir.parent / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        time.sleep(FULL_S)  # this is the fault
        filler.unlink()

    def _evict(self) -> None:
        dsfs(
            "evict", "-m", self._mount.mountpoint, self._rng.choice(("calm/dir", "calm/web", "calm/s3", "rough/flaky"))
        )

    def _resync(self) -> None:
        dsfs("dataset", "resync", "-m", self._mount.mountpoint, self._rng.choice(("calm/dir", "calm/web", "calm/s3")))

    def _drop_pages(self) -> None:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")

    def _may_fail_until(self, when_s: float) -> None:
        UNTIL.pack_into(self._until, 0, when_s)

    def _server(self) -> int:
        self._watch.look()  # the last that is heard of it
        return self._mount.server_pid

    # -- the schedule ---------------------------------------------------------------------------------------------

    def run(self, minutes: float, wanted: set[str], report: Callable[[], None]) -> None:
        killing = {"kill-server", "kill-keeper", "stop-server", "restart"}
        started, reported = time.monotonic(), time.monotonic()
        end = started + minutes * 60
        while time.monotonic() < end:
            calm = time.monotonic() > started + minutes * 40
            if calm:
                self._watch.calm()
            kinds = sorted(wanted - killing if calm else wanted)
            if kinds:
                fault = Fault(self._rng.choice(kinds), time.monotonic())
                self.kinds[fault.kind]()
                fault.ended_s = time.monotonic()
                self.faults.append(fault)
            time.sleep(min(self._rng.uniform(*PAUSE_S), max(0.0, end - time.monotonic())))  # any moment
            if time.monotonic() - reported > 60:
                reported = time.monotonic()
                report()


def pauses(soak: Soak, slow: list[tuple[float, float]]) -> dict[str, list[float]]:
    """The longest operation that each fault made, where the origin did not fail."""
    found: dict[str, list[float]] = {}
    for fault in soak.faults:
        during = [took for at, took in slow if at + took > fault.started_s and at < fault.ended_s + BLAME_S]
        found.setdefault(fault.kind, []).append(max(during, default=0.0))
    return found


def main() -> None:
    parser = command_line("benchmarks.soak", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--storm", type=int, default=0, help="processes whose requests all reach the server")
    parser.add_argument("--faults", default="", help="comma-separated; all of them if not given")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsfs-soak-")))
        at = stack.enter_context(scene(directory))
        crowd = Crowd(at, arguments.readers, arguments.storm)
        watch = Watch(at.mount)
        soak = Soak(at, watch, random.Random(arguments.seed))
        wanted = set(filter(None, arguments.faults.split(","))) or set(soak.kinds)
        if unknown := wanted - set(soak.kinds):
            parser.error(f"no such fault: {', '.join(sorted(unknown))} (there are: {', '.join(soak.kinds)})")
        say(circumstances())
        started = time.monotonic()

        def report() -> None:
            now, seconds = crowd.totals(crowd.everybody), time.monotonic() - started
            operations, requests = crowd.totals(crowd.readers).operations, watch.requests
            say(
                f"{seconds / 60:5.1f} min  {operations:,} operations  {now.bytes / 1e9:.1f} GB"
                f"  {now.wrong} wrong  {now.failed} failed  {now.explained} failed with their origin"
                f"  longest {now.calm_s:.2f} s  {requests:,.0f} requests ({requests / seconds:,.0f} a second)"
            )

        with crowd.running(), watch.running():
            soak.run(arguments.minutes, wanted, report)
        watch.look()
        report()
        end = crowd.totals(crowd.everybody)
        table = Table("fault", "times", "longest pause, median", "longest pause, worst")
        for kind, found in sorted(pauses(soak, crowd.slow()).items()):
            found.sort()
            table.row(kind, len(found), f"{found[len(found) // 2]:.2f} s", f"{found[-1]:.2f} s")
        say(
            f"requests: {watch.requests:,.0f} by the count of {len(watch.servers)} servers, each until the last look at"
            f" it; {crowd.totals(crowd.storm).operations:,} of the storm by its own"
        )
        for line in watch.growth():
            say(line)
        say(f"longest where the origin failed: {end.rough_s:.2f} s (--read-timeout {READ_TIMEOUT_S:g} s)")
        ended = crowd.exit_statuses()
        if any(ended):
            say(f"processes ended with {ended}")
        sys.exit(1 if end.wrong or end.failed or any(ended) or not end.operations else 0)


if __name__ == "__main__":
    main()
