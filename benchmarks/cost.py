"""What a cold read costs in processor time, which says more than a clock on a machine with other work to do.

    python -m benchmarks.cost --origin http|s3

CPU seconds of the server per GB of one large file, and per 1,000 small files, for rclone and dsfs in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import data, peers, workloads
from benchmarks.run import contestants, started

LARGE_MIB, SMALL_FILES = 512, 2000
COURIER_S = 2  # after a mount it is there by then, and tells nobody here
_TICKS = os.sysconf("SC_CLK_TCK")


def processes(*words: str) -> list[int]:
    """The processes whose command line has all of these in it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and all(word in (entry / "cmdline").read_text() for word in words):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


def cpu_seconds(pids: list[int]) -> tuple[float, float]:
    """In user mode, and in the kernel."""
    user = system = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system = user + int(fields[11]), system + int(fields[12])
    return user / _TICKS, system / _TICKS


def server_of(root: Path, name: str) -> list[int]:
    """Whoever answers at a mount point, and the courier beside it."""
    if name == "rclone":
        return processes("rclone", "mount", str(root))
    said = subprocess.run([peers.BIN / "dsfs", "status", "--json"], check=True, capture_output=True).stdout
    mounts = json.loads(said)["mounts"]
    servers = [mount["server_pid"] for mount in mounts if root.is_relative_to(mount["mountpoint"])]
    return servers + [pid for pid in processes("daemon.courier") if parent_of(pid) in servers]


def parent_of(pid: int) -> int:
    """0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--origin", choices=("s3", "http"), default="http")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="dsfs-cost-"))
    units: list[tuple[str, Callable[[Path], float], float]] = [
        ("per GB", workloads.sequential, LARGE_MIB * 1.048576 / 1000),
        ("per 1,000 small files", workloads.small_files, SMALL_FILES / 1000),
    ]
    try:
        data.make(work / "source", data.Sizes(LARGE_MIB << 20, SMALL_FILES, 0))
        with started(args.origin, work / "source", work) as origin:
            for _ in range(args.rounds):
                peers_by_name = contestants(origin, work / "source", work, {"rclone", "dsfs daemon"})
                for name, start in peers_by_name.items():
                    with start() as root:
                        time.sleep(COURIER_S)
                        pids = server_of(root, name)
                        for unit, workload, count in units:
                            os.sync()
                            before, began_s = cpu_seconds(pids), time.perf_counter()
                            workload(root)
                            wall_s, after = time.perf_counter() - began_s, cpu_seconds(pids)
                            user, system = ((b - a) / count for a, b in zip(before, after, strict=True))
                            print(
                                f"{args.origin:5} {name:12} {unit:22} {user + system:6.2f} CPU-s "
                                f"(user {user:.2f}, system {system:.2f}), wall {wall_s:.2f} s, "
                                f"load {os.getloadavg()[0]:.1f}",
                                flush=True,
                            )
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
