"""Kills the server at random moments, with time to heal, and tells how long whoever read had to wait.

    python -m benchmarks.kills --kills 100 [--standby | --no-standby] [--readers N] [--storm N] [--seed N]

Readers go on all read paths and compare every byte; the storm is processes whose requests all reach the server, one at
a time. ``--no-standby`` kills the stand-by too, so that the next server is a cold start. The pause of a kill is the
longest operation that was under way when it came or began before the next server answered. Exit status 1 if one byte
was wrong or one operation failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import name_of
from benchmarks.report import circumstances, command_line, say
from benchmarks.soak_scene import Crowd, Scene, scene
from tests.mounts import eventually, processes_of, runtime_dir_of

SLOW_S = 0.005
WARM_S = 10.0  # until most of what is read again and again is in the cache; all of it never is
HEAL_S = (1.2, 3.0)  # from when the next server answers; one that was ready for a second counts as well (keeper)
QUIET_S = 1.0


def pids(at: Scene) -> dict[str, list[int]]:
    """Server and stand-bys, by what they call themselves."""
    found: dict[str, list[int]] = {"dsfs-server": [], "dsfs-standby": []}
    for pid in processes_of([runtime_dir_of(at.mount.mountpoint)]):
        found.get(name_of(pid), []).append(pid)
    return found


def kill(at: Scene, *, standby: bool) -> float:
    """SIGKILL for the server, and without ``standby`` for that just before; when (monotonic)."""
    running = eventually(lambda: found if (found := pids(at))["dsfs-server"] else None, 60.0, "a server runs")
    if not standby:
        for pid in running["dsfs-standby"]:
            os.kill(pid, signal.SIGKILL)
    now = time.monotonic()
    for pid in running["dsfs-server"]:
        os.kill(pid, signal.SIGKILL)
    return now


def healed(at: Scene, servers: int) -> int:
    """Waits until there were more servers than that, and the keeper says that the last one serves; how many there were.

    The keeper takes a server that was ready for a second for one that is well: who is killed before goes on with the
    patience of whoever waits, and that ends.
    """

    def serving() -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
            keeper.connect(str(runtime_dir_of(at.mount.mountpoint) / "keeper.sock"))
            keeper.send(b'{"op": "look"}')
            said = json.loads(keeper.recv(65536))
        count = int(said["restarts"]) + 1
        return count if said["state"] == "serving" and count > servers else 0

    return int(eventually(serving, 60.0, "another server serves"))


def tell(what: str, times: list[float]) -> None:
    times.sort()
    p50, p99 = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
    numbers = f"p50 {p50 * 1e3:.0f} ms  p99 {p99 * 1e3:.0f} ms  max {times[-1] * 1e3:.0f} ms"
    say(f"longest operation {what}: {numbers}")


def main() -> None:
    parser = command_line("benchmarks.kills", __doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--standby", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--storm", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsfs-kills-")))
        at = stack.enter_context(scene(directory))
        crowd = Crowd(at, arguments.readers, arguments.storm, slow_s=SLOW_S, batch=1)
        killed = []
        with crowd.running():
            time.sleep(WARM_S)  # the crowd is under way before it is measured
            servers = healed(at, 0)
            for _ in range(arguments.kills):
                time.sleep(rng.uniform(*HEAL_S))  # the moment is to be any
                killed_s = kill(at, standby=arguments.standby)
                servers = healed(at, servers)
                killed.append((killed_s, time.monotonic()))
            time.sleep(HEAL_S[1])  # what the last kill delayed comes to its end, and is counted
        end, ended, slow = crowd.totals(crowd.everybody), crowd.exit_statuses(), crowd.slow()

        def longest(since_s: float, until_s: float) -> float:
            return max((took for began, took in slow if began + took > since_s and began < until_s), default=0.0)

        say(circumstances())
        tell("at a kill, or begun before the next server answered", [longest(*each) for each in killed])
        tell(f"{QUIET_S:g} s before", [longest(each - QUIET_S, each - QUIET_S / 2) for each, _until in killed])
        how = "warm stand-by" if arguments.standby else "cold start"
        say(
            f"{len(killed)} kills, {how}: {end.operations:,} operations, {end.bytes / 1e9:.1f} GB,"
            f" {end.wrong} wrong, {end.failed + end.explained} failed"
        )
        if any(ended):
            say(f"processes ended with {ended}")
        sys.exit(1 if end.wrong or end.failed or end.explained or any(ended) or not end.operations else 0)


if __name__ == "__main__":
    main()
